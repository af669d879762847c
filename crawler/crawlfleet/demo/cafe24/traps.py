"""What goes wrong in the stand-in cafe24."""

from __future__ import annotations

from dataclasses import dataclass

from crawlfleet.demo.traps import Traps


@dataclass(frozen=True)
class Cafe24Traps(Traps):
    """What goes wrong beside the traps of every shop, all off.

    throttle_once: one 429 with Retry-After a mall. drip: a byte every 0.2 s, without end.
    error_500: the share (0..1) of API requests that fail. huge_page_bytes: padding in each API reply.
    lose_refresh_reply: the refresh counts, but the connection is cut instead of a reply.
    poison_record: the newest order holds a NUL. moving_orders: each page of orders is followed by a new
    order at the head of the list. truncated: fewer bytes than Content-Length says.
    The others are what their names say. The traps of every shop also hold for token requests, these do not.
    """

    always_429: bool = False
    throttle_once: bool = False
    drip: bool = False
    error_500: float = 0.0
    revoke_tokens: bool = False
    scope_removed: bool = False
    html_200: bool = False
    empty_body: bool = False
    error_in_200: bool = False
    poison_record: bool = False
    huge_page_bytes: int = 0
    lose_refresh_reply: bool = False
    moving_orders: bool = False
    unknown_reply: bool = False
    truncated: bool = False
