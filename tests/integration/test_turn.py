"""Taking and committing: the fence, the cap, one crawl an account, the order, and what is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from secrets import token_hex
from time import monotonic
from typing import Any, LiteralString

import psycopg
import pytest
from builders import (
    SETTINGS,
    account,
    add_accounts,
    commit,
    declare_source,
    egress,
    ended,
    held,
    pass_ticks,
    plan_batch,
    register_worker,
    scalar,
    shop_batch,
    take,
    task_states,
    together,
)

from crawlfleet.crawl import encode
from crawlfleet.errors import AuthFailed, Blocked, Bug, Crashed, CrawlEnded, Retry, Throttled, Verdict
from crawlfleet.planner import Selector
from crawlfleet.sources import Item
from crawlfleet.store import turn
from crawlfleet.store.batches import results
from crawlfleet.store.connection import Connection, is_refused_data, transaction
from crawlfleet.store.fleet import housekeep, renew
from crawlfleet.store.turn import Finished, Identity, Row
from crawlfleet.verdicts import OK, History, Outcome, interrupted, judge
from crawlfleet.worker import TRY_AGAIN

Connections = Callable[[], Connection]


def order(no: int, **body: Any) -> Row:
    return encode(Item("order", f"{no:04}", body or {"no": no}))


def rescue(conn: Connection) -> None:
    """Let the permits of silent workers expire and outlast their quarantine."""
    pass_ticks(conn, 20)
    assert housekeep(conn).rescued > 0


def everything(conn: Connection) -> list[Any]:
    """What a crawl may write."""
    tables = ("task", "permit", "item", "failure", "track", "account", "egress")
    return [conn.execute(f"select t::text from {table} t order by 1").fetchall() for table in tables]


ENDINGS = [
    pytest.param(OK, id="ok"),
    *[
        pytest.param(Outcome.of(ending("Reason")), id=ending.verdict.value)
        for ending in (Retry, Throttled, Blocked, AuthFailed, Crashed, Bug)
    ],
]


# The fence.


@pytest.mark.parametrize("outcome", ENDINGS)
def test_a_lease_that_was_rescued_writes_nothing(conn: Connection, outcome: Outcome) -> None:
    batch = shop_batch(conn, users=1)
    me = register_worker(conn, batch)
    [lease] = take(conn, me)
    rescue(conn)
    before = everything(conn)

    assert commit(conn, me, ended(lease, outcome, rows=[order(1)])) == []
    assert everything(conn) == before


@pytest.mark.parametrize("outcome", ENDINGS)
def test_a_lease_whose_task_somebody_else_crawls_now_writes_nothing(
    conn: Connection, outcome: Outcome
) -> None:
    """Even into the same permit of the same worker: the fence is the lease."""
    batch = shop_batch(conn, users=1, cap=1)
    me = register_worker(conn, batch)
    [lease] = take(conn, me)
    rescue(conn)
    me = register_worker(conn, batch)
    [newer] = take(conn, me)
    before = everything(conn)

    assert newer.lease_id > lease.lease_id
    assert commit(conn, me, ended(lease, outcome, rows=[order(1)])) == []
    assert everything(conn) == before


def test_another_registration_cannot_commit_a_lease(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    [lease] = take(conn, register_worker(conn, batch))

    assert commit(conn, register_worker(conn, batch), ended(lease)) == []
    assert task_states(conn, batch) == {1: "leased"}


def test_those_that_are_still_ours_commit_beside_a_fenced_one(conn: Connection) -> None:
    batch = shop_batch(conn, users=2)
    me = register_worker(conn, batch)
    first, second = take(conn, me)
    conn.execute("update permit set renewed_tick = -1000 where lease_id = %s", (first.lease_id,))
    assert housekeep(conn).rescued == 1

    assert commit(conn, me, ended(first), ended(second)) == [ended(second)]
    assert task_states(conn, batch) == {first.user_id: "ready", second.user_id: "ok"}


def test_a_commit_whose_reply_was_lost_can_be_sent_again(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    me = register_worker(conn, batch)
    [lease] = take(conn, me)
    finished = ended(lease, Retry("Timeout"), rows=[order(1)])
    assert commit(conn, me, finished) == [finished]
    before = everything(conn)

    assert commit(conn, me, finished) == []
    assert everything(conn) == before


def test_a_take_whose_reply_was_lost_is_read_back(conn: Connection) -> None:
    batch = shop_batch(conn, users=3)
    me = register_worker(conn, batch)
    taken = take(conn, me)

    assert sorted(turn.read_back(conn, me), key=lambda lease: lease.lease_id) == taken


def test_writing_ahead_is_refused_after_a_rescue(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    me = register_worker(conn, batch)
    [lease] = take(conn, me)
    with transaction(conn):
        assert turn.write_ahead(conn, me, lease, [order(1)])
    rescue(conn)

    with transaction(conn):
        assert not turn.write_ahead(conn, me, lease, [order(2)])
    assert scalar(conn, "select array_agg(external_id) from item") == ["0001"]


def test_an_auth_verdict_parks_the_account_only_if_its_credentials_are_still_those(conn: Connection) -> None:
    batch = shop_batch(conn, users=2)
    me = register_worker(conn, batch)
    leases = take(conn, me)
    add_accounts(conn, [account(1, credentials={"token": "new"})])

    commit(conn, me, *[ended(lease, AuthFailed("Refused")) for lease in leases])

    states = conn.execute("select user_id, state::text, reason from account order by 1").fetchall()
    assert states == [(1, "ok", None), (2, "auth", "Refused")]
    assert task_states(conn, batch) == {1: "dead", 2: "dead"}


# Permits.


def work(conn: Connection, me: Identity, seen: list[int]) -> None:
    """Turn as a worker does until its batch is done; `seen` gets the permits held after each take."""
    finished: list[Finished] = []
    open_tasks = "select count(*) from task where batch_id = %s and state <> 'ok'"
    deadline_s = monotonic() + 60
    while scalar(conn, open_tasks, me.batch_id) and monotonic() < deadline_s:
        try:
            with transaction(conn):
                turn.commit(conn, me, finished, Random(0))
                leases = turn.take(conn, me, 0)
        except psycopg.Error as exc:
            if exc.sqlstate not in TRY_AGAIN:
                raise
            continue
        seen.append(held(conn))
        finished = [ended(lease) for lease in leases]


def test_eight_workers_of_three_batches_never_hold_more_than_the_cap(
    conn: Connection, connections: Connections
) -> None:
    """And every account of every batch is crawled to its end, though the batches share all accounts."""
    batches = [shop_batch(conn, users=60, cap=5, workers=8), *[plan_batch(conn, workers=8) for _ in range(2)]]
    workers = [register_worker(conn, batches[number % 3], number) for number in range(8)]
    seen: list[int] = []

    together(*[partial(work, connections(), me, seen) for me in workers])

    assert max(seen) == 5
    assert held(conn) == 0
    assert scalar(conn, "select count(*) from task where state = 'ok'") == 180


def test_an_account_is_crawled_once_at_a_time_over_two_batches(conn: Connection) -> None:
    first, second = shop_batch(conn, users=2, cap=10), plan_batch(conn)
    one, other = register_worker(conn, first), register_worker(conn, second)
    leases = take(conn, one)

    assert len(leases) == 2
    assert take(conn, other) == []
    commit(conn, one, ended(leases[0]))
    assert [lease.user_id for lease in take(conn, other)] == [leases[0].user_id]


def test_one_crawl_an_account_is_a_constraint(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    take(conn, register_worker(conn, batch))
    twin = (
        "update permit p set (lease_id, worker_id, user_id, renewed_tick, cut, taken_at, batch_id, task_no)"
        " = (select 0, worker_id, user_id, renewed_tick, cut, taken_at, batch_id, task_no from permit where no = 0)"
        " where no = 1"
    )

    with pytest.raises(psycopg.errors.UniqueViolation, match="permit_account"):
        conn.execute(twin)


def test_a_permit_is_filled_wholly_or_not_at_all(conn: Connection) -> None:
    shop_batch(conn, users=1)

    with pytest.raises(psycopg.errors.CheckViolation):
        conn.execute("update permit set lease_id = 1")


def test_a_lowered_cap_lets_the_surplus_finish_and_begins_nothing_new(conn: Connection) -> None:
    batch = shop_batch(conn, users=10, cap=4)
    me = register_worker(conn, batch)
    leases = take(conn, me)
    declare_source(conn, egress(cap=2, exit="shop-direct"))

    for lease, left in zip(leases, [3, 2], strict=False):
        assert commit(conn, me, ended(lease)) == [ended(lease)]
        assert take(conn, me, left) == []
    commit(conn, me, ended(leases[2]))
    assert len(take(conn, me, 1)) == 1
    assert held(conn) == 2


def test_a_cap_of_zero_pauses_a_source(conn: Connection) -> None:
    batch = shop_batch(conn, users=10)
    me = register_worker(conn, batch)
    leases = take(conn, me)
    declare_source(conn, egress(cap=0, exit="shop-direct"))
    assert len(commit(conn, me, *map(ended, leases))) == 4

    assert take(conn, me) == []
    declare_source(conn, egress(cap=3, exit="shop-direct"))
    assert len(take(conn, me)) == 3


def test_a_cut_egress_is_closed_until_its_cool_down_is_over_then_half_open(conn: Connection) -> None:
    batch = shop_batch(conn, users=10)
    me = register_worker(conn, batch)
    commit(conn, me, *[ended(lease, Blocked("BanPage")) for lease in take(conn, me)])

    assert scalar(conn, "select cut from egress") == 1
    assert take(conn, me) == []
    conn.execute("update egress set cool_until = clock_timestamp()")
    assert len(take(conn, me)) == 1


@pytest.mark.parametrize(
    "change",
    [
        "update batch set suspended = true",
        "update batch set stop = 'drain'",
        "update batch set stop = 'cancel'",
        "update batch set worker_limit = 0",
        "update worker set draining = true",
        "update worker set ended_at = now()",
        "update batch set state = 'closed'",
    ],
)
def test_who_was_told_to_stop_takes_nothing(conn: Connection, change: LiteralString) -> None:
    me = register_worker(conn, shop_batch(conn))
    conn.execute(change)

    assert take(conn, me) == []


def test_a_worker_takes_no_more_than_it_has_slots(conn: Connection) -> None:
    me = register_worker(conn, shop_batch(conn, users=10, cap=10), slots=3)

    assert len(take(conn, me, running=1)) == 2
    assert take(conn, me, running=3) == []


def test_the_batch_may_change_how_many_slots_its_workers_use(conn: Connection) -> None:
    me = register_worker(conn, shop_batch(conn, users=10, cap=10), slots=3)
    conn.execute("update batch set max_concurrent = 5")

    assert len(take(conn, me)) == 5


def test_two_workers_share_the_permits_evenly(conn: Connection) -> None:
    batch = shop_batch(conn, users=20, cap=6, workers=2)
    one, other = register_worker(conn, batch, 0), register_worker(conn, batch, 1)

    assert [len(take(conn, me)) for me in (one, other)] == [3, 3]


def test_a_worker_that_took_everything_alone_gives_half_back_as_its_crawls_end(conn: Connection) -> None:
    batch = shop_batch(conn, users=30, cap=6, workers=2)
    one = register_worker(conn, batch, 0)
    leases = take(conn, one)
    other = register_worker(conn, batch, 1)

    commit(conn, one, *map(ended, leases))
    assert len(take(conn, one)) == 3
    assert len(take(conn, other)) == 3


def test_a_single_permit_goes_from_batch_to_batch(conn: Connection) -> None:
    """Whoever frees it could take it again in the same transaction, for ever."""
    first, second = shop_batch(conn, users=50, cap=1), plan_batch(conn)
    workers = [register_worker(conn, first), register_worker(conn, second)]
    holders = []

    for _ in range(6):
        pass_ticks(conn, turn.TURN_TICKS)
        conn.execute("update worker set renewed_tick = tick from fleet")
        for me in workers:
            for lease in take(conn, me):
                holders.append(me.batch_id)
                commit(conn, me, ended(lease))

    assert holders == [first, second] * 3 or holders == [second, first] * 3


def test_a_batch_that_waits_for_a_closed_egress_leaves_the_open_ones_to_others(conn: Connection) -> None:
    declare_source(conn, egress("open", cap=4), egress("closed", cap=4))
    add_accounts(conn, range(1, 41))
    batch, waiting = plan_batch(conn), plan_batch(conn)
    conn.execute("update egress set cool_until = now() + interval '1 hour' where name = 'closed'")
    conn.execute(
        "delete from task where batch_id = %s and egress_id = (select egress_id from egress where name = 'open')",
        (waiting,),
    )
    me, other = register_worker(conn, batch), register_worker(conn, waiting)

    assert len(take(conn, me)) == 4
    assert take(conn, other) == []


def test_a_batch_whose_accounts_are_all_being_crawled_leaves_the_permits_to_others(conn: Connection) -> None:
    batch = shop_batch(conn, users=40, cap=10)
    me = register_worker(conn, batch)
    [long, *short] = take(conn, me)
    other = register_worker(conn, plan_batch(conn, selector=Selector(ids=[long.user_id])))

    commit(conn, me, *map(ended, short))

    assert len(take(conn, me)) == 9
    assert take(conn, other) == []


def test_a_worker_that_is_unable_to_crawl_a_source_leaves_its_part_to_the_others(conn: Connection) -> None:
    batch = shop_batch(conn, users=20, cap=6, workers=2)
    unable, other = register_worker(conn, batch, 0), register_worker(conn, batch, 1)
    source_id = scalar(conn, "select source_id from source")

    assert renew(conn, unable.worker_id, [], unable=[source_id]) == set()
    assert len(take(conn, other)) == 6
    commit(conn, other, *map(ended, take(conn, unable)))
    with transaction(conn):
        assert turn.take(conn, unable, 0, unable=[source_id]) == []


# Waiting accounts.


@pytest.mark.parametrize(
    "how",
    [
        Throttled("CallLimit", retry_after_s=500, account_only=True),
        Outcome(Verdict.RETRY, account_wait_s=500),
        replace(OK, account_wait_s=500),
    ],
    ids=["throttled", "retry", "ok"],
)
def test_an_account_is_spared_whatever_the_verdict(conn: Connection, how: Outcome | CrawlEnded) -> None:
    me = register_worker(conn, shop_batch(conn, users=1))
    [lease] = take(conn, me)

    commit(conn, me, ended(lease, how))

    assert scalar(conn, "select extract(epoch from not_before - now())::float8 from track") > 490
    assert scalar(conn, "select coalesce(run_after > now() + interval '490 s', state = 'ok') from task")


def test_a_lease_that_is_read_back_still_has_to_wait(conn: Connection) -> None:
    me = register_worker(conn, shop_batch(conn, users=1))
    conn.execute("update track set not_before = now() + interval '500 s'")
    [lease] = take(conn, me)

    [again] = turn.read_back(conn, me)

    assert lease.wait_s is not None
    assert again.wait_s is not None
    assert min(lease.wait_s, again.wait_s) > 490


def test_waiting_for_an_account_is_bounded_by_the_budget_of_throttles() -> None:
    waits = Throttled("AccountWaits", retry_after_s=601, account_only=True, never_sent=True)

    assert judge(Outcome.of(waits), History(), SETTINGS.budgets, Random(0)).state == "dead"


@pytest.mark.parametrize(
    "change",
    [
        "update worker set renewed_tick = renewed_tick - 3 where ordinal = 1",
        "update worker set draining = true where ordinal = 1",
        "update worker set ended_at = now() where ordinal = 1",
        "update batch set worker_limit = 1",
    ],
    ids=["silent", "draining", "ended", "above-the-limit"],
)
def test_a_worker_that_may_not_take_leaves_its_part_to_the_others(
    conn: Connection, change: LiteralString
) -> None:
    """Otherwise half of the permits stay empty for as long as nobody ends its registration."""
    batch = shop_batch(conn, users=20, cap=6, workers=2)
    me, _ = register_worker(conn, batch, 0), register_worker(conn, batch, 1)
    conn.execute(change)

    assert len(take(conn, me)) == 6


@pytest.mark.parametrize(
    "change",
    ["suspended = true", "stop = 'drain'", "stop = 'cancel'", "state = 'closed'"],
)
def test_a_batch_that_may_not_take_leaves_its_part_to_the_others(
    conn: Connection, change: LiteralString
) -> None:
    batch, still = shop_batch(conn, users=20, cap=6), plan_batch(conn)
    me, _ = register_worker(conn, batch), register_worker(conn, still)
    conn.execute(f"update batch set {change} where batch_id = %s", (still,))

    assert len(take(conn, me)) == 6


def test_a_worker_that_missed_two_ticks_keeps_its_part(conn: Connection) -> None:
    """A renewal may be late by that much without anything being wrong."""
    batch = shop_batch(conn, users=20, cap=6, workers=2)
    me, _ = register_worker(conn, batch, 0), register_worker(conn, batch, 1)
    conn.execute("update worker set renewed_tick = renewed_tick - 2 where ordinal = 1")

    assert len(take(conn, me)) == 3


# The pace.


def test_requests_of_all_workers_leave_one_after_the_other(
    conn: Connection, connections: Connections
) -> None:
    """Reserved on the egress's row: eight that ask at once get eight turns, half a minute apart."""
    declare_source(conn, egress(gap_us=30_000_000))
    egress_id = scalar(conn, "select egress_id from egress")

    turns = together(*[partial(turn.reserve, connections(), egress_id, 0) for _ in range(8)])

    waits = sorted(reserved[0] for reserved in turns if reserved)
    assert [round(wait_s / 30) for wait_s in waits] == list(range(8))


