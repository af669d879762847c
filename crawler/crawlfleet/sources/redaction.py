"""Redacted snapshots: what a reply looked like, without anything it said.

A `Bug` keeps one, so that an engineer sees a changed shape without reading a buyer's name. Pure: bytes in,
text out. It does not decide whether a reply is good.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_SNAPSHOT_CHARS = 4096
_MAX_DEPTH = 12
_MAX_ELEMENTS = 3
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z_.-]*[0-9]{0,3}")
_OPENING_TAG = re.compile(rb"<([A-Za-z][A-Za-z0-9]*)")
# Only known names are shown: text such as <someone@example.com> looks like a tag, too.
_TAGS = frozenset(
    b"html head title meta link script style noscript body header footer main nav section article iframe div"
    b" span p a b i br hr img h1 h2 h3 h4 h5 h6 ul ol li dl dt dd table thead tbody tfoot tr th td form input"
    b" label button select option textarea center font strong em pre code svg error".split()
)


def redact(body: bytes) -> str:
    """The shape of a reply: JSON with its leaves replaced, or the tag names of markup, at most 4 kB."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return _redact_text(body)
    return redact_value(value)


def redact_value(value: Any) -> str:
    """The shape of one JSON value: keys kept, every string and number as its type and length."""
    return _cut(json.dumps(_shape(value, _MAX_DEPTH), ensure_ascii=True))


def _shape(value: Any, depth: int) -> Any:
    if value is None:
        return None
    if isinstance(value, dict | list) and depth == 0:
        return "..."
    if isinstance(value, dict):
        return {_shown_key(key): _shape(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list):
        return _shape_list(value, depth)
    if isinstance(value, bool):
        return "bool"
    return f"{type(value).__name__}({len(str(value))})"


def _shape_list(values: list[Any], depth: int) -> list[Any]:
    shown = [_shape(value, depth - 1) for value in values[:_MAX_ELEMENTS]]
    hidden = len(values) - len(shown)
    return [*shown, f"{hidden} more"] if hidden else shown


def _shown_key(key: str) -> str:
    """Field names are kept; a key that may itself be data (a phone number, an address) is not."""
    if len(key) <= 64 and _FIELD_NAME.fullmatch(key):
        return key
    return f"key({len(key)})"


def _redact_text(body: bytes) -> str:
    tags = [tag.lower() for tag in _OPENING_TAG.findall(body)]
    if not tags:
        return f"{len(body)} bytes, neither JSON nor markup"
    return _cut("".join(f"<{tag.decode() if tag in _TAGS else '?'}>" for tag in tags))


def _cut(text: str) -> str:
    if len(text) <= MAX_SNAPSHOT_CHARS:
        return text
    return text[: MAX_SNAPSHOT_CHARS - 3] + "..."
