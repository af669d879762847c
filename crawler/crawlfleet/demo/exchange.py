"""One HTTP request to a stand-in shop and the reply to it, without the sockets.

`server.py` makes the requests and carries the replies out, with the delays and cut connections they ask for;
a shop only thinks in these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Body = dict[str, Any]


@dataclass(frozen=True)
class Request:
    """One HTTP request. `path` is percent-decoded, header names are lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    egress: str = "direct"


@dataclass(frozen=True)
class Visit:
    """Whose request it is and what it wants, as its shop reads it; empty where the shop cannot tell.

    `is_api` is True for the calls that carry the data: promises about pace and concurrency are about them.
    """

    account: str = ""
    what: str = ""
    is_api: bool = False


class Delivery(StrEnum):
    """How the server has to send a reply."""

    WHOLE = "whole"
    DRIP = "drip"
    TRUNCATED = "truncated"
    LOST = "lost"


@dataclass(frozen=True)
class Reply:
    """One HTTP reply and how to send it, `delay_s` after the request came in."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json; charset=utf-8"
    delivery: Delivery = Delivery.WHOLE
    delay_s: float = 0.0

    @classmethod
    def of_json(cls, status: int, body: Body) -> Reply:
        """A reply with that JSON body."""
        return cls(status, json.dumps(body).encode())

    @classmethod
    def of_html(cls, status: int, page: str) -> Reply:
        """A page for people."""
        return cls(status, page.encode(), content_type="text/html; charset=utf-8")

    @classmethod
    def of_notice(cls, status: int, title: str) -> Reply:
        """A page that says one thing, where a client expects another one or JSON."""
        head = f'<head><meta charset="utf-8"><title>{title}</title></head>'
        return cls.of_html(status, f"<!DOCTYPE html><html>{head}<body><h1>{title}</h1></body></html>")


class Refused(Exception):
    """The parameters break a rule of the API; the reply is an error with that status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status