def test_a_clock_that_is_set_back_holds_up_no_request(conn: Connection) -> None:
    """What was reserved and what cools down moves with the clock; ticks are told apart elsewhere."""
    declare_source(conn, egress(gap_us=100_000))
    ahead = "clock_timestamp() + interval '1 hour'"
    conn.execute(f"update egress set next_at = {ahead}, cool_until = {ahead}".encode())
    conn.execute(f"update fleet set ticked_at = {ahead}".encode())

    housekeep(conn)

    reserved = turn.reserve(conn, scalar(conn, "select egress_id from egress"), 0)
    assert reserved is not None
    assert reserved[0] < 1


def test_an_egress_without_a_limit_has_no_pace(conn: Connection) -> None:
    declare_source(conn, egress(gap_us=0))
    egress_id = scalar(conn, "select egress_id from egress")

    reserved = [turn.reserve(conn, egress_id, 0) for _ in range(3)]

    assert [r and (r[0] <= 0, r[1]) for r in reserved] == [(True, 0)] * 3


@pytest.mark.parametrize(
    "change",
    ["update egress set cut = 1", "update egress set cool_until = clock_timestamp() + interval '1 min'"],
    ids=["cut", "cooling"],
)
def test_no_request_leaves_by_an_egress_that_was_cut_since_its_crawl_began(
    conn: Connection, change: LiteralString
) -> None:
    declare_source(conn)
    conn.execute(change)

    assert turn.reserve(conn, scalar(conn, "select egress_id from egress"), 0) is None


