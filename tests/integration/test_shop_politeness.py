"""What the shop sees of a whole fleet: caps, pace, bans, waits, exits. Its own counters and request log are the judge."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby

import pytest
from fleet import Fleet, WatchedShop, until
from http_proxy import HttpProxy

from crawlfleet.demo.violations import Agreement
from crawlfleet.store import batches

PASSWORD = ("user", "proxy-password")
LONG_S = 600
"""Of bans and cool-downs that a test ends itself."""


@pytest.fixture
def proxies() -> Iterator[dict[str, HttpProxy]]:
    with HttpProxy("one", PASSWORD) as one, HttpProxy("two", PASSWORD) as two:
        yield {"one": one, "two": two}


def urls(proxies: dict[str, HttpProxy]) -> dict[str, str]:
    return {name: proxy.url for name, proxy in proxies.items()}


def all_ok(fleet: Fleet, batch: str = "batch") -> bool:
    return set(fleet.tasks(batch).values()) == {("ok", "ok")}


# Cap and pace.


def test_the_cap_holds_over_all_workers(fleet: Fleet) -> None:
    with WatchedShop(agreement=Agreement(accounts_per_egress=3)) as shop:
        shop.switch(slow_s=0.2)
        fleet.cafe24(shop, users=12, maxConcurrent=3)
        fleet.plan(workers=2)
        fleet.run(workers=2, slots=16)
        assert shop.violations() == {}
        assert shop.witness.counters().peak_in_flight == 3
    assert all_ok(fleet)


def is_paced(arrivals: Sequence[float], per_s: float, since_s: float) -> bool:
    """Whether none came before its turn; one is forgiven. A machine that stands still makes them late, never early."""
    return all(at_s >= since_s + (number - 1) / per_s for number, at_s in enumerate(sorted(arrivals)))


def test_the_pace_holds_over_all_workers(fleet: Fleet, shop: WatchedShop) -> None:
    """Without a pace there would be four times as many, with one for each worker twice as many."""
    fleet.cafe24(shop, users=16, maxConcurrent=16, requestsPerSecond=20)
    fleet.plan(workers=2)
    gate = shop.gate("token", most=16)
    workers = fleet.start_together(2, slots=16)
    gate.wait(16)
    opened_s = time.monotonic()
    gate.open()
    assert [worker.exit_code() for worker in workers] == [0, 0]
    assert all_ok(fleet)
    assert shop.violations() == {}
    times = [seen.at_s for seen in shop.seen() if seen.what != "token"]
    assert is_paced(times, 20, opened_s)
    assert len(times) / (max(times) - opened_s) > 5


def test_a_cap_that_is_raised_is_used_while_no_crawl_ends(fleet: Fleet) -> None:
    fleet.noop(users=40, cap=2, duration_s=600)
    fleet.plan(workers=2)
    for worker_id in range(2):
        fleet.start(worker_id)
    until(lambda: fleet.held() == 2, "the old cap to be used")
    fleet.declare("noop", adapter="noop", maxConcurrent=9)
    until(lambda: fleet.held() == 9, "nine crawls at once")


def test_a_cap_that_is_lowered_lets_running_crawls_finish_and_begins_no_more(
    fleet: Fleet, shop: WatchedShop
) -> None:
    """The later crawls come one after the other."""
    fleet.cafe24(shop, users=12, maxConcurrent=6)
    fleet.plan(workers=2)
    gate = shop.gate("products", most=6)
    workers = fleet.start_together(2)
    gate.wait(6)
    fleet.cafe24(shop, maxConcurrent=1)
    gate.open()
    assert [worker.exit_code() for worker in workers] == [0, 0]
    assert all_ok(fleet)
    assert fleet.leases() == 12
    running = {seen.account for seen in gate.held}
    later = [seen.account for seen in shop.seen() if seen.account not in running]
    assert len(list(groupby(later))) == 6


def test_a_paused_source_begins_again_when_its_cap_is_back(fleet: Fleet) -> None:
    fleet.noop(users=3, cap=0)
    fleet.plan()
    worker = fleet.start()
    worker.registration()
    tick = fleet.scalar("select tick from fleet")
    until(lambda: fleet.scalar("select tick from fleet") >= tick + 2, "two ticks")
    assert fleet.leases() == 0
    fleet.declare("noop", adapter="noop", maxConcurrent=3)
    assert worker.exit_code() == 0
    assert fleet.count("ok") == 3


def test_two_batches_with_the_same_accounts_never_meet_at_an_account(fleet: Fleet, shop: WatchedShop) -> None:
    shop.switch(slow_s=0.05)
    fleet.cafe24(shop, users=12)
    fleet.plan("batch")
    fleet.plan("other")
    workers = [fleet.start(), fleet.start(CRAWLFLEET_BATCH="other")]
    assert [worker.exit_code() for worker in workers] == [0, 0]
    assert all_ok(fleet, "batch")
    assert all_ok(fleet, "other")
    assert sum(len(worker.events("crawled")) for worker in workers) == 24
    assert shop.violations() == {}
    assert len(shop.seen("token")) == 12


# Being asked to wait.


def test_a_mall_that_always_throttles_delays_only_itself_and_ends_by_its_budget(
    fleet: Fleet, shop: WatchedShop
) -> None:
    shop.switch_account("demo3", always_429=True)
    fleet.cafe24(shop, users=12, budgets={"throttledSeconds": 3})
    fleet.plan(workers=2)
    fleet.run(workers=2)
    assert fleet.tasks() == {u: ("dead", "throttled") if u == 3 else ("ok", "ok") for u in range(1, 13)}
    assert 2 <= len(fleet.failures(3)) <= 5
    assert fleet.scalar("select cut from egress") == 0
    assert fleet.scalar("select retries + crashes from task where user_id = 3") == 0


def test_a_retry_after_is_waited_for(fleet: Fleet, shop: WatchedShop) -> None:
    shop.switch(throttle_once=True)
    fleet.cafe24(shop, users=10)
    fleet.plan(workers=2)
    fleet.run(workers=2)
    assert all_ok(fleet)
    assert fleet.all_failures() == {("throttled", "CallLimit")}
    assert shop.violations() == {}
    assert fleet.leases() == 20


def test_a_retry_after_holds_in_other_batches_too(fleet: Fleet, shop: WatchedShop) -> None:
    """Their crawls of that account are put off before they send anything, and are charged no attempt."""
    fleet.cafe24(shop, users=1)
    fleet.plan("told")
    fleet.plan("untold")
    fleet.conn.execute("update track set not_before = now() + interval '300 s'")
    worker = fleet.start(CRAWLFLEET_BATCH="untold")
    until(lambda: fleet.failures(1), "the crawl to be put off")
    assert fleet.scalar("select min(run_after) >= min(not_before) from task, track where state = 'waiting'")
    assert shop.seen() == []
    fleet.conn.execute("update track set not_before = null")
    fleet.conn.execute("update task set run_after = now() where state = 'waiting'")
    assert worker.exit_code() == 0
    assert fleet.failures(1) == [("throttled", "AccountWaits")]
    assert fleet.scalar("select max(retries) from task") == 0


def test_a_crawl_that_ends_well_in_a_suspended_mall_puts_off_the_next_one(fleet: Fleet) -> None:
    """Count and orders fill this mall's usage; the reply with the products is good, and says wait."""
    with WatchedShop(usage_calls=2) as shop:
        fleet.cafe24(shop, users=1)
        fleet.plan()
        fleet.run()
        assert all_ok(fleet)
        assert fleet.scalar("select not_before > now() from track")
        fleet.plan("next")
        assert fleet.start(CRAWLFLEET_BATCH="next").registration()
        until(lambda: len(fleet.failures(1)) == 1, "the next crawl to be put off")
        assert shop.violations() == {}
    assert fleet.failures(1) == [("throttled", "AccountWaits")]


