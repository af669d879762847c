"""What a stand-in shop saw of its clients: the counters that prove politeness.

The server reports every request to the `Witness` when it arrives and when its reply leaves; the shop
reports what it told a client (wait so long, you are banned). The witness accuses a client only of
what it could have known. It decides nothing: no reply depends on it.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from threading import Lock

WINDOW_S = 1.0
BURST_PER_MALL = 10
"""More calls than this per second to one mall may be judged abnormal, whatever its bucket says."""


@dataclass
class Counters:
    """Exact counts since the shop started. All but the first two must stay zero for a polite client."""

    requests: int = 0
    peak_in_flight: int = 0
    account_overlap: int = 0
    cap_exceeded: int = 0
    pace_exceeded: int = 0
    burst_per_mall: int = 0
    during_ban: int = 0
    before_retry_after: int = 0
    refresh_after_refusal: int = 0
    stale_refresh: int = 0

    def violations(self) -> int:
        """The sum of everything a polite client never does."""
        counts: dict[str, int] = asdict(self)
        return sum(counts.values()) - self.requests - self.peak_in_flight

    def as_dict(self) -> dict[str, int]:
        """Every counter by name, and `violations`."""
        return {**asdict(self), "violations": self.violations()}


@dataclass(frozen=True)
class Agreement:
    """What the client promised. 0 = unchecked.

    The window of `pace_per_s` is exact, so a client paced at exactly that rate exceeds it by the jitter
    of its arrivals: give the promised rate plus the jitter to be forgiven.
    """

    malls_per_egress: int = 0
    pace_per_s: float = 0.0
    reaction_s: float = 1.0
    """How long after the first ban page requests of that egress are still taken as being on their way."""


@dataclass(frozen=True, eq=False)
class Flight:
    """One request between its arrival and its reply. `alive` tells whether its client still waits."""

    mall: str
    egress: str
    alive: Callable[[], bool]


@dataclass
class _Ban:
    told_s: float
    until_s: float


@dataclass
class _Seen:
    """Flights and arrivals of one mall or of one egress."""

    flights: set[Flight] = field(default_factory=set)
    arrivals: deque[float] = field(default_factory=deque)

    def arrive(self, now_s: float, most: int) -> bool:
        """Note one arrival; True if it makes more than `most` within the window."""
        self.arrivals.append(now_s)
        if len(self.arrivals) <= most:
            return False
        return now_s - self.arrivals.popleft() < WINDOW_S

    def forget_dead(self) -> None:
        """Drop the flights whose client hung up: it may have sent its next request already."""
        self.flights = {flight for flight in self.flights if flight.alive()}


class Witness:
    """Keeps the counters. Thread-safe."""

    def __init__(self, agreement: Agreement, clock: Callable[[], float] = time.monotonic) -> None:
        self._agreement = agreement
        self._clock = clock
        self._lock = Lock()
        self._counters = Counters()
        self._in_flight: set[Flight] = set()
        self._malls: defaultdict[str, _Seen] = defaultdict(_Seen)
        self._egresses: defaultdict[str, _Seen] = defaultdict(_Seen)
        self._bans: dict[str, _Ban] = {}
        self._wait_until_s: dict[str, float] = {}

    def counters(self) -> Counters:
        """A copy of the counters as they are now."""
        with self._lock:
            return replace(self._counters)

    def arrived(self, flight: Flight, *, api: bool) -> None:
        """A request came in. `api` is False for a token request, which no crawl sends on its own."""
        with self._lock:
            now_s = self._clock()
            self._counters.requests += 1
            self._check_ban(flight.egress, now_s)
            if self._malls[flight.mall].arrive(now_s, BURST_PER_MALL):
                self._counters.burst_per_mall += 1
            if api:
                self._check_wait(flight.mall, now_s)
                self._check_pace(flight.egress, now_s)
                self._begin(flight)

    def answered(self, flight: Flight) -> None:
        """The reply is about to be complete, or its client is gone. Harmless when repeated."""
        with self._lock:
            self._in_flight.discard(flight)
            self._malls[flight.mall].flights.discard(flight)
            self._egresses[flight.egress].flights.discard(flight)

    def told_ban(self, egress: str, seconds: float) -> None:
        """The first ban page of a ban that lasts `seconds` is on its way to that egress."""
        with self._lock:
            now_s = self._clock()
            self._bans[egress] = _Ban(told_s=now_s, until_s=now_s + seconds)

    def told_to_wait(self, mall: str, seconds: float) -> None:
        """A reply with Retry-After or *-Remain is on its way to the client of that mall."""
        with self._lock:
            until_s = self._clock() + seconds
            self._wait_until_s[mall] = max(until_s, self._wait_until_s.get(mall, 0.0))

    def refreshed_after_refusal(self) -> None:
        """A refresh came with a token that had been refused before."""
        with self._lock:
            self._counters.refresh_after_refusal += 1

    def refreshed_stale(self) -> None:
        """A refresh came with a token whose successor had been handed out."""
        with self._lock:
            self._counters.stale_refresh += 1

    def _check_ban(self, egress: str, now_s: float) -> None:
        ban = self._bans.get(egress)
        if ban and ban.told_s + self._agreement.reaction_s < now_s < ban.until_s:
            self._counters.during_ban += 1

    def _check_wait(self, mall: str, now_s: float) -> None:
        if now_s < self._wait_until_s.get(mall, 0.0):
            self._counters.before_retry_after += 1

    def _check_pace(self, egress: str, now_s: float) -> None:
        pace = self._agreement.pace_per_s
        if pace and self._egresses[egress].arrive(now_s, int(pace * WINDOW_S + 1)):
            self._counters.pace_exceeded += 1

    def _begin(self, flight: Flight) -> None:
        mall, egress = self._malls[flight.mall], self._egresses[flight.egress]
        mall.forget_dead()
        if mall.flights:
            self._counters.account_overlap += 1
        for flights in (mall.flights, egress.flights, self._in_flight):
            flights.add(flight)
        if len(self._in_flight) > self._counters.peak_in_flight:
            self._in_flight = {f for f in self._in_flight if f.alive()}
            self._counters.peak_in_flight = max(self._counters.peak_in_flight, len(self._in_flight))
        if self._over_cap(egress):
            egress.forget_dead()
            self._counters.cap_exceeded += self._over_cap(egress)

    def _over_cap(self, egress: _Seen) -> bool:
        cap = self._agreement.malls_per_egress
        return bool(cap) and len(egress.flights) > cap and len({f.mall for f in egress.flights}) > cap
