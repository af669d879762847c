"""When an egress is cut, how it comes back, and who may hold how many permits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest

from crawlfleet.errors import Verdict
from crawlfleet.politeness import (
    SUSPECT_WINDOW_S,
    SUSPECTS_TO_CUT,
    Change,
    Contender,
    Egress,
    Seen,
    after,
    is_telling,
    share,
)

FIRST_S, LONGEST_S = 30, 600


def egress(**fields: object) -> Egress:
    calm = Egress(1, 10, 0, 0, None, 0, (), 0.0, FIRST_S, LONGEST_S)
    return replace(calm, **fields)  # type: ignore[arg-type]  # one of Egress's fields each


def throttles(users: Iterable[int], cut: int = 0, **fields: object) -> list[Seen]:
    return [Seen(Verdict.THROTTLED, user, cut, **fields) for user in users]  # type: ignore[arg-type]


def oks(count: int, cut: int = 0) -> list[Seen]:
    return [Seen(Verdict.OK, user, cut) for user in range(count)]


def met(before: Egress, *crawls: Seen) -> Change:
    return after(before, crawls, Random(0))


def test_ten_simultaneous_throttles_are_one_cut() -> None:
    change = met(egress(), *throttles(range(10)))

    assert change.egress == egress(cut=1, cuts_in_row=1, ramp=1)
    assert change.cool_s is not None
    assert FIRST_S <= change.cool_s <= FIRST_S * 1.1


def test_ten_simultaneous_throttles_told_one_by_one_are_one_cut() -> None:
    """Each worker's commit sees what the one before it wrote."""
    state, cool_downs = egress(), []
    for seen in throttles(range(10)):
        change = met(state, seen)
        state = change.egress
        cool_downs += [change.cool_s] if change.cool_s else []

    assert state.cut == 1
    assert len(cool_downs) == 1


def test_fewer_throttled_accounts_than_that_only_become_suspects() -> None:
    change = met(egress(), *throttles(range(SUSPECTS_TO_CUT - 1)))

    assert change == Change(egress(suspects=tuple(range(SUSPECTS_TO_CUT - 1))))


@pytest.mark.parametrize("verdict", [Verdict.OK, Verdict.THROTTLED, Verdict.BLOCKED])
def test_an_outcome_of_an_older_cut_says_nothing(verdict: Verdict) -> None:
    half_open = egress(cut=3, cuts_in_row=1, ramp=1)

    assert met(half_open, *[Seen(verdict, user, 2) for user in range(10)]) == Change(half_open)


def test_one_ban_page_cuts() -> None:
    assert met(egress(), Seen(Verdict.BLOCKED, 1, 0)).egress.cut == 1


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.AUTH, Verdict.CRASHED, Verdict.BUG])
def test_other_verdicts_change_no_egress(verdict: Verdict) -> None:
    probing = egress(cut=1, ramp=1)

    assert met(probing, *[Seen(verdict, user, 1) for user in range(10)]) == Change(probing)


def test_the_cool_down_doubles_with_every_cut_up_to_the_longest() -> None:
    state, cool_downs = egress(), []
    for _ in range(40):
        change = met(state, Seen(Verdict.BLOCKED, 1, state.cut))
        state = change.egress
        cool_downs.append(change.cool_s or 0)

    for number, cool_s in enumerate(cool_downs):
        floor_s = min(FIRST_S * 2**number, LONGEST_S)
        assert floor_s <= cool_s <= floor_s * 1.1
    assert state.cut == 40


def test_a_longer_retry_after_is_the_floor_of_the_cool_down() -> None:
    assert met(egress(), *throttles(range(10), retry_after_s=2 * LONGEST_S)).cool_s == 2 * LONGEST_S


def test_a_shorter_retry_after_does_not_shorten_the_cool_down() -> None:
    assert (met(egress(), *throttles(range(10), retry_after_s=1.0)).cool_s or 0) >= FIRST_S


def test_an_egress_comes_back_with_one_permit_and_doubles_to_its_cap() -> None:
    """As many successes as permits are open open twice as many."""
    state, ramps = met(egress(), Seen(Verdict.BLOCKED, 1, 0)).egress, []
    while state.ramp is not None:
        ramps.append(state.ramp)
        state = met(state, *oks(1, cut=1)).egress

    assert ramps == [1, 2, 2, 4, 4, 4, 4, *[8] * 8]
    assert state == egress(cut=1)


@pytest.mark.parametrize("cap", [0, 1, 2, 3])
def test_a_small_egress_is_open_after_one_or_two_steps(cap: int) -> None:
    state = met(egress(cap=cap), Seen(Verdict.BLOCKED, 1, 0)).egress

    assert met(state, *oks(3, cut=1)).egress == egress(cap=cap, cut=1)


def test_one_throttle_of_the_probe_cuts_again() -> None:
    """Half-open, the egress is on trial: it does not take several accounts."""
    probing = egress(cut=1, cuts_in_row=1, ramp=1)

    assert met(probing, *throttles([1], cut=1)).egress == egress(cut=2, cuts_in_row=2, ramp=1)


def test_a_cut_during_the_ramp_begins_at_one_permit_again() -> None:
    ramping = egress(cut=1, cuts_in_row=1, ramp=4, ramp_successes=3)

    assert met(ramping, Seen(Verdict.BLOCKED, 1, 1)).egress == egress(cut=2, cuts_in_row=2, ramp=1)


