"""What can go wrong in any stand-in shop, and the board that switches it while the shop runs.

A shop asks the board before each reply; the control endpoint of `server.py` switches it. Each platform adds
traps of its own, and what a trap does is for the shop to say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from threading import Lock
from typing import Any, Generic, TypeVar


@dataclass(frozen=True)
class Traps:
    """What goes wrong, all off. Times in seconds; of the API, if nothing else is said.

    ban_s: the next request of each egress gets it banned for so long (403 HTML), once an egress.
    slow_s: so long until each reply. maintenance: 503 with a page for people, for everything.
    throttle_once: one 429 with Retry-After an account. drip: a byte every 0.2 s, without end.
    error_500: the share (0..1) of requests that fail. huge_page_bytes: padding in each reply.
    revoke_tokens: no token is valid. html_200: a login page instead of data. moving_orders: each page of orders
    is followed by a new order at the head of the list. truncated: fewer bytes than Content-Length says.
    The others are what their names say.
    """

    ban_s: float = 0.0
    slow_s: float = 0.0
    maintenance: bool = False
    always_429: bool = False
    throttle_once: bool = False
    error_500: float = 0.0
    revoke_tokens: bool = False
    html_200: bool = False
    empty_body: bool = False
    error_in_200: bool = False
    unknown_reply: bool = False
    huge_page_bytes: int = 0
    drip: bool = False
    truncated: bool = False
    moving_orders: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError, naming the trap: they also come in from the control endpoint."""
        for trap in fields(self):
            value, wanted = getattr(self, trap.name), type(trap.default)
            if isinstance(value, bool) != (wanted is bool) or not isinstance(value, bool | int | float):
                raise ValueError(f"trap {trap.name} takes a {wanted.__name__}, not {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"trap {trap.name} must not be {value!r}")


AnyTraps = TypeVar("AnyTraps", bound=Traps)


class Switchboard(Generic[AnyTraps]):
    """Which traps are set, for all accounts and for single ones. Thread-safe.

    A trap that springs once is armed again whenever it is switched.
    """

    def __init__(self, traps: AnyTraps) -> None:
        self._lock = Lock()
        self._none_set = type(traps)()
        self._all = traps
        self._accounts: dict[str, dict[str, Any]] = {}
        self._sprung: set[tuple[str, str]] = set()

    def traps(self, account: str) -> AnyTraps:
        """The traps of that account: its own switches win over those of all."""
        with self._lock:
            own = self._accounts.get(account)
            return replace(self._all, **own) if own else self._all

    def spring_once(self, trap: str, victim: str) -> bool:
        """True the first time that trap meets that victim."""
        with self._lock:
            first = (trap, victim) not in self._sprung
            self._sprung.add((trap, victim))
            return first

    def switch(self, change: Mapping[str, Any]) -> None:
        """Carry out `{"all": {trap: value}, "accounts": {account: {trap: value}}}`; null switches all of it off.

        Raises ValueError, telling what is wrong; then nothing was switched.
        """
        everyone, accounts = self._checked(change)
        with self._lock:
            self._all = self._none_set if everyone is None else replace(self._all, **everyone)
            for account, own in accounts.items():
                self._accounts[account] = {} if own is None else {**self._accounts.get(account, {}), **own}
            switched = {name for part in (everyone, *accounts.values()) for name in part or ()}
            self._sprung = {(trap, victim) for trap, victim in self._sprung if trap not in switched}

    def as_dict(self) -> dict[str, Any]:
        """The switches, as `switch` takes them."""
        with self._lock:
            return {
                "all": asdict(self._all),
                "accounts": {account: own for account, own in self._accounts.items() if own},
            }

    def _checked(
        self, change: Any
    ) -> tuple[Mapping[str, Any] | None, Mapping[str, Mapping[str, Any] | None]]:
        if not isinstance(change, Mapping) or change.keys() - {"all", "accounts"}:
            raise ValueError('a change is {"all": {trap: value}, "accounts": {account: {trap: value}}}')
        everyone, accounts = change.get("all", {}), change.get("accounts", {})
        if not isinstance(accounts, Mapping):
            raise ValueError('"accounts" maps an account to its traps')
        for part in (everyone, *accounts.values()):
            self._check(part)
        return everyone, accounts

    def _check(self, part: Any) -> None:
        if part is None:
            return
        if not isinstance(part, Mapping):
            raise ValueError(f"traps are an object or null, not {part!r}")
        known = {trap.name for trap in fields(self._none_set)}
        if unknown := part.keys() - known:
            raise ValueError(f"unknown traps {sorted(unknown)}; known: {', '.join(sorted(known))}")
        replace(self._none_set, **part)