# The order.


def arrange(conn: Connection, *tasks: tuple[int, int]) -> None:
    """Give users 1, 2, 3 ... their (rank, shard); their tasks are numbered in this order."""
    for user, (rank, shard) in enumerate(tasks, 1):
        conn.execute(
            "update task set rank = %s, shard = %s, task_no = 1000 + user_id where user_id = %s",
            (rank, shard, user),
        )


def taken_one_by_one(conn: Connection, me: Identity) -> list[int]:
    """The users in the order in which one slot takes them."""
    users = []
    while leases := take(conn, me):
        users += [lease.user_id for lease in leases]
        commit(conn, me, *map(ended, leases))
    return users


def test_tier_comes_before_cost_class_before_own_shard_before_number(conn: Connection) -> None:
    declare_source(conn, egress(cap=1))
    add_accounts(conn, range(1, 8))
    me = register_worker(conn, plan_batch(conn, workers=3), ordinal=1)
    high, medium = 50, 64
    arrange(conn, (medium, 1), (high + 1, 0), (high + 1, 1), (high, 2), (high, 0), (high, 1), (high, 1))

    assert taken_one_by_one(conn, me) == [6, 7, 5, 4, 3, 2, 1]


def test_a_worker_helps_others_before_its_own_lower_ranks(conn: Connection) -> None:
    """In one take, too: own shard at the head, then the head whoever's it is."""
    declare_source(conn, egress(cap=3))
    add_accounts(conn, range(1, 5))
    me = register_worker(conn, plan_batch(conn), ordinal=0)
    arrange(conn, (50, 1), (50, 0), (51, 1), (52, 0))

    assert {lease.user_id for lease in take(conn, me)} == {1, 2, 3}


