"""Secrets at rest and in text: the key ring, sealed values, and redaction.

Credentials and proxy addresses lie sealed in the database; who holds the permit opens them. Nothing here
knows the database, and no repr or message shows a key or a plain value.

A sealed value is: version (1 byte, 1), length of the key id (1 byte), key id (ASCII), nonce (12 bytes, random),
AES-256-GCM ciphertext with its tag (16 bytes). Everything before the ciphertext and the context are authenticated,
so a value cannot be moved to another row. Random nonces are safe for some 2**32 values a key; rotate long before.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crawlfleet.errors import BadConfiguration, CrawlfleetError

VERSION = 1
KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
REDACTED = "[secret]"
SHORTEST_SECRET = 4

_GIVE_ANEW = (
    "if its key is lost, give the secret anew (account: purge and import it; proxy: apply its CrawlSource)"
)
_BASE64_RUN = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")


@dataclass(frozen=True)
class KeyRing:
    """The keys of one file: the first one seals, all of them open."""

    path: Path
    ids: tuple[str, ...]
    _ciphers: Mapping[str, AESGCM] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """Read a file of lines `id:base64 of 32 bytes`; blank lines and `#` comments are skipped.

        Raises BadConfiguration that names file and line.
        """
        ciphers: dict[str, AESGCM] = {}
        for number, line in enumerate(_lines(path), start=1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            key_id, key = _parse_key(f"{path} line {number}", text)
            if key_id in ciphers:
                raise BadConfiguration(f"{path} line {number}: key id {key_id!r} stands twice; rename one")
            ciphers[key_id] = AESGCM(key)
        if not ciphers:
            raise BadConfiguration(f"{path} holds no key; add a line `id:base64 of {KEY_BYTES} random bytes`")
        return cls(path, tuple(ciphers), ciphers)

    @staticmethod
    def new_key() -> str:
        """A line for a key ring file, with a fresh key. To seal with it put it first."""
        key = base64.b64encode(AESGCM.generate_key(KEY_BYTES * 8)).decode()
        return f"k{secrets.token_hex(4)}:{key}"

    def seal(self, plain: Mapping[str, Any] | bytes, context: str) -> bytes:
        """Encrypt bytes, or a mapping as JSON, for one place such as `account/cafe24/17`."""
        data = plain if isinstance(plain, bytes) else json.dumps(dict(plain), allow_nan=False).encode()
        key_id = self.ids[0].encode()
        header = bytes([VERSION, len(key_id)]) + key_id + os.urandom(NONCE_BYTES)
        return header + self._ciphers[self.ids[0]].encrypt(
            header[-NONCE_BYTES:], data, header + context.encode()
        )

    def open(self, blob: bytes, context: str) -> dict[str, Any]:
        """The mapping that was sealed for this place; errors as of `open_bytes`."""
        try:
            value = json.loads(self.open_bytes(blob, context))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise CrawlfleetError(f"the sealed value of {context} is not a mapping; open it as bytes")
        return value

    def open_bytes(self, blob: bytes, context: str) -> bytes:
        """The bytes that were sealed for this place.

        Raises BadConfiguration if the key is not in this ring, CrawlfleetError if the value was changed,
        cut off, moved from another place, or sealed with another key of the same id.
        """
        key_id, header_bytes = _read_header(blob, context)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise BadConfiguration(
                f"{context} is sealed with key {key_id!r}, which is not in the key ring {self.path};"
                f" add it there; {_GIVE_ANEW}"
            )
        header = blob[:header_bytes]
        try:
            return cipher.decrypt(header[-NONCE_BYTES:], blob[header_bytes:], header + context.encode())
        except InvalidTag:
            raise CrawlfleetError(
                f"{context} cannot be opened with key {key_id!r} of {self.path}: the sealed value was changed or moved,"
                f" or that id once named another key; {_GIVE_ANEW}"
            ) from None

    def needs_reseal(self, blob: bytes) -> bool:
        """Whether this value was sealed with another key than the first. Raises CrawlfleetError if it is not sealed."""
        return _read_header(blob, "a value")[0] != self.ids[0]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise BadConfiguration(f"the key ring {path} does not exist; mount it or correct the path") from None
    except OSError as exc:
        raise BadConfiguration(f"the key ring {path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise BadConfiguration(f"the key ring {path} is not text; it has one `id:base64` a line") from None


def _parse_key(place: str, text: str) -> tuple[str, bytes]:
    """Key id and key of one line. A message never repeats the line: any part of it may be the key."""
    key_id, colon, encoded = (part.strip() for part in text.partition(":"))
    if not colon or not KEY_ID.fullmatch(key_id):
        raise BadConfiguration(
            f"{place}: expected `id:base64`, with an id of at most 32 letters, digits, dots, hyphens or underscores"
        )
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise BadConfiguration(f"{place}: the key {key_id!r} is not standard base64") from None
    if len(key) != KEY_BYTES:
        raise BadConfiguration(f"{place}: the key {key_id!r} has {len(key)} bytes, not {KEY_BYTES}")
    return key_id, key


def _read_header(blob: bytes, context: str) -> tuple[str, int]:
    """Key id and length of the header; CrawlfleetError if this is no sealed value of ours."""
    header_bytes = 2 + (blob[1] if len(blob) > 1 else 0) + NONCE_BYTES
    if len(blob) < header_bytes + TAG_BYTES or blob[0] != VERSION:
        raise CrawlfleetError(f"{context} does not hold a sealed value (version {VERSION}); import it again")
    key_id = blob[2 : header_bytes - NONCE_BYTES].decode("ascii", "replace")
    if not KEY_ID.fullmatch(key_id):
        raise CrawlfleetError(f"{context} holds a sealed value that was changed; import it again")
    return key_id, header_bytes


def redact(text: str, secrets: Iterable[str]) -> str:
    """Replace these values by `[secret]`: as they are, URL-quoted, escaped as in JSON, or inside base64 (Basic).

    Longer values win over shorter ones inside them; values below 4 characters are ignored. A run of base64
    goes as a whole, since the rest of a Basic header is the user's name.
    """
    spans: list[tuple[int, int]] = []
    for secret in {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}:
        # A look-ahead finds overlapping places, too.
        spans += (found.span(1) for found in re.finditer(f"(?=({_any_form(secret)}))", text))
        spans += _base64_spans(text, secret)
    return _cover(text, spans)


def _any_form(secret: str) -> str:
    return "".join(f"(?:{'|'.join(map(re.escape, _char_forms(char)))})" for char in secret)


def _char_forms(char: str) -> list[str]:
    """One character in clear, in JSON, and in a URL, whichever characters the quoting spared; longest first."""
    quoted = "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
    forms = {char, json.dumps(char)[1:-1], quoted, quoted.lower()} | ({"+"} if char == " " else set())
    return sorted(forms, key=len, reverse=True)


def _base64_spans(text: str, secret: str) -> Iterator[tuple[int, int]]:
    cores = _base64_cores(secret.encode("utf-8", "surrogatepass"))
    for run in _BASE64_RUN.finditer(text):
        if any(core in run[0] for core in cores):
            yield run.span()


def _base64_cores(secret: bytes) -> set[str]:
    """What base64 shows of these bytes whatever stands before and after them: one text for each alignment."""
    cores = set()
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + secret).decode()
        first, end = -(-before * 8 // 6), (before + len(secret)) * 8 // 6
        cores |= {encoded[first:end], encoded[first:end].translate(str.maketrans("+/", "-_"))}
    return cores


def _cover(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """The text with each group of overlapping spans replaced once."""
    shown: list[str] = []
    at = 0
    for start, end in sorted(spans):
        if start >= at:
            shown += [text[at:start], REDACTED]
        at = max(at, end)
    return "".join([*shown, text[at:]])


def account_context(source: str, user_id: int) -> str:
    """What an account's credentials are sealed for."""
    return f"account/{source}/{user_id}"


def proxy_context(source: str, egress: str) -> str:
    """What an egress's proxy is sealed for."""
    return f"proxy/{source}/{egress}"
