"""Replies of JSON APIs, read as a stream: a list of any length costs the memory of one of its records.

Used by adapters on what `Crawl.request` returns. The shape is checked while it is read: a login page, an
error or an empty body never passes as an empty list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import ijson
import requests

from crawlfleet.errors import Bug, Retry
from crawlfleet.sources.redaction import redact

HEAD_BYTES = 64 * 1024
_MAX_DEPTH = 64
_OPENING = frozenset({"start_map", "start_array"})
_CLOSING = frozenset({"end_map", "end_array"})


class _WrongShapeError(Exception):
    """The reply is JSON, but not the JSON that was asked for."""


class Body:
    """The decoded body of a streamed response, readable once, as a file.

    `head` keeps its first `HEAD_BYTES` for a snapshot. A connection that breaks inside it is raised as the
    verdict it means by the `Crawl` that sent the request.
    """

    def __init__(self, response: requests.Response) -> None:
        self._raw = response.raw
        self.head = b""
        self.at_end = False

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        if size == 0:  # ijson asks so whether this file is binary
            return b""
        chunk: bytes = self._raw.read(size, decode_content=True)
        self.at_end = not chunk
        self.head += chunk[: HEAD_BYTES - len(self.head)]
        return chunk

    def read_head(self) -> bytes:
        """The whole body, if it is no longer than `HEAD_BYTES`; otherwise its head."""
        while len(self.head) < HEAD_BYTES and not self.at_end:
            self.read(HEAD_BYTES)
        return self.head


def read_object(body: Body) -> dict[str, Any]:
    """A small reply, whole. Raises Bug unless it is a JSON object without `error`."""
    try:
        value = json.loads(body.read_head())
    except (ValueError, RecursionError):
        raise _unexpected(body, "it is not JSON") from None
    if not isinstance(value, dict) or "error" in value:
        raise _unexpected(body, "it is not an object, or an error")
    return value


def read_list(body: Body, key: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of the list `key` of a JSON object, one by one.

    Raises Retry if the body ends too early, Bug if it is anything else than an object with that list and
    without `error`; then some objects may have been yielded already.
    """
    try:
        yield from _objects(ijson.basic_parse(body, use_float=True), key)
    except ijson.JSONError:  # not kept as the cause: its message quotes the reply
        # ijson has one class for all faults; only a body cut off is found after its last byte was read.
        if body.at_end and body.head.strip():
            raise Retry("TruncatedReply", "a reply ended inside its JSON") from None
        raise _unexpected(body, "it is not JSON") from None
    except _WrongShapeError as exc:
        raise _unexpected(body, str(exc)) from None


def _objects(events: Iterable[tuple[str, Any]], key: str) -> Iterator[dict[str, Any]]:
    """`basic_parse` and an own depth: ijson's paths ("item.item...") cost the square of a reply's nesting."""
    depth, name, found = 0, "", False
    builder = ijson.ObjectBuilder()
    for event, value in events:
        if event in _CLOSING:
            depth -= 1
        if depth > 2:  # inside a record: nearly all events
            if name == key:
                builder.event(event, value)
        elif depth == 0:
            _expect(event in ("start_map", "end_map"), "it is not an object")
        elif depth == 1:
            name = value if event == "map_key" else name
            _expect(name != "error", "it holds an error")
            _expect(name != key or event in ("map_key", "start_array", "end_array"), f"{key!r} is not a list")
            found = found or name == key
        elif name == key:
            _expect(event in ("start_map", "end_map"), f"{key!r} holds something else than objects")
            if event == "start_map":
                builder = ijson.ObjectBuilder()
            builder.event(event, value)
            if event == "end_map":
                yield builder.value
        if event in _OPENING:
            depth += 1
            _expect(depth <= _MAX_DEPTH, "it is nested too deep")
    _expect(found, f"it has no list {key!r}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _WrongShapeError(otherwise)


def _unexpected(body: Body, why: str) -> Bug:
    return Bug("UnexpectedReply", f"status 200, but {why}", snapshot=redact(body.head))
