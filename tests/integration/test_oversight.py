"""What an operator sees of all batches and sources, the levers it sets, and who owns which name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Event

import pytest
from builders import (
    SETTINGS,
    add_accounts,
    batch_plan,
    commit,
    declare_source,
    egress,
    ended,
    pass_ticks,
    plan_batch,
    register_worker,
    scalar,
    shop_batch,
    take,
    task_states,
    together,
    until,
)

from crawlfleet.errors import AuthFailed, BadInput, Throttled
from crawlfleet.planner import BatchPlan, NobodyToCrawl, Selector, plan, plan_somebody
from crawlfleet.store import batches, oversight
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.fleet import end_worker, housekeep, recount, renew
from crawlfleet.store.oversight import BatchRow, Levers
from crawlfleet.store.sources import TakenExit, TakenName, put_source

Connections = Callable[[], Connection]
NIGHT_S = 8 * 3600


def crawl_batch(
    conn: Connection, users: int = 4, cap: int = 4, *, namespace: str = "crawl", workers: int = 2
) -> int:
    """A planned batch of a CrawlBatch in that namespace."""
    return shop_batch(conn, users, cap, namespace=namespace, workers=workers)


def uid_of(conn: Connection, batch_id: int) -> str:
    return str(scalar(conn, "select uid from batch where batch_id = %s", batch_id))


def look_at(conn: Connection, batch_id: int) -> BatchRow:
    uid = uid_of(conn, batch_id)
    return oversight.look(conn, None, uid)[uid]


def end_all(conn: Connection, batch_id: int) -> None:
    """Crawl all of it, and close it."""
    me = register_worker(conn, batch_id)
    while leases := take(conn, me):
        commit(conn, me, *[ended(lease) for lease in leases])
    housekeep(conn)
    assert look_at(conn, batch_id).state == "closed"


# Look.


def test_a_batch_as_it_was_planned(conn: Connection) -> None:
    found = look_at(conn, crawl_batch(conn))

    assert (found.namespace, found.state, found.round, found.stop) == ("crawl", "running", 1, "none")
    assert (found.total, found.worker_limit, found.max_concurrent) == (4, 2, None)
    assert (found.adapters, found.job_timeout_s) == (["noop"], 60)
    assert (found.first_worker_at, found.alive, found.held, found.closed_at) == (None, 0, {}, None)


def test_tasks_are_counted_by_source_state_and_verdict(conn: Connection) -> None:
    batch = crawl_batch(conn)
    me = register_worker(conn, batch)
    one, other, *_ = take(conn, me)
    commit(conn, me, ended(one), ended(other, AuthFailed("Refused")))
    recount(conn, batch)

    assert look_at(conn, batch).counts == {
        "shop": {("ok", "ok"): 1, ("dead", "auth"): 1, ("leased", None): 2}
    }


def test_permits_are_counted_by_worker(conn: Connection) -> None:
    batch = crawl_batch(conn, users=5, cap=5, workers=4)
    assert len(take(conn, register_worker(conn, batch, ordinal=0, slots=2))) == 2
    assert len(take(conn, register_worker(conn, batch, ordinal=3, slots=1))) == 1
    register_worker(conn, batch, ordinal=1)
    found = look_at(conn, batch)

    assert found.held == {0: 2, 1: 0, 3: 1}
    assert [found.held_above(workers) for workers in (0, 1, 3, 4)] == [3, 1, 1, 0]


@pytest.mark.parametrize("busy", [0, 1], ids=["the-one-before", "the-one-after"])
def test_a_worker_that_was_replaced_still_counts_what_it_holds(conn: Connection, busy: int) -> None:
    """Its pod is gone and another has its WORKER_ID: until the permits are rescued both are that worker."""
    batch = crawl_batch(conn)
    both = [register_worker(conn, batch, ordinal=1) for _ in range(2)]
    leases = take(conn, both[busy])

    assert len(leases) > 0
    assert look_at(conn, batch).held == {1: len(leases)}


def test_a_worker_that_said_good_bye_counts_no_more(conn: Connection) -> None:
    batch = crawl_batch(conn)
    me = register_worker(conn, batch, ordinal=1)
    end_worker(conn, me.worker_id)
    found = look_at(conn, batch)

    assert (found.held, found.alive, found.first_worker_at) == ({}, 0, None)


def test_a_worker_is_alive_while_it_renews(conn: Connection) -> None:
    batch = crawl_batch(conn)
    one, other = register_worker(conn, batch, 0), register_worker(conn, batch, 1)
    pass_ticks(conn, 2)
    assert look_at(conn, batch).alive == 2
    renew(conn, one.worker_id, [])
    pass_ticks(conn, 1)
    assert look_at(conn, batch).alive == 1
    pass_ticks(conn, 2)

    assert look_at(conn, batch).alive == 0
    assert renew(conn, other.worker_id, []) == set()
    assert look_at(conn, batch).alive == 1


def test_the_first_worker_began_when_it_registered(conn: Connection) -> None:
    batch = crawl_batch(conn)
    for ordinal in (0, 1):
        register_worker(conn, batch, ordinal)
    conn.execute("update worker set started_at = now() - interval '1 hour' where ordinal = 0")

    first_at = look_at(conn, batch).first_worker_at

    assert first_at == scalar(conn, "select extract(epoch from min(started_at))::float8 from worker")


def test_of_a_closed_batch_nobody_asks_for_workers(conn: Connection) -> None:
    batch = crawl_batch(conn)
    end_all(conn, batch)
    found = look_at(conn, batch)

    assert (found.held, found.alive) == ({}, 0)
    assert found.closed_at == scalar(conn, "select extract(epoch from closed_at)::float8 from batch")


def test_an_operator_sees_the_batches_of_its_namespaces(conn: Connection) -> None:
    """And never a local one."""
    one = uid_of(conn, crawl_batch(conn, namespace="one"))
    two = uid_of(conn, plan_batch(conn, namespace="two"))
    plan_batch(conn)

    assert set(oversight.look(conn, ["one"])) == {one}
    assert set(oversight.look(conn, ["one", "two", "three"])) == {one, two}
    assert set(oversight.look(conn, None)) == {one, two}
    assert set(oversight.look(conn, None, two)) == {two}
    assert oversight.look(conn, ["one"], two) == {}


def test_a_batch_of_several_sources_has_all_their_adapters_and_the_longest_crawl(conn: Connection) -> None:
    settings = {"first": SETTINGS, "second": replace(SETTINGS, adapter="ably", job_timeout_s=900)}
    for name in settings:
        declare_source(conn, name=name)
    wanted = replace(batch_plan(namespace="crawl"), sources=settings)
    found = look_at(conn, plan(conn, wanted))

    assert (sorted(found.adapters), found.job_timeout_s) == (["ably", "noop"], 900)


def test_a_source_with_its_permits(conn: Connection) -> None:
    declare_source(conn, egress("a", 3), egress("b", 2), namespace="crawl")
    add_accounts(conn, range(1, 4))
    me = register_worker(conn, plan_batch(conn), slots=2)
    take(conn, me)
    conn.execute("update egress set cool_until = now() + interval '1 hour', cut = 4 where name = 'b'")

    found = oversight.sources(conn)["shop"]

    assert (found.namespace, found.total, found.held, found.cooling, found.blocked) == ("crawl", 5, 2, 2, 4)
    assert found.cool_until is None


def test_a_source_rests_until_its_first_egress_is_open_again(conn: Connection) -> None:
    """One that was removed does not count."""
    declare_source(conn, egress("a"), egress("b"), egress("gone"))
    conn.execute("update egress set removed = true, cap = 0 where name = 'gone'")
    conn.execute("update egress set cool_until = now() + interval '1 hour' where name = 'a'")
    conn.execute("update egress set cool_until = now() + interval '2 hours' where name = 'b'")

    first = scalar(conn, "select extract(epoch from cool_until)::float8 from egress where name = 'a'")

    assert oversight.sources(conn)["shop"].cool_until == first


def test_a_source_counts_the_tasks_that_wait_after_a_throttle(conn: Connection) -> None:
    batch = crawl_batch(conn)
    me = register_worker(conn, batch)
    one, *_ = take(conn, me)
    commit(conn, me, ended(one, Throttled("Busy", retry_after_s=500)))
    recount(conn, batch)

    assert oversight.sources(conn)["shop"].throttled == 1


def test_a_source_without_an_egress_has_no_permits(conn: Connection) -> None:
    with transaction(conn):
        put_source(conn, "shop", [])

    found = oversight.sources(conn)["shop"]

    assert (found.total, found.held, found.cooling, found.cool_until) == (0, 0, 0, None)


# Levers.


def test_levers_are_set_once(conn: Connection) -> None:
    batch, wanted = crawl_batch(conn), Levers(7, 3, "drain")
    assert not wanted.are_set(look_at(conn, batch))
    oversight.set_levers(conn, uid_of(conn, batch), wanted)
    found = look_at(conn, batch)

    assert (found.worker_limit, found.max_concurrent, found.stop) == (7, 3, "drain")
    assert wanted.are_set(found)


def test_a_lever_that_says_nothing_of_stop_leaves_the_command_lines(conn: Connection) -> None:
    batch = crawl_batch(conn)
    batches.stop(conn, batch, "drain")
    oversight.set_levers(conn, uid_of(conn, batch), Levers(7, 3, None))

    assert look_at(conn, batch).stop == "drain"
    assert Levers(7, 3, None).are_set(look_at(conn, batch))


def test_a_closed_batch_has_no_levers(conn: Connection) -> None:
    batch = crawl_batch(conn)
    end_all(conn, batch)
    oversight.set_levers(conn, uid_of(conn, batch), Levers(7, 3, "cancel"))

    assert look_at(conn, batch).stop == "none"


def test_a_worker_above_the_limit_takes_nothing_more(conn: Connection) -> None:
    batch = crawl_batch(conn)
    above = register_worker(conn, batch, ordinal=1)
    oversight.set_levers(conn, uid_of(conn, batch), Levers(1, 10, None))

    assert take(conn, above) == []
    assert len(take(conn, register_worker(conn, batch, ordinal=0))) == 4


# Forget.


def test_a_batch_that_is_forgotten_is_cancelled_and_then_deleted(conn: Connection) -> None:
    batch = crawl_batch(conn)
    oversight.forget_batch(conn, uid_of(conn, batch), retain_s=NIGHT_S)
    housekeep(conn)
    assert set(task_states(conn, batch).values()) == {"cancelled"}
    housekeep(conn)
    assert scalar(conn, "select state::text from batch") == "closed"
    conn.execute("update batch set closed_at = closed_at - make_interval(secs => %s)", (NIGHT_S,))
    for _ in range(2):
        housekeep(conn)

    assert scalar(conn, "select count(*) from batch") == 0


def test_a_crawl_under_way_ends_when_its_batch_is_forgotten(conn: Connection) -> None:
    batch = crawl_batch(conn, users=1)
    me = register_worker(conn, batch)
    [lease] = take(conn, me)
    oversight.forget_batch(conn, uid_of(conn, batch), retain_s=NIGHT_S)
    housekeep(conn)
    commit(conn, me, ended(lease))

    assert task_states(conn, batch) == {1: "ok"}


def test_a_closed_batch_that_is_forgotten_was_not_cancelled(conn: Connection) -> None:
    batch = crawl_batch(conn)
    end_all(conn, batch)
    oversight.forget_batch(conn, uid_of(conn, batch), retain_s=NIGHT_S)

    assert conn.execute("select stop::text, retain_s from batch").fetchall() == [("none", NIGHT_S)]


def test_nobody_looks_at_a_batch_that_is_forgotten(conn: Connection) -> None:
    batch = crawl_batch(conn)
    oversight.forget_batch(conn, uid_of(conn, batch), retain_s=NIGHT_S)

    assert oversight.look(conn, None) == {}


def test_a_batch_is_forgotten_once(conn: Connection) -> None:
    uid = uid_of(conn, crawl_batch(conn))
    for retain_s in (NIGHT_S, 1):
        oversight.forget_batch(conn, uid, retain_s=retain_s)

    assert scalar(conn, "select retain_s from batch") == NIGHT_S


def test_a_local_batch_is_not_an_operators_to_forget(conn: Connection) -> None:
    oversight.forget_batch(conn, uid_of(conn, shop_batch(conn)), retain_s=0)

    assert conn.execute("select stop::text, retain_s from batch").fetchall() == [("none", None)]


def test_orphans_are_batches_of_these_namespaces_that_nobody_knows(conn: Connection) -> None:
    orphan = uid_of(conn, crawl_batch(conn, namespace="one"))
    known, forgotten = (uid_of(conn, plan_batch(conn, namespace="one")) for _ in range(2))
    elsewhere = uid_of(conn, plan_batch(conn, namespace="two"))
    plan_batch(conn)  # a local one
    oversight.forget_batch(conn, forgotten, retain_s=NIGHT_S)

    assert oversight.orphaned_batches(conn, ["one"], [known]) == [orphan]
    assert set(oversight.orphaned_batches(conn, None, [known])) == {orphan, elsewhere}


# Plan.


def nobody(**fields: str) -> BatchPlan:
    return batch_plan(selector=Selector(ids=[77]), **fields)  # type: ignore[arg-type]  # fields of a plan


def test_a_plan_that_finds_nobody_leaves_nothing_behind(conn: Connection) -> None:
    declare_source(conn)
    add_accounts(conn, [1])

    with pytest.raises(
        NobodyToCrawl, match=r"no enabled account of shop belongs to the chosen users; .* import"
    ):
        plan_somebody(conn, nobody(namespace="crawl"))

    for table in ("batch", "batch_source", "task"):
        assert scalar(conn, f"select count(*) from {table}") == 0


def test_a_plan_that_found_nobody_may_find_somebody_later(conn: Connection) -> None:
    declare_source(conn)
    wanted = nobody(namespace="crawl")
    with pytest.raises(NobodyToCrawl):
        plan_somebody(conn, wanted)
    add_accounts(conn, [77])

    batch = plan_somebody(conn, wanted)

    assert task_states(conn, batch) == {77: "ready"}


def test_a_plan_with_a_source_that_was_never_declared_leaves_nothing_behind(conn: Connection) -> None:
    with pytest.raises(BadInput):
        plan_somebody(conn, batch_plan(namespace="crawl"))

    assert scalar(conn, "select count(*) from batch") == 0


def test_two_operators_plan_a_batch_once(conn: Connection, connections: Connections) -> None:
    declare_source(conn)
    add_accounts(conn, range(1, 51))
    wanted = batch_plan(namespace="crawl")

    ids = together(*[partial(plan_somebody, connections(), wanted) for _ in range(4)])

    assert len(set(ids)) == 1
    assert len(task_states(conn, ids[0])) == 50
    assert scalar(conn, "select total from batch") == 50


def test_two_operators_that_find_nobody_leave_nothing_behind(
    conn: Connection, connections: Connections
) -> None:
    """One may find that the other has given the batch up already."""
    declare_source(conn)
    wanted = nobody(namespace="crawl")

    def try_it(own: Connection) -> None:
        with suppress(NobodyToCrawl, BadInput):
            plan_somebody(own, wanted)

    together(*[partial(try_it, connections()) for _ in range(2)])

    assert scalar(conn, "select count(*) from batch") == 0


# Who owns which name and which exit.


def test_a_name_belongs_to_the_first_namespace_that_declares_it(conn: Connection) -> None:
    declare_source(conn, egress(exit="first"), namespace="one")

    with pytest.raises(TakenName) as refused:
        declare_source(conn, egress(exit="second"), namespace="two")

    assert str(refused.value) == (
        "the source 'shop' belongs to the CrawlSource shop in namespace one; names are unique in a database: give this"
        " one another"
    )
    assert conn.execute("select exit from egress where not removed").fetchall() == [("first",)]


def test_its_own_namespace_may_declare_it_again(conn: Connection) -> None:
    for cap in (4, 5):
        declare_source(conn, egress(cap=cap, exit="first"), namespace="one")

    assert oversight.sources(conn)["shop"].total == 5


def test_a_source_of_the_command_line_is_taken_over(conn: Connection) -> None:
    declare_source(conn)
    declare_source(conn, namespace="one")

    assert oversight.claimed_sources(conn, None) == [("shop", "one")]


def test_an_exit_belongs_to_one_source(conn: Connection) -> None:
    declare_source(conn, egress("a", exit="198.51.100.1"), namespace="one", name="first")

    with pytest.raises(TakenExit) as refused:
        declare_source(conn, egress("b", exit="198.51.100.1"), namespace="two", name="second")

    assert str(refused.value) == (
        "CrawlSource second: egress 'b' is the same exit (198.51.100.1) as egress 'a' of CrawlSource first."
        " One exit has one cap: use that source, or another proxy."
    )


def test_of_two_namespaces_at_once_one_gets_the_name(connections: Connections) -> None:
    def declare(own: Connection, namespace: str) -> str:
        try:
            declare_source(own, egress(exit="the-exit"), namespace=namespace)
        except TakenName:
            return ""
        return namespace

    [owner] = filter(None, together(*[partial(declare, connections(), name) for name in ("one", "two")]))

    assert oversight.claimed_sources(connections(), None) == [("shop", owner)]


def test_a_released_name_and_its_exits_are_free(conn: Connection) -> None:
    declare_source(conn, egress(exit="the-exit"), namespace="one")
    assert oversight.release_source(conn, "shop", "one")

    assert oversight.sources(conn)["shop"].total == 0
    declare_source(conn, egress(exit="the-exit"), namespace="two", name="other")
    declare_source(conn, egress(exit="another"), namespace="two")
    assert set(oversight.claimed_sources(conn, ["two"])) == {("other", "two"), ("shop", "two")}


def test_only_its_owner_releases_a_name(conn: Connection) -> None:
    declare_source(conn, namespace="one")

    assert not oversight.release_source(conn, "shop", "two")
    assert not oversight.release_source(conn, "never-there", "one")
    assert oversight.sources(conn)["shop"].total == 4


def test_an_open_batch_keeps_the_name_and_the_exits_of_its_source(conn: Connection) -> None:
    declare_source(conn, egress(exit="shop-direct"), namespace="crawl")
    batch = crawl_batch(conn)
    assert not oversight.release_source(conn, "shop", "crawl")
    assert oversight.sources(conn)["shop"].total == 4
    end_all(conn, batch)

    assert oversight.release_source(conn, "shop", "crawl")


def test_a_closed_batch_keeps_nothing(conn: Connection) -> None:
    """Nor does an open one of another source."""
    declare_source(conn, egress(exit="shop-direct"), namespace="crawl")
    end_all(conn, crawl_batch(conn))
    declare_source(conn, name="other")
    plan_batch(conn, sources=("other",))

    assert oversight.release_source(conn, "shop", "crawl")


def test_a_release_locks_egresses_in_their_order(connections: Connections) -> None:
    """Whoever declares another source locks all of them, by id: neither may wait for what the other holds."""
    conn, own, watcher = connections(), connections(), connections()
    declare_source(conn, egress("first", exit="z"), egress("second", exit="a"), namespace="crawl")
    conn.execute("update egress set exit = 'y' where name = 'first'")  # now it stands behind the other one
    is_locked = Event()

    def lock_by_id() -> None:
        with transaction(own):
            own.execute("select from egress where name = 'first' for no key update")
            is_locked.set()
            until(lambda: scalar(watcher, "select count(*) from pg_locks where not granted") > 0)
            own.execute("select from egress where name = 'second' for no key update")

    def release() -> None:
        assert is_locked.wait(30)
        assert oversight.release_source(conn, "shop", "crawl")

    together(lock_by_id, release)


def test_claims_are_told_by_namespace(conn: Connection) -> None:
    for namespace in ("one", "two"):
        declare_source(conn, name=f"shop-{namespace}", namespace=namespace)
    declare_source(conn, name="local")

    assert oversight.claimed_sources(conn, ["two"]) == [("shop-two", "two")]
    assert len(oversight.claimed_sources(conn, None)) == 2
