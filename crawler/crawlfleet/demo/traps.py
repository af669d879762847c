"""What goes wrong in a stand-in shop, and the board that switches it while the shop runs.

The shop asks the board before each reply; the control endpoint of `server.py` switches it. What a trap does
is for the shop to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from threading import Lock
from typing import Any


@dataclass(frozen=True)
class Traps:
    """What goes wrong, all off. Times in seconds.

    ban_s: the next request of each egress gets it banned for so long (403 HTML), once an egress.
    throttle_once: one 429 with Retry-After a mall. drip: a byte every 0.2 s, without end.
    error_500: the share (0..1) of API requests that fail. huge_page_bytes: padding in each API reply.
    lose_refresh_reply: the refresh counts, but the connection is cut instead of a reply.
    poison_record: the newest order holds a NUL. moving_orders: each page of orders is followed by a new
    order at the head of the list. truncated: fewer bytes than Content-Length says.
    The others are what their names say; slow_s, maintenance and ban_s also hold for token requests.
    """

    always_429: bool = False
    throttle_once: bool = False
    ban_s: float = 0.0
    slow_s: float = 0.0
    drip: bool = False
    error_500: float = 0.0
    revoke_tokens: bool = False
    scope_removed: bool = False
    maintenance: bool = False
    html_200: bool = False
    empty_body: bool = False
    error_in_200: bool = False
    poison_record: bool = False
    huge_page_bytes: int = 0
    lose_refresh_reply: bool = False
    moving_orders: bool = False
    unknown_reply: bool = False
    truncated: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError, naming the trap: they also come in from the control endpoint."""
        for trap in fields(self):
            value, wanted = getattr(self, trap.name), type(trap.default)
            if isinstance(value, bool) != (wanted is bool) or not isinstance(value, bool | int | float):
                raise ValueError(f"trap {trap.name} takes a {wanted.__name__}, not {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"trap {trap.name} must not be {value!r}")


class Switchboard:
    """Which traps are set, for all malls and for single ones. Thread-safe.

    A trap that springs once is armed again whenever it is switched.
    """

    def __init__(self, traps: Traps) -> None:
        self._lock = Lock()
        self._all = traps
        self._malls: dict[str, dict[str, Any]] = {}
        self._sprung: set[tuple[str, str]] = set()

    def traps(self, mall: str) -> Traps:
        """The traps of that mall: its own switches win over those of all."""
        with self._lock:
            own = self._malls.get(mall)
            return replace(self._all, **own) if own else self._all

    def spring_once(self, trap: str, victim: str) -> bool:
        """True the first time that trap meets that victim."""
        with self._lock:
            first = (trap, victim) not in self._sprung
            self._sprung.add((trap, victim))
            return first

    def switch(self, change: Mapping[str, Any]) -> None:
        """Carry out `{"all": {trap: value}, "malls": {mall_id: {trap: value}}}`; null switches all of it off.

        Raises ValueError, telling what is wrong; then nothing was switched.
        """
        everyone, malls = _checked_change(change)
        with self._lock:
            self._all = Traps() if everyone is None else replace(self._all, **everyone)
            for mall, own in malls.items():
                self._malls[mall] = {} if own is None else {**self._malls.get(mall, {}), **own}
            switched = {name for part in (everyone, *malls.values()) for name in part or ()}
            self._sprung = {(trap, victim) for trap, victim in self._sprung if trap not in switched}

    def as_dict(self) -> dict[str, Any]:
        """The switches, as `switch` takes them."""
        with self._lock:
            return {
                "all": asdict(self._all),
                "malls": {mall: own for mall, own in self._malls.items() if own},
            }


def _checked_change(change: Any) -> tuple[Mapping[str, Any] | None, Mapping[str, Mapping[str, Any] | None]]:
    if not isinstance(change, Mapping) or change.keys() - {"all", "malls"}:
        raise ValueError('a change is {"all": {trap: value}, "malls": {mall_id: {trap: value}}}')
    everyone, malls = change.get("all", {}), change.get("malls", {})
    if not isinstance(malls, Mapping):
        raise ValueError('"malls" maps a mall_id to its traps')
    for part in (everyone, *malls.values()):
        _check_traps(part)
    return everyone, malls


def _check_traps(part: Any) -> None:
    if part is None:
        return
    if not isinstance(part, Mapping):
        raise ValueError(f"traps are an object or null, not {part!r}")
    known = {trap.name for trap in fields(Traps)}
    if unknown := part.keys() - known:
        raise ValueError(f"unknown traps {sorted(unknown)}; known: {', '.join(sorted(known))}")
    Traps(**part)
