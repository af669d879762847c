"""What kills, pauses, cuts and silence do to a fleet of real workers: nothing is lost, nothing is done twice."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plugin
import pytest
from fleet import PAUSABLE, Fleet, WatchedShop, until
from pg_proxy import PgProxy

from crawlfleet.store import fleet as store
from crawlfleet.store.fleet import Clock

TAKING = "nextval('lease_id')"
COMMITTING = "state = case when d.state"
READ_BACK = (
    "select count(*) > 0 from pg_stat_activity where datname = current_database()"
    " and application_name = 'crawlfleet loop' and state = 'idle' and query = 'commit'"
)
WAITING = (
    "create function wait() returns trigger language plpgsql as"
    " $$ begin perform pg_advisory_xact_lock_shared(42); return null; end $$"
)
TERMINATE = (
    "select count(pg_terminate_backend(pid)) from pg_stat_activity"
    " where datname = current_database() and application_name like 'crawlfleet%%'"
)


@pytest.fixture
def proxy(database_url: str, open_dir: Path) -> Iterator[PgProxy]:
    """Stands between the workers that are told its URL and the database."""
    with PgProxy(database_url, open_dir) as proxy:
        yield proxy


def all_ok(fleet: Fleet) -> bool:
    return set(fleet.tasks().values()) == {("ok", "ok")}


# Rude adapters.

RUDE = """
from crawlfleet.errors import Bug, CrawlEnded, Retry
from crawlfleet.sources import Item

class Wordless(CrawlEnded):
    pass

class Adapter:
    official_url = None
    def __init__(self, options): self.how = options["how"]
    def check_credentials(self, credentials): pass
    def crawl(self, crawl):
        if crawl.user_id == 1:
            raise {
                "NUL": Retry("a\\x00b", "c\\x00d"),
                "surrogate": Retry("a\\ud800b", "c\\ud800d"),
                "no text": Retry("X", ValueError("boom")),
                "bytes": Bug("X", "y", snapshot=b"bytes"),
                "no verdict": Wordless("X"),
                "not a number": Retry("X", retry_after_s="soon"),
                "endless": Retry("X", retry_after_s=float("inf")),
                "exit": SystemExit(1),
                "secret": Bug("Reason-" + crawl.credentials["token"]),
            }[self.how]
        yield Item("item", "1", {})