def test_a_remaining_block_of_a_mall_is_waited_out(fleet: Fleet) -> None:
    """Every call fills this mall's usage: the first reply says wait 1 s, the second wait minutes."""
    with WatchedShop(usage_calls=1) as shop:
        fleet.cafe24(shop, users=1)
        batch_id = fleet.plan()
        worker = fleet.start()
        until(lambda: len(fleet.failures(1)) == 2, "the second throttle")
        left_s = fleet.scalar("select extract(epoch from run_after - now())::float8 from task")
        batches.stop(fleet.conn, batch_id, "cancel")
        assert worker.exit_code() == 0
        assert shop.violations() == {}
    assert fleet.failures(1) == [("throttled", "UsageLimit")] * 2
    assert left_s > 100
    assert fleet.scalar("select cut from egress") == 0


# Bans.


def end_ban(fleet: Fleet, shop: WatchedShop) -> None:
    """For the shop, and for the fleet that cools down."""
    shop.pass_time(LONG_S)
    fleet.conn.execute("update egress set cool_until = now()")


def test_a_ban_page_stops_all_workers_and_nothing_is_sent_during_the_ban(
    fleet: Fleet, shop: WatchedShop
) -> None:
    """Each of the crawls under way may get one ban page."""
    fleet.cafe24(shop, users=12, maxConcurrent=4, coolDownSeconds={"first": LONG_S, "longest": LONG_S})
    fleet.plan(workers=2)
    gate = shop.gate("orders/count", most=4)
    workers = fleet.start_together(2)
    gate.wait(4)
    requests = len(shop.seen())
    shop.switch(ban_s=LONG_S)
    gate.open()
    until(lambda: fleet.scalar("select cut from egress") == 1 and fleet.held() == 0, "the cut")
    tick = fleet.scalar("select tick from fleet")
    until(lambda: fleet.scalar("select tick from fleet") >= tick + 3, "three ticks")
    assert len(shop.seen()) <= requests + 4
    end_ban(fleet, shop)
    assert [worker.exit_code() for worker in workers] == [0, 0]
    assert all_ok(fleet)
    assert fleet.scalar("select cut from egress") == 1
    assert ("blocked", "BanPage") in fleet.all_failures()


