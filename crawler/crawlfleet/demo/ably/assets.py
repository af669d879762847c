"""The pages of the stand-in ably, and what they load.

The script that a real page would bring along (frameworks, analytics) is made here and does as much work as its
size suggests; so are the thumbnails, which are real pictures of noise. Both are always the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache, lru_cache
from pathlib import Path
from string import Template

from crawlfleet.demo.exchange import Reply

PAGES = Path(__file__).parent / "pages"
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
STATIC = ("style.css", "login.js", "orders.js", "vendor.js")
KEPT = {"Cache-Control": "max-age=86400"}
IMAGE = re.compile(r"/img/(\d{1,6})\.jpg")
MODULES = 3360
BLOCKS = 23
"""A thumbnail is so many blocks of 8 x 8 pixels high and wide."""
SEVEN_BITS = bytes(byte & 0x7F for byte in range(256))


def page(name: str, **fields: str) -> str:
    """One of the HTML pages, with its fields filled in."""
    return _template(name).substitute(fields)


@cache
def _template(name: str) -> Template:
    return Template((PAGES / name).read_text(encoding="utf-8"))


def static_file(name: str) -> Reply:
    """A script or a style sheet."""
    if name not in STATIC:
        return Reply(404)
    body = vendor_script() if name == "vendor.js" else (PAGES / name).read_bytes()
    return Reply(200, body, KEPT, content_type=TYPES[Path(name).suffix])


def image(path: str) -> Reply:
    """The thumbnail of an article."""
    match = IMAGE.fullmatch(path)
    return Reply(200, thumbnail(int(match[1])), KEPT, content_type="image/jpeg") if match else Reply(404)


@cache
def vendor_script() -> bytes:
    """385 KB of small functions, each of which is called once."""
    lines = ['"use strict";', "(() => {", "const modules = [];"]
    lines += [
        f"modules.push((a, b) => {{ let c = a * {no} + b; for (let i = 0; i < {no % 7 + 3}; i++)"
        f" c = (c << 1) ^ (i * {no * 31 % 977}); return c; }});"
        for no in range(MODULES)
    ]
    lines += ["window.vendor = modules.reduce((sum, module, i) => sum ^ module(i, sum), 0);", "})();"]
    return "\n".join(lines).encode()


@lru_cache(maxsize=128)
def thumbnail(no: int) -> bytes:
    """A grey JPEG of noise, 34 KB: any bytes below 128 are its pixels.

    Each of the 16 codes of five bits that begin with a zero stands for "three bits follow", so a byte below 128
    is exactly one coefficient, and 64 of them are one block.
    """
    noise = hashlib.shake_256(f"thumbnail {no}".encode()).digest(64 * BLOCKS**2)
    return _JPEG_HEAD + noise.translate(SEVEN_BITS) + b"\xff\xd9"


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


def _jpeg_head() -> bytes:
    side = (8 * BLOCKS).to_bytes(2, "big")
    sixteen_codes_of_five_bits = bytes((0, 0, 0, 0, 16, *[0] * 11)) + b"\x03" * 16
    return b"".join(
        (
            b"\xff\xd8",
            _segment(0xDB, b"\x00" + b"\x02" * 64),
            _segment(0xC0, b"\x08" + side + side + b"\x01\x01\x11\x00"),
            _segment(0xC4, b"\x00" + sixteen_codes_of_five_bits),
            _segment(0xC4, b"\x10" + sixteen_codes_of_five_bits),
            _segment(0xDA, b"\x01\x01\x00\x00\x3f\x00"),
        )
    )


_JPEG_HEAD = _jpeg_head()
