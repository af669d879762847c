"""Politeness, decided purely: when an egress is cut, how it comes back, and who may hold how many permits.

The state lives on one row an egress (`store/sql/turn.sql`: lock_egresses, change_egress); pace is reserved
there too (reserve). Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from crawlfleet.errors import Verdict

SUSPECTS_TO_CUT = 3
SUSPECT_WINDOW_S = 60.0
BANNED_AFTER = 4
"""An egress cut that often without a full recovery between is banned: its accounts move, if there is another."""


@dataclass(frozen=True)
class Egress:
    """The politeness state of one egress.

    `ramp` is the number of permits open while it recovers (None: all of `cap`); `suspects` are the accounts
    throttled there lately, the first of them `suspects_age_s` ago.
    """

    egress_id: int
    cap: int
    cut: int
    cuts_in_row: int
    ramp: int | None
    ramp_successes: int
    suspects: tuple[int, ...]
    suspects_age_s: float
    cool_first_s: int
    cool_longest_s: int


@dataclass(frozen=True)
class Seen:
    """What one crawl says about its egress; `cut` is the egress's cut when the crawl began."""

    verdict: Verdict
    user_id: int
    cut: int
    retry_after_s: float = 0.0
    account_only: bool = False


@dataclass(frozen=True)
class Change:
    """The egress's new state; `cool_s` is a new cool-down from now, None if there is none."""

    egress: Egress
    cool_s: float | None = None


def is_telling(seen: Seen, recovering: bool) -> bool:
    """Whether this crawl can change its egress at all (most cannot, and cost no lock)."""
    if seen.verdict is Verdict.OK:
        return recovering
    return seen.verdict is Verdict.BLOCKED or (seen.verdict is Verdict.THROTTLED and not seen.account_only)


def after(egress: Egress, crawls: Iterable[Seen], random: Random) -> Change:
    """The egress after these crawls. Those that began under an earlier cut say nothing about this one."""
    change = Change(egress)
    for seen in crawls:
        if seen.cut == change.egress.cut and is_telling(seen, change.egress.ramp is not None):
            change = _after_one(change.egress, seen, random)
    return change


def _after_one(egress: Egress, seen: Seen, random: Random) -> Change:
    if seen.verdict is Verdict.OK:
        return Change(_one_success(egress))
    suspected = _suspect(egress, seen.user_id)
    probing = egress.ramp is not None
    if seen.verdict is Verdict.BLOCKED or probing or len(suspected.suspects) >= SUSPECTS_TO_CUT:
        return _cut(egress, seen.retry_after_s, random)
    return Change(suspected)


def _suspect(egress: Egress, user_id: int) -> Egress:
    """Throttles count by distinct account within a window: one account that is always throttled is its own affair."""
    if not egress.suspects or egress.suspects_age_s > SUSPECT_WINDOW_S:
        return replace(egress, suspects=(user_id,), suspects_age_s=0.0)
    return replace(egress, suspects=tuple(sorted({*egress.suspects, user_id})))


def _cut(egress: Egress, floor_s: float, random: Random) -> Change:
    """Close the egress for a growing time; then it is half-open with one permit."""
    cool_s = min(egress.cool_first_s * 2.0**egress.cuts_in_row, egress.cool_longest_s) * random.uniform(
        1.0, 1.1
    )
    closed = replace(
        egress,
        cut=egress.cut + 1,
        cuts_in_row=min(egress.cuts_in_row + 1, 30),
        ramp=1,
        ramp_successes=0,
        suspects=(),
    )
    return Change(closed, max(cool_s, floor_s))


def _one_success(egress: Egress) -> Egress:
    """As many successes as permits are open double them, until the cap is reached."""
    ramp = egress.ramp or egress.cap
    if egress.ramp_successes + 1 < ramp:
        return replace(egress, ramp_successes=egress.ramp_successes + 1)
    if ramp * 2 >= egress.cap:
        return replace(egress, ramp=None, ramp_successes=0, cuts_in_row=0)
    return replace(egress, ramp=ramp * 2, ramp_successes=0)


@dataclass(frozen=True)
class Contender:
    """A live worker whose batch has ready work at an egress; `held` are its permits there."""

    worker_id: int
    batch_id: int
    egress_id: int
    free_slots: int
    held: int


def share(me: int, open_permits: int, contenders: Sequence[Contender], turn: int) -> int:
    """How many permits of one egress worker `me` may hold now.

    Batches share evenly, and so do the workers of a batch. More than its part a worker holds only while nobody else
    could use it: everyone else has its part, or no free slot. Where permits do not divide evenly, `turn` says
    whose turn the odd ones are: whoever frees a permit takes it again in the same transaction, so without turns
    two batches at one permit would crawl one after the other.
    """
    parts = _parts(open_permits, contenders, turn)
    if me not in parts:
        return 0
    hungry = any(c.worker_id != me and c.free_slots > 0 and c.held < parts[c.worker_id] for c in contenders)
    return parts[me] if hungry else open_permits


def _parts(open_permits: int, contenders: Sequence[Contender], turn: int) -> dict[int, int]:
    """Worker → its part; together exactly `open_permits`."""
    workers_of: dict[int, list[int]] = {}
    for c in sorted(contenders, key=lambda c: (c.batch_id, c.worker_id)):
        workers_of.setdefault(c.batch_id, []).append(c.worker_id)
    parts: dict[int, int] = {}
    for workers, part in zip(workers_of.values(), _divided(open_permits, len(workers_of), turn), strict=True):
        parts |= zip(workers, _divided(part, len(workers), turn // len(workers_of)), strict=True)
    return parts


def _divided(permits: int, parts: int, turn: int) -> list[int]:
    """As even as whole numbers can be; the odd ones go to the next with each turn."""
    return [permits // parts + ((i + turn) % parts < permits % parts) for i in range(parts)]