@pytest.mark.parametrize("state", [egress(), egress(cut=1, ramp=1)], ids=["open", "half-open"])
def test_throttles_that_belong_to_accounts_never_cut(state: Egress) -> None:
    crawls = throttles(range(100), cut=state.cut, account_only=True)

    assert met(state, *crawls) == Change(state)


def test_one_account_throttled_many_times_never_cuts() -> None:
    state = egress()
    for seen in throttles([7] * 100):
        state = met(state, seen).egress

    assert state == egress(suspects=(7,))


def test_suspects_of_a_past_window_are_forgotten() -> None:
    state = egress(suspects=(1, 2), suspects_age_s=SUSPECT_WINDOW_S + 1)

    assert met(state, *throttles([3])) == Change(egress(suspects=(3,)))


@pytest.mark.parametrize(
    ("verdict", "account_only", "recovering", "telling"),
    [
        (Verdict.OK, False, False, False),
        (Verdict.OK, False, True, True),
        (Verdict.BLOCKED, False, False, True),
        (Verdict.THROTTLED, False, False, True),
        (Verdict.THROTTLED, True, True, False),
        (Verdict.BUG, False, True, False),
    ],
)
def test_only_crawls_that_tell_something_cost_a_lock(
    verdict: Verdict, account_only: bool, recovering: bool, telling: bool
) -> None:
    assert is_telling(Seen(verdict, 1, 0, account_only=account_only), recovering) is telling


def contender(worker: int, batch: int = 1, *, held: int = 0, free_slots: int = 100) -> Contender:
    return Contender(worker, batch, 1, free_slots, held)


def test_workers_of_a_batch_share_evenly_and_the_odd_permits_go_round() -> None:
    workers = [contender(worker) for worker in range(4)]

    turns = [[share(worker, 10, workers, turn) for worker in range(4)] for turn in range(4)]

    assert turns == [[3, 3, 2, 2], [3, 2, 2, 3], [2, 2, 3, 3], [2, 3, 3, 2]]


def test_each_worker_of_each_batch_has_its_turn_at_a_single_permit() -> None:
    workers = [contender(worker, worker % 2) for worker in range(4)]

    holders = [[w for w in range(4) if share(w, 1, workers, turn)] for turn in range(4)]

    assert sorted(holders) == [[0], [1], [2], [3]]


def test_batches_share_evenly_whatever_their_workers() -> None:
    """Batch 1 has one worker, batch 2 has three: half of 12 each."""
    workers = [contender(0, 1), *[contender(worker, 2) for worker in (1, 2, 3)]]

    assert [share(worker, 12, workers, 0) for worker in range(4)] == [6, 2, 2, 2]


def test_a_worker_takes_more_than_its_part_only_if_nobody_is_hungry() -> None:
    fed, hungry = contender(1, held=5), contender(1, held=4)

    assert share(0, 10, [contender(0, held=5), fed], 0) == 10
    assert share(0, 10, [contender(0, held=5), hungry], 0) == 5


def test_a_worker_without_free_slots_leaves_the_rest_of_its_part_to_others() -> None:
    full = contender(1, held=2, free_slots=0)

    assert share(0, 10, [contender(0), full], 0) == 10


def test_a_lone_worker_may_hold_everything() -> None:
    assert share(0, 10, [contender(0)], 0) == 10


def test_who_does_not_contend_holds_nothing() -> None:
    assert share(9, 10, [contender(0)], 0) == 0


@pytest.mark.parametrize("seed", range(200))
def test_parts_are_all_open_permits_and_differ_by_one_at_most(seed: int) -> None:
    """Any number of hungry workers, at any turn; of batches likewise."""
    random = Random(seed)
    open_permits, turn = random.randint(1, 100), random.randrange(1000)
    workers = [contender(worker, random.randint(1, 4)) for worker in range(random.randint(2, 12))]

    parts = {worker: share(worker.worker_id, open_permits, workers, turn) for worker in workers}

    assert sum(parts.values()) == open_permits
    by_batch = [
        [part for worker, part in parts.items() if worker.batch_id == batch]
        for batch in {worker.batch_id for worker in workers}
    ]
    assert all(max(of_batch) - min(of_batch) <= 1 for of_batch in by_batch)
    assert max(map(sum, by_batch)) - min(map(sum, by_batch)) <= 1


@pytest.mark.parametrize("seed", range(200))
def test_workers_that_take_by_their_shares_leave_no_permit_idle(seed: int) -> None:
    """In any order, with any slots: in the end all permits are held, or all slots are full."""
    random = Random(seed)
    open_permits = random.randint(1, 40)
    workers = {
        number: contender(number, random.randint(1, 3), free_slots=random.randint(1, 10))
        for number in range(random.randint(1, 8))
    }
    slots, turn = sum(worker.free_slots for worker in workers.values()), random.randrange(100)

    for _ in range(min(open_permits, slots)):
        able = [
            worker
            for worker in workers.values()
            if worker.free_slots
            and worker.held < share(worker.worker_id, open_permits, [*workers.values()], turn)
        ]
        taker = random.choice(able)
        workers[taker.worker_id] = replace(taker, held=taker.held + 1, free_slots=taker.free_slots - 1)

    assert sum(worker.held for worker in workers.values()) == min(open_permits, slots)
