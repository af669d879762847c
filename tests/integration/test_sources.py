"""What holds over several egresses and sources of one batch, and over their declarations."""

from __future__ import annotations

import pytest
from builders import (
    account,
    add_accounts,
    commit,
    declare_source,
    egress,
    ended,
    plan_batch,
    register_worker,
    scalar,
    shop_batch,
    take,
)

from crawlfleet.errors import BadConfiguration, Throttled
from crawlfleet.store.accounts import purge, set_state
from crawlfleet.store.connection import Connection, check_durability, connect, transaction
from crawlfleet.store.fleet import housekeep
from crawlfleet.store.sources import put_source
from crawlfleet.store.turn import Row

OLD_ITEM = Row("order", "o-1", b"h", "{}")


def test_the_better_tier_goes_first_over_all_sources(conn: Connection) -> None:
    """Ten slots, two sources: the LOW tasks of the first do not come before the HIGH ones of the second."""
    declare_source(conn, egress(cap=10), name="first")
    declare_source(conn, egress(cap=10), name="second")
    add_accounts(conn, [account(u, source="first", subscription="free") for u in range(1, 21)])
    add_accounts(conn, [account(u, source="second") for u in range(21, 31)])
    me = register_worker(conn, plan_batch(conn, sources=("first", "second")), slots=10)

    assert {lease.user_id for lease in take(conn, me)} == set(range(21, 31))


def test_slots_that_the_better_tier_leaves_go_to_the_next(conn: Connection) -> None:
    declare_source(conn, egress(cap=10), name="first")
    declare_source(conn, egress(cap=3), name="second")
    add_accounts(conn, [account(u, source="first", subscription="free") for u in range(1, 21)])
    add_accounts(conn, [account(u, source="second") for u in range(21, 31)])
    me = register_worker(conn, plan_batch(conn, sources=("first", "second")), slots=10)

    users = [lease.user_id for lease in take(conn, me)]

    assert len(users) == 10
    assert sum(user > 20 for user in users) == 3


def test_what_the_shop_still_shows_is_kept_past_the_retention(conn: Connection) -> None:
    """Unchanged for long is not gone: only what no crawl has seen for so long is deleted."""
    put_source(conn, "shop", [egress(exit="shop-direct")], retain_days=30)
    me = register_worker(conn, shop_batch(conn, users=2))
    conn.execute("update source set retain_days = 30")
    commit(conn, me, *[ended(lease, rows=[OLD_ITEM]) for lease in take(conn, me)])
    conn.execute("update item set fetched_at = now() - interval '40 days', seen_on = current_date - 40")
    again = register_worker(conn, plan_batch(conn))
    lease, other = take(conn, again)
    commit(conn, again, ended(lease, rows=[OLD_ITEM]))

    housekeep(conn)

    assert conn.execute("select user_id, now() - fetched_at > interval '39 days' from item").fetchall() == [
        (lease.user_id, True)
    ]
    assert other.user_id != lease.user_id


def test_two_egresses_may_swap_their_exits(conn: Connection) -> None:
    declare_source(conn, egress("a", exit="one"), egress("b", exit="two"))

    with transaction(conn):
        declare_source(conn, egress("a", exit="two"), egress("b", exit="one"))

    assert conn.execute("select name, exit from egress order by name").fetchall() == [
        ("a", "two"),
        ("b", "one"),
    ]


def test_another_exit_under_an_old_name_begins_without_its_cuts(conn: Connection) -> None:
    declare_source(conn, egress("a", exit="one"))
    conn.execute("update egress set cuts_in_row = 5, ramp = 1, cool_until = now() + interval '1 hour'")

    declare_source(conn, egress("a", exit="two"))

    found = conn.execute("select cuts_in_row, ramp, cool_until < now() from egress where not removed")
    assert found.fetchall() == [(0, None, True)]


def test_a_renamed_egress_keeps_its_permits_and_its_cool_down(conn: Connection) -> None:
    """It is the same exit: a new row would double its cap and forget a ban."""
    me = register_worker(conn, shop_batch(conn, users=4, cap=3))
    assert len(take(conn, me)) == 3
    conn.execute("update egress set cool_until = now() + interval '1 hour'")

    declare_source(conn, egress("main", cap=3, exit="shop-direct"))

    assert conn.execute("select name, cool_until > now() from egress").fetchall() == [("main", True)]
    assert scalar(conn, "select count(*) from permit") == 3


def test_an_account_that_was_told_to_wait_waits_in_every_batch(conn: Connection) -> None:
    first, second = register_worker(conn, shop_batch(conn, users=1)), register_worker(conn, plan_batch(conn))
    [lease] = take(conn, first)
    assert lease.wait_s is None
    commit(conn, first, ended(lease, Throttled("CallLimit", retry_after_s=500, account_only=True)))

    [lease] = take(conn, second)

    assert lease.wait_s is not None
    assert 490 < lease.wait_s <= 500


def test_new_accounts_are_not_planned_through_a_banned_egress(conn: Connection) -> None:
    declare_source(conn, egress("good"), egress("banned"))
    conn.execute("update egress set cuts_in_row = 9 where name = 'banned'")
    add_accounts(conn, range(1, 9))

    plan_batch(conn)

    assert conn.execute("select distinct e.name from track join egress e using (egress_id)").fetchall() == [
        ("good",)
    ]


def test_new_accounts_are_planned_even_if_every_egress_is_banned(conn: Connection) -> None:
    """No seller may be missing from the batch."""
    declare_source(conn, egress("banned"))
    conn.execute("update egress set cuts_in_row = 9")
    add_accounts(conn, range(1, 9))

    assert scalar(conn, "select count(*) from task where batch_id = %s", plan_batch(conn)) == 8


def test_an_account_that_is_disabled_while_it_is_purged_is_not_crawled(conn: Connection) -> None:
    me = register_worker(conn, shop_batch(conn, users=1))
    [lease] = take(conn, me)

    assert purge(conn, lease.user_id) is None
    assert scalar(conn, "select state::text from account") == "disabled"


@pytest.mark.parametrize("state", ["disabled", "ok"])
def test_disabling_or_enabling_an_account_does_not_forget_a_refresh_under_way(
    conn: Connection, state: str
) -> None:
    shop_batch(conn, users=1)
    conn.execute("update account set refresh_tries = 1, refresh_lease = 7")

    set_state(conn, 1, None, state, None)

    assert conn.execute("select refresh_tries, refresh_lease from account").fetchone() == (1, 7)


def test_a_database_that_may_forget_commits_is_refused(database_url: str, conn: Connection) -> None:
    conn.execute(
        "do $$ begin execute format('alter database %I set synchronous_commit = off', current_database()); end $$"
    )

    with connect(database_url) as fresh, pytest.raises(BadConfiguration, match="synchronous_commit"):
        check_durability(fresh)