"""


@pytest.mark.parametrize(
    "how",
    ["NUL", "surrogate", "no text", "bytes", "no verdict", "not a number", "endless", "exit", "secret"],
)
def test_an_adapter_that_ends_rudely_harms_only_its_own_crawl(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    environment = plugin.install(tmp_path / "plugin", "rude", RUDE)
    monkeypatch.syspath_prepend(environment["PYTHONPATH"])
    fleet.declare("rude", adapter="rude", maxConcurrent=5, options={"how": how}, budgets={"retry": 0})
    fleet.add_accounts("rude", [(user, {"token": "planted-secret"}) for user in range(1, 6)])
    fleet.plan()
    worker = fleet.start(0, slots=5, **environment)
    assert worker.exit_code() == 0
    assert fleet.count("ok") == 4
    assert fleet.tasks()[1][0] == "dead"
    assert "planted-secret" not in worker.text() + fleet.failures(1)[0][1]


# Death.


def test_a_killed_workers_crawls_are_rescued_and_done_by_the_next(fleet: Fleet) -> None:
    """Nobody tells the fleet of this death: ticks do."""
    fleet.noop(users=8, items=1, duration_s=1)
    fleet.plan()
    worker = fleet.start(slots=4)
    until(lambda: fleet.held() == 4, "four crawls under way")
    worker.kill()
    fleet.expire()
    fleet.run(slots=8)
    assert all_ok(fleet)
    assert fleet.leases() == 8 + 4
    assert fleet.all_failures() == {("crashed", "WorkerLost")}


def test_a_buried_workers_crawls_need_no_quarantine(database_url: str, tmp_path: Path) -> None:
    """Its parent saw it end, so a local run does not wait minutes for the permits of a killed worker."""
    with Fleet(database_url, tmp_path, Clock(tick_s=5, expire_ticks=6, quarantine_ticks=100)) as fleet:
        fleet.noop(users=4, duration_s=1)
        fleet.plan()
        worker = fleet.start()
        until(lambda: fleet.held() == 4, "four crawls under way")
        fleet.bury(worker)
        fleet.run()
        assert all_ok(fleet)


def test_an_account_whose_crawl_always_kills_the_worker_ends_dead(fleet: Fleet) -> None:
    fleet.declare(
        "noop", adapter="noop", maxConcurrent=1, options={"duration_s": 600}, budgets={"crashed": 1}
    )
    fleet.add_accounts("noop", [(1, {})])
    fleet.plan()
    for _ in range(2):
        worker = fleet.start()
        until(lambda: fleet.held() == 1, "the crawl to begin")
        fleet.bury(worker)
        store.housekeep(fleet.conn)
    assert fleet.tasks() == {1: ("dead", "crashed")}
    fleet.run()


# Silence.


def test_a_worker_paused_beyond_its_deadline_sends_nothing_more_and_ends_with_74(
    fleet: Fleet, shop: WatchedShop, tmp_path: Path
) -> None:
    fleet.cafe24(shop, users=3)
    fleet.plan()
    gate = shop.gate("orders/count", most=3)
    paused = fleet.start(program=PAUSABLE, LATER=str(tmp_path / "later"))
    gate.wait(3)
    paused.send(signal.SIGSTOP)
    gate.open()
    fleet.expire()
    fleet.run()
    assert all_ok(fleet)
    requests = len(shop.seen())
    (tmp_path / "later").touch()
    paused.send(signal.SIGCONT)
    assert paused.exit_code() == 74
    assert len(shop.seen()) == requests
    assert len(shop.seen("token")) == 3
    assert shop.violations() == {}


def test_a_worker_paused_for_less_goes_on_and_nothing_is_doubled(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=3)
    fleet.plan()
    gate = shop.gate("orders/count", most=3)
    worker = fleet.start()
    gate.wait(3)
    worker.send(signal.SIGSTOP)
    gate.open()
    tick = fleet.scalar("select tick from fleet")
    until(lambda: store.housekeep(fleet.conn) and fleet.scalar("select tick from fleet") >= tick + 4, "ticks")
    worker.send(signal.SIGCONT)
    assert worker.exit_code() == 0
    assert fleet.leases() == 3
    assert len(shop.seen()) == 3 * len(shop.seen(account="demo1"))
    assert fleet.items() == shop.truth([1, 2, 3])


def test_a_worker_without_a_database_stops_at_its_deadline_and_ends_with_74(
    fleet: Fleet, proxy: PgProxy, tmp_path: Path
) -> None:
    """Which comes two ticks before its permits expire."""
    fleet.noop(users=4, duration_s=600)
    fleet.plan()
    later = tmp_path / "later"
    worker = fleet.start(program=PAUSABLE, LATER=str(later), CRAWLFLEET_DATABASE_URL=proxy.url)
    until(lambda: fleet.held() == 4, "four crawls under way")
    proxy.refuse()
    later.touch()
    assert worker.exit_code() == 74
    assert worker.events("worker stops itself")


def test_a_database_outage_shorter_than_the_deadline_costs_nothing(fleet: Fleet, proxy: PgProxy) -> None:
    fleet.noop(users=30, items=1, duration_s=0.5)
    fleet.plan()
    worker = fleet.start(CRAWLFLEET_DATABASE_URL=proxy.url)
    until(lambda: fleet.held() == 10, "ten crawls under way")
    proxy.refuse()
    until(lambda: worker.events("turn failed, will reconnect"), "the worker to notice")
    proxy.admit()
    assert worker.exit_code() == 0
    assert all_ok(fleet)
    assert fleet.leases() == 30
    assert fleet.scalar("select count(*) from item") == 30


def test_a_worker_whose_registration_was_ended_stops_with_74(fleet: Fleet) -> None:
    fleet.noop(users=4, duration_s=600)
    fleet.plan()
    worker = fleet.start()
    until(lambda: fleet.held() == 4, "four crawls under way")
    fleet.conn.execute("update worker set ended_at = now()")
    assert worker.exit_code() == 74


def test_a_drained_worker_without_a_database_still_ends(fleet: Fleet, proxy: PgProxy, tmp_path: Path) -> None:
    fleet.noop(users=4, duration_s=600)
    fleet.plan()
    later = tmp_path / "later"
    worker = fleet.start(program=PAUSABLE, LATER=str(later), CRAWLFLEET_DATABASE_URL=proxy.url)
    until(lambda: fleet.held() == 4, "four crawls under way")
    proxy.refuse()
    worker.send(signal.SIGTERM)
    later.touch()
    assert worker.exit_code() == 74


def test_a_crawl_whose_items_are_written_slowly_keeps_its_permit(fleet: Fleet) -> None:
    """Renewing skips rows that a commit is freeing; one that is only being written for must not be skipped."""
    with WatchedShop(orders_per_mall=600) as shop:
        fleet.cafe24(shop, users=1)
        fleet.plan()
        fleet.conn.execute(WAITING)
        fleet.conn.execute(
            "create trigger slow before insert on item for each statement execute function wait()"
        )
        renewed = "select renewed_tick from permit where lease_id is not null"
        with fleet.locked("select pg_advisory_xact_lock(42)"):
            worker = fleet.start()
            until(fleet.blocked_backends, "a chunk to be written")
            tick = fleet.scalar("select tick from fleet")
            until(lambda: fleet.scalar(renewed) > tick + 1, "its permit to be renewed")
        assert worker.exit_code() == 0
    assert fleet.leases() == 1
    assert fleet.all_failures() == set()


# Hung crawls.

STUBBORN = """
from pathlib import Path
from threading import Event

