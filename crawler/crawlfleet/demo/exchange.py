"""One HTTP request to a stand-in shop and the reply to it, without the sockets.

`server.py` makes the requests and carries the replies out, with the delays and cut connections they ask for;
the shop only thinks in these.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

MALL_ID = re.compile(r"[a-z][a-z0-9]{0,31}")

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

    @cached_property
    def _parts(self) -> list[str]:
        return self.path.split("/", 5)

    @property
    def mall(self) -> str:
        """The mall of `/{mall}/api/...`, or an empty string."""
        return self._parts[1] if len(self._parts) == 6 and MALL_ID.fullmatch(self._parts[1]) else ""

    @property
    def resource(self) -> str:
        """What follows `/{mall}/api/v2/admin/`, or an empty string for anything else."""
        return self._parts[5] if len(self._parts) == 6 and self._parts[2:5] == ["api", "v2", "admin"] else ""

    @property
    def is_token_request(self) -> bool:
        """Whether this is the token endpoint."""
        return self._parts[2:] == ["api", "v2", "oauth", "token"]


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
    def of_html(cls, status: int, title: str) -> Reply:
        """A page for people where a client expects JSON."""
        page = f"<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
        return cls(status, page.encode(), content_type="text/html; charset=utf-8")

    @classmethod
    def of_error(cls, status: int, message: str) -> Reply:
        """An error body of the Admin API."""
        return cls.of_json(status, {"error": {"code": status, "message": message, "more_info": {}}})

    @classmethod
    def of_oauth_error(cls, status: int, error: str, description: str) -> Reply:
        """An error body of the token endpoint."""
        return cls.of_json(status, {"error": error, "error_description": description})


class Refused(Exception):
    """The parameters break a rule of the API; the reply is an error with that status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status