# What is written.


def test_a_crawl_that_ended_ok_leaves_its_items_and_its_cost(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    me = register_worker(conn, batch)
    [lease] = take(conn, me)

    commit(conn, me, ended(lease, rows=[order(1), order(2)], cost_ms=1000))

    assert [row[3] for row in results(conn, batch, None, None)] == ["0001", "0002"]
    assert scalar(conn, "select cost_ms from track") == 1000
    assert task_states(conn, batch) == {1: "ok"}


def test_a_cost_is_a_moving_average_in_which_the_newest_weighs_a_third(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    conn.execute("update track set cost_ms = 1000")
    me = register_worker(conn, batch)

    commit(conn, me, *[ended(lease, cost_ms=2000) for lease in take(conn, me)])

    assert scalar(conn, "select cost_ms from track") == 1300


@pytest.mark.parametrize(
    ("ending", "state", "retries", "crashes"),
    [
        (Retry("Timeout"), "waiting", 1, 0),
        (Throttled("Bucket", account_only=True), "waiting", 0, 0),
        (Crashed("Browser"), "waiting", 0, 1),
        (Bug("BadRow"), "dead", 0, 0),
    ],
    ids=lambda value: value.verdict.value if isinstance(value, CrawlEnded) else "",
)
def test_a_crawl_that_did_not_end_ok_is_charged_and_tells_why(
    conn: Connection, ending: CrawlEnded, state: str, retries: int, crashes: int
) -> None:
    me = register_worker(conn, shop_batch(conn, users=1))
    commit(conn, me, *[ended(lease, ending) for lease in take(conn, me)])

    charged = conn.execute("select state::text, retries, crashes, run_after is null from task").fetchone()
    assert charged == (state, retries, crashes, state == "dead")
    told = conn.execute("select verdict::text, reason from failure").fetchall()
    assert told == [(ending.verdict.value, ending.reason)]


def test_an_interrupted_crawl_is_ready_again_at_the_next_housekeeping(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    me = register_worker(conn, batch)
    commit(
        conn,
        me,
        *[ended(lease, interrupted("Drained", "the worker had to stop")) for lease in take(conn, me)],
    )

    assert housekeep(conn).promoted == 1
    assert task_states(conn, batch) == {1: "ready"}


def test_a_throttled_task_is_dead_when_its_time_budget_is_spent(conn: Connection) -> None:
    """Counted from the first throttle, so that a batch always ends."""
    batch = shop_batch(conn, users=1)
    me = register_worker(conn, batch)
    commit(conn, me, *[ended(lease, Throttled("Bucket", account_only=True)) for lease in take(conn, me)])
    conn.execute("update task set throttled_since = now() - interval '601 s', run_after = now()")
    housekeep(conn)

    commit(conn, me, *[ended(lease, Throttled("Bucket", account_only=True)) for lease in take(conn, me)])
    assert task_states(conn, batch) == {1: "dead"}


POISON = [
    pytest.param(order(1, note="a\x00b"), id="nul-in-the-body"),
    pytest.param(Row("order", "1", b"hash", '"\\ud800"'), id="lone-surrogate"),
    pytest.param(encode(Item("order", token_hex(4000), {})), id="oversized-key"),
]


@pytest.mark.parametrize("poison", POISON)
def test_data_that_postgresql_refuses_raises_what_the_worker_expects(conn: Connection, poison: Row) -> None:
    batch = shop_batch(conn, users=1)
    me = register_worker(conn, batch)
    [lease] = take(conn, me)

    with pytest.raises(psycopg.Error) as refused:
        commit(conn, me, ended(lease, rows=[order(1), poison]))

    assert is_refused_data(refused.value)
    assert task_states(conn, batch) == {1: "leased"}
    assert scalar(conn, "select count(*) from item") == 0


@pytest.mark.parametrize(
    "item",
    [
        Item("order", "a\x00b", {}),
        Item("or\x00der", "1", {}),
        Item("order", "\ud800", {}),
        Item("\ud800", "1", {}),
    ],
    ids=["nul-in-the-id", "nul-in-the-kind", "surrogate-in-the-id", "surrogate-in-the-kind"],
)
def test_a_key_that_the_driver_would_refuse_is_a_bug_of_its_crawl(item: Item) -> None:
    """The driver's refusal has no SQLSTATE: it would end the worker, not the crawl."""
    with pytest.raises(Bug, match="BadRecord"):
        encode(item)


def test_items_that_did_not_change_are_not_written_again(conn: Connection) -> None:
    me = register_worker(conn, shop_batch(conn, users=1))
    [lease] = take(conn, me)
    with transaction(conn):
        turn.write_items(conn, [(lease, [order(1), order(2)])])
    versions = "select external_id, xmin::text from item order by 1"
    before: dict[str, str] = dict(conn.execute(versions).fetchall())

    commit(conn, me, ended(lease, rows=[order(1), order(2, no_longer="the same")]))

    after: dict[str, str] = dict(conn.execute(versions).fetchall())
    assert after["0001"] == before["0001"]
    assert after["0002"] != before["0002"]


def test_of_two_rows_with_one_key_the_last_counts(conn: Connection) -> None:
    batch = shop_batch(conn, users=1)
    me = register_worker(conn, batch)

    commit(conn, me, *[ended(lease, rows=[order(1, v=1), order(1, v=2)]) for lease in take(conn, me)])

    assert [row[5] for row in results(conn, batch, None, None)] == [{"v": 2}]


def test_results_are_the_items_of_the_accounts_that_ended_ok(conn: Connection) -> None:
    """What was written ahead of a crawl that then failed is kept, but is no result of this batch."""
    batch = shop_batch(conn, users=2)
    me = register_worker(conn, batch)
    good, bad = sorted(take(conn, me), key=lambda lease: lease.user_id)
    with transaction(conn):
        assert turn.write_ahead(conn, me, bad, [order(1)])

    commit(conn, me, ended(good, rows=[order(2)]), ended(bad, Bug("BadRow")))

    assert [row[:4] for row in results(conn, batch, None, None)] == [(1, "shop", "order", "0002")]