class Adapter:
    official_url = None
    def __init__(self, options): self.go = Path(options["go"])
    def check_credentials(self, credentials): pass
    def crawl(self, crawl):
        if crawl.source == "stubborn":
            Event().wait()
        while not self.go.exists():
            crawl.wait(0.02)
        yield from ()
"""


def test_a_worker_whose_crawl_hangs_in_its_adapter_takes_no_more_and_ends_with_74(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Nothing in the process can end such a thread. Its neighbour is finished first, however long that takes."""
    go = tmp_path / "go"
    spec: dict[str, Any] = {"adapter": "stubborn", "maxConcurrent": 1, "options": {"go": str(go)}}
    fleet.declare("stubborn", baseURL="http://localhost/", jobTimeoutSeconds=1, **spec)
    fleet.declare("willing", baseURL="http://127.0.0.1/", **spec)
    fleet.add_accounts("stubborn", [(1, {})])
    fleet.add_accounts("willing", [(2, {}), (3, {})])
    fleet.plan()
    worker = fleet.start(0, slots=4, **plugin.install(tmp_path / "plugin", "stubborn", STUBBORN))
    worker.event("a crawl does not end; this worker takes no more")
    until(lambda: fleet.scalar("select unable <> '{}' from worker"), "it to leave its part to others")
    tick = fleet.scalar("select tick from fleet")
    until(lambda: store.housekeep(fleet.conn) and fleet.scalar("select tick from fleet") >= tick + 4, "turns")
    go.touch()
    assert worker.exit_code() == 74
    assert Counter(fleet.tasks().values()) == {("leased", None): 1, ("ok", "ok"): 1, ("ready", None): 1}
    assert fleet.leases() == 2


# Lost replies and cut connections.


def test_a_commit_whose_reply_is_lost_is_neither_lost_nor_doubled(fleet: Fleet, proxy: PgProxy) -> None:
    fleet.noop(users=30, cap=5, items=3, duration_s=0.2)
    fleet.plan()
    proxy.lose(COMMITTING, times=3)
    worker = fleet.start(slots=5, CRAWLFLEET_DATABASE_URL=proxy.url)
    assert worker.exit_code() == 0
    assert proxy.lost == 3
    assert all_ok(fleet)
    assert fleet.leases() == 30
    assert fleet.scalar("select count(*) from item") == 90
    assert fleet.scalar("select sum(retries + crashes) from task") == 0


def test_a_take_whose_reply_is_lost_is_adopted(fleet: Fleet, proxy: PgProxy) -> None:
    """Otherwise its permits would wait for their expiry, and its tasks be charged a crash."""
    fleet.noop(users=10, duration_s=0.2)
    fleet.plan()
    proxy.lose(TAKING)
    worker = fleet.start(CRAWLFLEET_DATABASE_URL=proxy.url)
    assert worker.exit_code() == 0
    assert proxy.lost == 1
    assert all_ok(fleet)
    assert fleet.leases() == 10
    assert fleet.all_failures() == set()


def test_a_renewal_whose_reply_is_lost_harms_nobody(fleet: Fleet, proxy: PgProxy) -> None:
    fleet.noop(users=5, duration_s=2)
    fleet.plan()
    proxy.lose("set renewed_tick = f.tick", times=2)
    assert fleet.start(CRAWLFLEET_DATABASE_URL=proxy.url).exit_code() == 0
    assert proxy.lost == 2
    assert fleet.leases() == 5


def test_a_commit_that_takes_effect_after_its_worker_gave_it_up_is_not_doubled(
    fleet: Fleet, proxy: PgProxy
) -> None:
    """The cut comes while the server still commits: what is read back then is older than the commit."""
    fleet.noop(users=5, items=1, duration_s=0.2)
    fleet.plan()
    _commit_slowly(fleet, "item")
    with fleet.locked("select pg_advisory_xact_lock(42)"):
        worker = fleet.start(CRAWLFLEET_DATABASE_URL=proxy.url)
        until(lambda: fleet.blocked_backends() >= 1, "a commit that hangs")
        proxy.refuse()
        proxy.admit()
        until(lambda: worker.events("turn failed, will reconnect"), "the worker to reconnect")
        until(lambda: fleet.blocked_backends() >= 2, "the second try to wait for the first")
    assert worker.exit_code() == 0
    assert all_ok(fleet)
    assert fleet.leases() == 5
    assert fleet.scalar("select count(*) from item") == 5


