"""What goes wrong in the stand-in cafe24."""

from __future__ import annotations

from dataclasses import dataclass

from crawlfleet.demo.traps import Traps


@dataclass(frozen=True)
class Cafe24Traps(Traps):
    """What goes wrong beside the traps of every shop, all off.

    lose_refresh_reply: the refresh counts, but the connection is cut instead of a reply.
    poison_record: the newest order holds a NUL. scope_removed: 403. Of the traps of every shop, ban_s,
    slow_s, maintenance and revoke_tokens also hold for token requests.
    """

    scope_removed: bool = False
    poison_record: bool = False
    lose_refresh_reply: bool = False