def test_after_a_ban_one_crawl_probes_before_the_others_follow(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=8, maxConcurrent=4, coolDownSeconds={"first": LONG_S, "longest": LONG_S})
    fleet.plan(workers=2)
    shop.switch(ban_s=LONG_S)
    workers = [fleet.start(worker_id) for worker_id in range(2)]
    until(lambda: fleet.scalar("select cut from egress") == 1 and fleet.held() == 0, "the cut")
    gate = shop.gate("token", most=1)
    end_ban(fleet, shop)
    gate.wait()
    tick = fleet.scalar("select tick from fleet")
    until(lambda: fleet.scalar("select tick from fleet") >= tick + 3, "three ticks")
    assert fleet.held() == 1
    assert fleet.scalar("select ramp from egress") == 1
    gate.open()
    assert [worker.exit_code() for worker in workers] == [0, 0]
    assert all_ok(fleet)
    assert fleet.scalar("select (ramp, cuts_in_row)::text from egress") == "(,0)"


def test_ten_ban_pages_at_once_are_one_cut(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=10, coolDownSeconds={"first": 1, "longest": 60})
    fleet.plan()
    gate = shop.gate("token", most=10)
    worker = fleet.start()
    gate.wait(10)
    shop.switch(ban_s=0.5)
    gate.open()
    assert worker.exit_code() == 0
    assert fleet.scalar("select cut from egress") == 1
    assert all_ok(fleet)


def test_a_second_ban_while_probing_cools_twice_as_long(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=2, coolDownSeconds={"first": 3, "longest": 60})
    fleet.plan()
    shop.switch(ban_s=600)
    fleet.start()
    cooled_s = "select extract(epoch from cool_until - (select max(at) from failure))::float8 from egress where cut = 2"
    assert 5.3 < until(lambda: fleet.scalar(cooled_s), "the second cut") < 6.9


# Exits.


def test_each_mall_is_only_ever_seen_from_one_exit(
    fleet: Fleet, shop: WatchedShop, proxies: dict[str, HttpProxy]
) -> None:
    shop.switch(throttle_once=True)
    fleet.cafe24(shop, users=8, proxies=urls(proxies))
    fleet.plan()
    fleet.run()
    fleet.plan("next")
    assert fleet.start(CRAWLFLEET_BATCH="next").exit_code() == 0
    seen_from = defaultdict(set)
    for seen in shop.seen():
        seen_from[seen.account].add(seen.egress)
    assert all(len(exits) == 1 for exits in seen_from.values())
    assert set().union(*seen_from.values()) == {"one", "two"}
    assert proxies["one"].refused == proxies["two"].refused == 0
    assert shop.violations() == {}


def test_an_egress_removed_in_mid_run_hands_its_accounts_to_the_other(
    fleet: Fleet, shop: WatchedShop, proxies: dict[str, HttpProxy]
) -> None:
    fleet.cafe24(shop, users=20, maxConcurrent=4, proxies=urls(proxies))
    fleet.plan(workers=2)
    workers = [fleet.start(worker_id) for worker_id in range(2)]
    until(lambda: proxies["one"].requests >= 8, "some crawls through it")
    fleet.cafe24(shop, maxConcurrent=4, proxies={"two": proxies["two"].url})
    until(lambda: _held_by(fleet, "one") == 0, "its running crawls to finish")
    requests = proxies["one"].requests
    assert [worker.exit_code() for worker in workers] == [0, 0]
    assert all_ok(fleet)
    assert proxies["one"].requests == requests
    assert fleet.leases() == 20
    assert fleet.items() == shop.truth(range(1, 21))


