"""Planning: which users, in which order, for which worker, through which egress; once, whoever dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from builders import (
    account,
    add_accounts,
    batch_plan,
    declare_source,
    egress,
    pass_ticks,
    plan_batch,
    register_worker,
    scalar,
    shop_batch,
    take,
    task_states,
    until,
)

from crawlfleet.errors import BadInput
from crawlfleet.planner import Selector, plan
from crawlfleet.politeness import BANNED_AFTER
from crawlfleet.store.connection import Connection
from crawlfleet.store.fleet import housekeep

Connections = Callable[[], Connection]


def planned(conn: Connection, batch_id: int) -> list[int]:
    """The users in the order of their tasks."""
    rows = conn.execute("select user_id from task where batch_id = %s order by task_no", (batch_id,))
    return [user for (user,) in rows]


def ranks(conn: Connection, batch_id: int) -> dict[int, tuple[int, int]]:
    """User id → (tier, cost class as log2 of milliseconds)."""
    rows = conn.execute(
        "select user_id, rank / 64, 63 - rank %% 64 from task where batch_id = %s", (batch_id,)
    )
    return {user: (tier, cost) for user, tier, cost in rows}


def egresses_of(conn: Connection, table: str = "track") -> dict[int, str]:
    """User id → name of the egress."""
    rows = conn.execute(f"select user_id, e.name from {table} t join egress e using (egress_id)")
    return dict(rows.fetchall())


def days_ago(days: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)


def four_tiers_of_accounts(conn: Connection) -> None:
    """1 HIGH, 2 MEDIUM, 3 and 4 LOW."""
    declare_source(conn)
    add_accounts(
        conn,
        [
            account(1),
            account(2, subscription="free", last_login_at=days_ago(6.9)),
            account(3, subscription="free", last_login_at=days_ago(7.1)),
            account(4, subscription="free"),
        ],
    )


def test_tiers_follow_subscription_and_last_login(conn: Connection) -> None:
    four_tiers_of_accounts(conn)

    tiers = ranks(conn, plan_batch(conn))

    assert {user: tier for user, (tier, _) in tiers.items()} == {1: 0, 2: 1, 3: 2, 4: 2}


@pytest.mark.parametrize(
    ("selector", "users"),
    [
        (Selector(), {1, 2, 3, 4}),
        (Selector(tiers=["HIGH", "LOW"]), {1, 3, 4}),
        (Selector(ids=[2, 3, 99]), {2, 3}),
        (Selector(divisor=4, remainder=0), {4}),
        (Selector(tiers=["LOW"], divisor=2, remainder=1), {3}),
        (Selector(ids=[]), set()),
    ],
    ids=["all", "tiers", "ids", "modulo", "both", "nobody"],
)
def test_a_selector_chooses_the_users(conn: Connection, selector: Selector, users: set[int]) -> None:
    four_tiers_of_accounts(conn)

    assert set(planned(conn, plan_batch(conn, selector=selector))) == users


def test_the_longest_expected_crawls_come_first_within_a_tier(conn: Connection) -> None:
    shop_batch(conn, users=3)
    conn.execute("update track set cost_ms = 1000 * user_id * user_id")

    assert planned(conn, plan_batch(conn)) == [3, 2, 1]


def test_an_unknown_cost_is_the_average_of_its_source(conn: Connection) -> None:
    shop_batch(conn, users=2)
    conn.execute("update track set cost_ms = case user_id when 1 then 1024 else 8192 end")
    add_accounts(conn, [3])

    costs = ranks(conn, plan_batch(conn))

    assert {user: cost for user, (_, cost) in costs.items()} == {1: 10, 2: 13, 3: 12}


def test_without_any_cost_a_crawl_is_expected_to_take_ten_seconds(conn: Connection) -> None:
    assert ranks(conn, shop_batch(conn, users=1)) == {1: (0, 13)}


def test_users_are_spread_over_the_workers_and_stay_with_theirs(conn: Connection) -> None:
    """The shard is a hash of the user alone: every batch of as many workers deals alike."""
    first = shop_batch(conn, users=400, workers=4)
    second = plan_batch(conn, workers=4, selector=Selector(divisor=2, remainder=0))

    shards = "select user_id, shard from task where batch_id = %s"
    before: dict[int, int] = dict(conn.execute(shards, (first,)).fetchall())
    after: dict[int, int] = dict(conn.execute(shards, (second,)).fetchall())
    assert all(50 < number < 150 for number in Counter(before.values()).values())
    assert set(before.values()) == {0, 1, 2, 3}
    assert after.items() <= before.items()


def test_planning_again_finds_the_batch(conn: Connection) -> None:
    declare_source(conn)
    add_accounts(conn, [1, 2])
    batch = batch_plan()
    first = plan(conn, batch)
    add_accounts(conn, [3])

    assert plan(conn, batch) == first
    assert planned(conn, first) == [1, 2]


def blocked(conn: Connection) -> int:
    """How many sessions of this database wait for a lock."""
    query = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    return int(scalar(conn, query))


def test_a_second_planner_waits_and_plans_nothing(conn: Connection, connections: Connections) -> None:
    declare_source(conn)
    add_accounts(conn, [1, 2])
    batch, watch, planners = batch_plan(), connections(), [connections(), connections()]
    conn.execute("begin; lock table task in exclusive mode")
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(plan, planner, batch) for planner in planners]
        until(lambda: blocked(watch) == 2)
        conn.execute("commit")
        ids = {future.result() for future in both}

    assert len(ids) == 1
    assert planned(conn, ids.pop()) == [1, 2]


def test_a_planner_that_died_leaves_a_batch_that_the_next_one_plans(
    conn: Connection, connections: Connections
) -> None:
    declare_source(conn)
    add_accounts(conn, [1, 2])
    batch, watch, planner = batch_plan(), connections(), connections()
    conn.execute("begin; lock table task in exclusive mode")
    with ThreadPoolExecutor(1) as thread:
        planning = thread.submit(plan, planner, batch)
        until(lambda: blocked(watch) == 1)
        watch.execute("select pg_terminate_backend(%s)", (planner.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError):
            planning.result()
    conn.execute("commit")

    assert scalar(conn, "select state::text from batch") == "planning"
    assert scalar(conn, "select count(*) from task") == 0
    assert planned(conn, plan(conn, batch)) == [1, 2]
    assert scalar(conn, "select state::text from batch") == "running"


def test_accounts_that_nobody_can_log_in_to_are_planned_as_dead_and_say_why(conn: Connection) -> None:
    """No seller is missing from the batch."""
    declare_source(conn)
    add_accounts(conn, [1, 2])
    conn.execute("update account set state = 'auth', reason = 'RefreshLost' where user_id = 2")

    batch = plan_batch(conn)

    assert task_states(conn, batch) == {1: "ready", 2: "dead"}
    told = conn.execute(
        "select failure.verdict::text, reason from failure join task using (batch_id, task_no)"
    )
    assert told.fetchall() == [("auth", "RefreshLost")]


def test_disabled_accounts_are_left_out(conn: Connection) -> None:
    declare_source(conn)
    add_accounts(conn, [1, 2])
    conn.execute("update account set state = 'disabled' where user_id = 2")

    assert planned(conn, plan_batch(conn)) == [1]


def test_a_source_that_is_not_declared_is_named_and_nothing_is_planned(conn: Connection) -> None:
    declare_source(conn)

    with pytest.raises(BadInput, match="source 'mall' is not declared"):
        plan_batch(conn, sources=["shop", "mall"])
    assert scalar(conn, "select count(*) from batch") == 0


def test_accounts_are_spread_over_the_egresses_by_their_caps(conn: Connection) -> None:
    declare_source(conn, egress("small", 1), egress("large", 3))
    add_accounts(conn, range(1, 41))
    batch = plan_batch(conn)

    assert Counter(egresses_of(conn).values()) == {"small": 10, "large": 30}
    assert egresses_of(conn, "task") == egresses_of(conn)
    assert len(planned(conn, batch)) == 40


def test_accounts_that_come_one_by_one_are_spread_as_well(conn: Connection) -> None:
    declare_source(conn, egress("small", 1), egress("large", 3))
    for user in range(1, 9):
        add_accounts(conn, [user])
        plan_batch(conn)

    assert Counter(egresses_of(conn).values()) == {"small": 2, "large": 6}


def test_an_egress_added_later_moves_nobody(conn: Connection) -> None:
    first = egress("first", 4)
    declare_source(conn, first)
    add_accounts(conn, range(1, 11))
    plan_batch(conn)
    declare_source(conn, first, egress("second", 40))

    plan_batch(conn)
    housekeep(conn)

    assert set(egresses_of(conn).values()) == {"first"}


def test_accounts_and_ready_tasks_leave_a_removed_egress(conn: Connection) -> None:
    good, going = egress("good", 2), egress("going", 2)
    declare_source(conn, good, going)
    add_accounts(conn, range(1, 11))
    plan_batch(conn)
    declare_source(conn, good)

    housekeep(conn)

    assert set(egresses_of(conn).values()) == {"good"}
    assert set(egresses_of(conn, "task").values()) == {"good"}


def test_accounts_leave_an_egress_that_is_cut_again_and_again(conn: Connection) -> None:
    declare_source(conn, egress("good", 2), egress("banned", 2))
    add_accounts(conn, range(1, 11))
    plan_batch(conn)
    conn.execute("update egress set cuts_in_row = %s where name = 'banned'", (BANNED_AFTER,))

    housekeep(conn)

    assert set(egresses_of(conn).values()) == {"good"}
    assert set(egresses_of(conn, "task").values()) == {"good"}


def test_accounts_stay_at_a_banned_egress_if_there_is_no_other(conn: Connection) -> None:
    declare_source(conn, egress("banned", 2))
    add_accounts(conn, range(1, 4))
    plan_batch(conn)
    conn.execute("update egress set cuts_in_row = %s", (BANNED_AFTER,))

    housekeep(conn)

    assert set(egresses_of(conn).values()) == {"banned"}


def test_a_crawl_that_is_under_way_finishes_at_its_removed_egress(conn: Connection) -> None:
    """Its task follows the account only when it is rescued or waits."""
    good, going = egress("good", 1), egress("going", 1)
    declare_source(conn, going)
    add_accounts(conn, [1])
    batch = plan_batch(conn)
    [lease] = take(conn, register_worker(conn, batch))
    declare_source(conn, good)

    housekeep(conn)
    assert egresses_of(conn, "task") == {1: "going"}
    assert egresses_of(conn, "permit") == {1: "going"} | {None: "good"}

    pass_ticks(conn, 20)
    housekeep(conn)
    assert egresses_of(conn, "task") == {1: "good"}
    assert take(conn, register_worker(conn, batch))[0].egress_id != lease.egress_id
