"""What a stand-in shop saw of its clients: the counters that prove politeness.

The server reports every request to the shop's `Witness` when it arrives and when its reply leaves; the shop
reports what it told a client (wait so long, you are banned). The witness accuses a client only of what it
could have known. It decides nothing: no reply depends on it.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from threading import Lock
from typing import Generic, TypeVar

WINDOW_S = 1.0
SEEN = ("requests", "peak_in_flight", "images")
"""The counts that accuse nobody; all others must stay zero for a polite client."""


@dataclass
class Counters:
    """Exact counts since the shop started, of what every shop counts."""

    requests: int = 0
    peak_in_flight: int = 0
    account_overlap: int = 0
    cap_exceeded: int = 0
    pace_exceeded: int = 0
    during_ban: int = 0
    before_retry_after: int = 0

    def violations(self) -> int:
        """The sum of everything a polite client never does."""
        return sum(count for name, count in asdict(self).items() if name not in SEEN)

    def as_dict(self) -> dict[str, int]:
        """Every counter by name, and `violations`."""
        return {**asdict(self), "violations": self.violations()}


AnyCounters = TypeVar("AnyCounters", bound=Counters)


@dataclass(frozen=True)
class Agreement:
    """What the client promised. 0 = unchecked.

    The window of `pace_per_s` is exact, so a client paced at exactly that rate exceeds it by the jitter
    of its arrivals: give the promised rate plus the jitter to be forgiven.
    """

    accounts_per_egress: int = 0
    pace_per_s: float = 0.0
    reaction_s: float = 1.0
    """How long after the first ban page requests of that egress are still taken as being on their way."""


@dataclass(frozen=True, eq=False)
class Flight:
    """One request between its arrival and its reply. `alive` tells whether its client still waits."""

    account: str
    egress: str
    alive: Callable[[], bool]


@dataclass
class _Ban:
    told_s: float
    until_s: float


class Arrivals:
    """When the latest requests came."""

    def __init__(self) -> None:
        self._at_s: deque[float] = deque()

    def exceed(self, most: int, now_s: float) -> bool:
        """Note one arrival; True if it makes more than `most` within the window."""
        self._at_s.append(now_s)
        if len(self._at_s) <= most:
            return False
        return now_s - self._at_s.popleft() < WINDOW_S


@dataclass
class _Seen:
    """Flights and arrivals of one account or of one egress."""

    flights: set[Flight] = field(default_factory=set)
    arrivals: Arrivals = field(default_factory=Arrivals)

    def forget_dead(self) -> None:
        """Drop the flights whose client hung up: it may have sent its next request already."""
        self.flights = {flight for flight in self.flights if flight.alive()}


class Witness(Generic[AnyCounters]):
    """Keeps the counters of one shop. Thread-safe."""

    def __init__(
        self, agreement: Agreement, counters: AnyCounters, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._agreement = agreement
        self._counters = counters
        self._clock = clock
        self._lock = Lock()
        self._in_flight: set[Flight] = set()
        self._accounts: defaultdict[str, _Seen] = defaultdict(_Seen)
        self._egresses: defaultdict[str, _Seen] = defaultdict(_Seen)
        self._bans: dict[str, _Ban] = {}
        self._wait_until_s: dict[str, float] = {}

    def counters(self) -> AnyCounters:
        """A copy of the counters as they are now."""
        with self._lock:
            return replace(self._counters)

    def arrived(self, flight: Flight, *, is_api: bool) -> None:
        """A request came in. `is_api` is False for what no crawl sends on its own: tokens, pages, images."""
        with self._lock:
            now_s = self._clock()
            self._counters.requests += 1
            self._check_ban(flight.egress, now_s)
            if is_api:
                self._check_wait(flight.account, now_s)
                self._check_pace(flight.egress, now_s)
                self._begin(flight)

    def answered(self, flight: Flight) -> None:
        """The reply is about to be complete, or its client is gone. Harmless when repeated."""
        with self._lock:
            self._in_flight.discard(flight)
            self._accounts[flight.account].flights.discard(flight)
            self._egresses[flight.egress].flights.discard(flight)

    def told_ban(self, egress: str, seconds: float) -> None:
        """The first ban page of a ban that lasts `seconds` is on its way to that egress."""
        with self._lock:
            now_s = self._clock()
            self._bans[egress] = _Ban(told_s=now_s, until_s=now_s + seconds)

    def told_to_wait(self, account: str, seconds: float) -> None:
        """A reply with Retry-After or *-Remain is on its way to the client of that account."""
        with self._lock:
            until_s = self._clock() + seconds
            self._wait_until_s[account] = max(until_s, self._wait_until_s.get(account, 0.0))

    def _check_ban(self, egress: str, now_s: float) -> None:
        ban = self._bans.get(egress)
        if ban and ban.told_s + self._agreement.reaction_s < now_s < ban.until_s:
            self._counters.during_ban += 1

    def _check_wait(self, account: str, now_s: float) -> None:
        if now_s < self._wait_until_s.get(account, 0.0):
            self._counters.before_retry_after += 1

    def _check_pace(self, egress: str, now_s: float) -> None:
        pace = self._agreement.pace_per_s
        if pace and self._egresses[egress].arrivals.exceed(int(pace * WINDOW_S + 1), now_s):
            self._counters.pace_exceeded += 1

    def _begin(self, flight: Flight) -> None:
        account, egress = self._accounts[flight.account], self._egresses[flight.egress]
        account.forget_dead()
        if account.flights:
            self._counters.account_overlap += 1
        for flights in (account.flights, egress.flights, self._in_flight):
            flights.add(flight)
        if len(self._in_flight) > self._counters.peak_in_flight:
            self._in_flight = {f for f in self._in_flight if f.alive()}
            self._counters.peak_in_flight = max(self._counters.peak_in_flight, len(self._in_flight))
        if self._over_cap(egress):
            egress.forget_dead()
            self._counters.cap_exceeded += self._over_cap(egress)

    def _over_cap(self, egress: _Seen) -> bool:
        cap = self._agreement.accounts_per_egress
        return bool(cap) and len(egress.flights) > cap and len({f.account for f in egress.flights}) > cap