def test_a_take_that_takes_effect_after_its_worker_gave_it_up_is_rescued(
    fleet: Fleet, proxy: PgProxy
) -> None:
    """The worker never learns of these permits and does not renew them: as if that were long ago already."""
    fleet.noop(users=3)
    fleet.plan()
    _commit_slowly(fleet, "permit")
    with fleet.locked("select pg_advisory_xact_lock(42)"):
        worker = fleet.start(CRAWLFLEET_DATABASE_URL=proxy.url)
        until(lambda: fleet.blocked_backends() >= 1, "a take that hangs")
        proxy.refuse()
        proxy.admit()
        until(lambda: fleet.scalar(READ_BACK), "the worker to reconnect and read back what it holds")
    until(lambda: fleet.held() == 3, "the take to take effect")
    fleet.conn.execute("update permit set renewed_tick = -1000 where lease_id is not null")
    assert worker.exit_code() == 0
    assert all_ok(fleet)
    assert fleet.leases() == 6
    assert fleet.all_failures() == {("crashed", "WorkerLost")}


def _commit_slowly(fleet: Fleet, table: str) -> None:
    """Commits that wrote to `table` wait for the advisory lock 42."""
    fleet.conn.execute(WAITING)
    fleet.conn.execute(
        f"create constraint trigger slow after insert or update on {table} deferrable initially deferred"
        " for each row execute function wait()"
    )


def test_a_run_whose_backends_are_all_terminated_again_and_again_ends_complete(fleet: Fleet) -> None:
    fleet.noop(users=60, cap=10, items=2, duration_s=0.3)
    fleet.plan(workers=2)
    workers = [fleet.start(i, slots=5) for i in range(2)]
    for done in (5, 15, 25, 35):
        until(lambda done=done: fleet.count("ok") >= done, f"{done} tasks done")  # type: ignore[misc]
        assert fleet.scalar(TERMINATE) > 0
    assert [worker.exit_code() for worker in workers] == [0, 0]
    assert all_ok(fleet)
    assert fleet.scalar("select count(*) from item") == 120
    assert fleet.scalar("select sum(retries + crashes) from task") == 0


def test_a_crawl_that_loses_its_database_connection_is_begun_again_uncharged(
    fleet: Fleet, shop: WatchedShop
) -> None:
    """Here the crawls use the database themselves, for the pace of each request."""
    fleet.cafe24(shop, users=12, requestsPerSecond=20)
    fleet.plan()
    worker = fleet.start()
    for requests in (10, 25):
        until(lambda requests=requests: len(shop.seen()) >= requests, f"{requests} requests")  # type: ignore[misc]
        fleet.scalar(TERMINATE)
    assert worker.exit_code() == 0
    assert all_ok(fleet)
    assert fleet.scalar("select sum(retries + crashes) from task") == 0
    assert fleet.items() == shop.truth(range(1, 13))
    assert shop.violations() == {}


# Data that cannot be taken.


def test_of_twenty_crawls_the_one_with_a_poisoned_record_ends_bug(fleet: Fleet, shop: WatchedShop) -> None:
    """All twenty are committed in few turns; the culprit must not hold back the others."""
    shop.switch_account("demo7", poison_record=True)
    fleet.cafe24(shop, users=20, maxConcurrent=20)
    fleet.plan()
    gate = shop.gate("products")
    worker = fleet.start(slots=20)
    gate.wait(20)
    gate.open()
    assert worker.exit_code() == 0
    assert fleet.tasks() == {u: ("dead", "bug") if u == 7 else ("ok", "ok") for u in range(1, 21)}
    assert fleet.failures(7) == [("bug", "RefusedByDatabase")]
    assert fleet.items() == shop.truth(u for u in range(1, 21) if u != 7)
    assert fleet.leases() == 20


def test_a_poisoned_record_in_a_chunk_written_ahead_ends_bug(fleet: Fleet) -> None:
    with WatchedShop(orders_per_mall=1200) as shop:
        shop.switch(poison_record=True)
        fleet.cafe24(shop, users=1)
        fleet.plan()
        fleet.run()
    assert fleet.failures(1) == [("bug", "RefusedByDatabase")]