def test_an_egress_that_replaces_another_in_mid_run_is_used_by_running_workers(
    fleet: Fleet, shop: WatchedShop, proxies: dict[str, HttpProxy]
) -> None:
    fleet.cafe24(shop, users=20, maxConcurrent=4, proxies={"one": proxies["one"].url})
    fleet.plan()
    gate = shop.gate("orders/count", most=4)
    worker = fleet.start()
    gate.wait(4)
    fleet.cafe24(shop, maxConcurrent=4, proxies={"two": proxies["two"].url})
    gate.open()
    assert worker.exit_code() == 0
    assert all_ok(fleet)
    assert proxies["two"].requests > 0


def test_a_proxy_that_refuses_ends_its_accounts_as_blocked_and_the_other_goes_on(
    fleet: Fleet, shop: WatchedShop, proxies: dict[str, HttpProxy]
) -> None:
    wrong = proxies["one"].url.replace("proxy-password", "wrong-password")
    fleet.cafe24(
        shop,
        users=6,
        maxConcurrent=2,  # one an exit: two that leave by one at once would be one cut and one that cools down
        proxies={"one": wrong, "two": proxies["two"].url},
        coolDownSeconds={"first": 1, "longest": 1},
        budgets={"throttledSeconds": 0},
    )
    fleet.plan()
    fleet.run()
    endings = fleet.tasks()
    through_one = {u for u, exits in _exits(fleet).items() if exits == "one"}
    assert endings == {u: ("dead", "blocked") if u in through_one else ("ok", "ok") for u in range(1, 7)}
    assert len(through_one) == 3
    assert fleet.all_failures() >= {("blocked", "ProxyRefused")}
    assert proxies["one"].requests == 0
    assert fleet.scalar("select cut from egress where name = 'two'") == 0


def test_accounts_of_a_banned_egress_move_to_a_good_one(
    fleet: Fleet, shop: WatchedShop, proxies: dict[str, HttpProxy]
) -> None:
    wrong = proxies["one"].url.replace("proxy-password", "wrong-password")
    fleet.cafe24(
        shop,
        users=8,
        proxies={"one": wrong, "two": proxies["two"].url},
        coolDownSeconds={"first": 1, "longest": 1},
    )
    fleet.plan()
    fleet.run()
    assert all_ok(fleet)
    assert set(_exits(fleet).values()) == {"two"}
    assert len(shop.seen("token")) == 8


def test_a_proxy_that_is_away_is_no_failure_of_the_shop(fleet: Fleet, shop: WatchedShop) -> None:
    with HttpProxy("gone") as gone:
        url = gone.url
    fleet.cafe24(
        shop,
        users=1,
        proxies={"gone": url},
        coolDownSeconds={"first": 1, "longest": 1},
        budgets={"throttledSeconds": 0},
    )
    fleet.plan()
    fleet.run()
    assert fleet.failures(1) == [("blocked", "ProxyRefused")]
    assert shop.seen() == []


def test_each_exit_has_a_pace_of_its_own(fleet: Fleet, shop: WatchedShop) -> None:
    """Four exits: so slow as one a machine is only if it stands still for several seconds."""
    with ExitStack() as stack:
        names = ("one", "two", "three", "four")
        proxies = {name: stack.enter_context(HttpProxy(name, PASSWORD)) for name in names}
        fleet.cafe24(shop, users=16, maxConcurrent=16, requestsPerSecond=4, proxies=urls(proxies))
        fleet.plan()
        gate = shop.gate("token", most=16)
        worker = fleet.start(slots=16)
        gate.wait(16)
        opened_s = time.monotonic()
        gate.open()
        assert worker.exit_code() == 0
    assert all_ok(fleet)
    later = [seen for seen in shop.seen() if seen.what != "token"]
    assert len(later) / (max(seen.at_s for seen in later) - opened_s) > 1.25 * 4
    for name in names:
        assert is_paced([seen.at_s for seen in later if seen.egress == name], 4, opened_s)


def _held_by(fleet: Fleet, egress: str) -> int:
    return int(
        fleet.scalar(
            "select count(*) from permit join egress using (egress_id) where lease_id is not null and name = %s",
            egress,
        )
    )


def _exits(fleet: Fleet) -> dict[int, str]:
    """User id → the egress of its account now."""
    rows = fleet.conn.execute("select user_id, e.name from track join egress e using (egress_id)")
    return dict(rows.fetchall())
