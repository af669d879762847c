"""A worker process from its start to its exit code, on a real database."""

from __future__ import annotations

import json
import signal
from urllib.request import urlopen

import pytest
from fleet import Fleet, WatchedShop, until

from crawlfleet.store import batches


def test_a_worker_ends_with_0_once_its_batch_is_closed(fleet: Fleet) -> None:
    fleet.noop(users=30, items=2)
    fleet.plan()
    fleet.run()
    assert set(fleet.tasks().values()) == {("ok", "ok")}
    assert fleet.scalar("select count(*) from item") == 60
    assert fleet.scalar("select state::text from batch") == "closed"


def test_a_worker_that_comes_late_ends_with_0_at_once(fleet: Fleet) -> None:
    fleet.noop(users=1)
    fleet.plan()
    fleet.run()
    fleet.run()
    assert fleet.leases() == 1


def test_two_workers_share_a_batch_and_crawl_each_account_once(fleet: Fleet) -> None:
    fleet.noop(users=60, cap=20, duration_s=0.4)
    fleet.plan(workers=2)
    workers = fleet.start_together(2, slots=20)
    assert [worker.exit_code() for worker in workers] == [0, 0]
    crawls = [len(worker.events("crawled")) for worker in workers]
    assert sum(crawls) == fleet.leases() == 60
    assert min(crawls) >= 15


def test_sigterm_lets_running_crawls_finish_and_ends_with_75(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=20)
    fleet.plan()
    gate = shop.gate("products", most=5)
    worker = fleet.start(slots=5)
    gate.wait(5)
    worker.send(signal.SIGTERM)
    until(lambda: fleet.scalar("select unable <> '{}' from worker"), "the drain to be told")
    gate.open()
    assert worker.exit_code() == 75
    assert (fleet.count("ok"), fleet.count("ready"), fleet.held()) == (5, 15, 0)
    assert fleet.all_failures() == set()


def test_a_batch_drained_halfway_is_finished_by_the_next_worker(fleet: Fleet) -> None:
    fleet.noop(users=20, duration_s=0.5)
    fleet.plan()
    worker = fleet.start(slots=5)
    until(lambda: fleet.held() == 5, "five crawls under way")
    worker.send(signal.SIGTERM)
    assert worker.exit_code() == 75
    fleet.run(slots=20)
    assert set(fleet.tasks().values()) == {("ok", "ok")}
    assert fleet.leases() == 20


def test_a_crawl_that_outlasts_the_drain_goes_back_to_the_queue_uncharged(fleet: Fleet) -> None:
    fleet.noop(users=1, duration_s=600)
    fleet.plan()
    worker = fleet.start(CRAWLFLEET_DRAIN_SECONDS="1")
    until(lambda: fleet.held() == 1, "the crawl to begin")
    worker.send(signal.SIGTERM)
    assert worker.exit_code() == 75
    assert fleet.failures(1) == [("retry", "Drained")]
    assert fleet.scalar("select retries + crashes from task") == 0
    assert fleet.count("waiting") + fleet.count("ready") == 1  # the housekeeper may have promoted it


def test_drain_ends_one_worker_with_75_and_the_other_goes_on(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=20)
    fleet.plan(workers=2)
    gate = shop.gate("products", most=8)
    drained, other = fleet.start_together(2, slots=4)
    gate.wait(8)
    assert batches.drain(fleet.conn, drained.registration())
    gate.open()
    assert drained.exit_code() == 75
    assert other.exit_code() == 0
    assert fleet.count("ok") == 20
    assert len(drained.events("crawled")) == 4


def test_a_worker_above_the_limit_takes_nothing_and_idles(fleet: Fleet) -> None:
    """A pod that is about to be removed must not begin again after a restart."""
    fleet.noop(users=6, duration_s=0.3)
    batch_id = fleet.plan(workers=2)
    fleet.conn.execute("update batch set worker_limit = 1 where batch_id = %s", (batch_id,))
    above, below = fleet.start(1), fleet.start(0)
    assert below.exit_code() == above.exit_code() == 0
    assert above.events("crawled") == []
    assert len(below.events("crawled")) == 6


def test_a_suspended_batch_begins_when_it_is_resumed(fleet: Fleet) -> None:
    fleet.noop(users=2)
    fleet.plan()
    fleet.conn.execute("update batch set suspended = true")
    worker = fleet.start()
    worker.registration()
    tick = fleet.scalar("select tick from fleet")
    until(lambda: fleet.scalar("select tick from fleet") >= tick + 2, "two ticks")
    assert fleet.leases() == 0
    fleet.conn.execute("update batch set suspended = false")
    assert worker.exit_code() == 0
    assert fleet.count("ok") == 2


def test_cancel_stops_running_crawls_and_closes_the_batch(fleet: Fleet) -> None:
    fleet.noop(users=8, duration_s=600)
    batch_id = fleet.plan()
    worker = fleet.start(slots=4)
    until(lambda: fleet.held() == 4, "four crawls under way")
    batches.stop(fleet.conn, batch_id, "cancel")
    assert worker.exit_code() == 0
    assert fleet.count("cancelled") == 8


@pytest.mark.parametrize(
    ("changes", "variable", "word"),
    [
        ({"CRAWLFLEET_DATABASE_URL": None}, "CRAWLFLEET_DATABASE_URL", "not set"),
        ({"CRAWLFLEET_BATCH": None}, "CRAWLFLEET_BATCH", "not set"),
        ({"CRAWLFLEET_BATCH": "unheard-of"}, "CRAWLFLEET_BATCH", "no batch"),
        ({"CRAWLFLEET_KEYS_FILE": None}, "CRAWLFLEET_KEYS_FILE", "not set"),
        ({"CRAWLFLEET_KEYS_FILE": "/nonexistent/keys"}, "/nonexistent/keys", "does not exist"),
        ({"WORKER_ID": None}, "WORKER_ID", "whole number"),
        ({"WORKER_ID": "one"}, "WORKER_ID", "whole number"),
        ({"WORKER_ID": "-1"}, "WORKER_ID", "whole number"),
        ({"MAX_CONCURRENT": "0"}, "MAX_CONCURRENT", "from 1"),
        ({"MAX_CONCURRENT": "many"}, "MAX_CONCURRENT", "whole number"),
        ({"CRAWLFLEET_METRICS_PORT": "70000"}, "CRAWLFLEET_METRICS_PORT", "65535"),
        ({"CRAWLFLEET_MEMORY_MB": "1.5"}, "CRAWLFLEET_MEMORY_MB", "whole number"),
        ({"CRAWLFLEET_DRAIN_SECONDS": "soon"}, "CRAWLFLEET_DRAIN_SECONDS", "whole number"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_environment_ends_with_78_and_names_what_is_wrong(
    fleet: Fleet, changes: dict[str, str | None], variable: str, word: str
) -> None:
    fleet.noop(users=1)
    fleet.plan()
    worker = fleet.start(0, slots=10, **changes)
    assert worker.exit_code() == 78
    assert variable in worker.text()
    assert word in worker.text()
    assert "Traceback" not in worker.text()


def test_a_key_file_without_a_key_ends_with_78_and_names_the_file(fleet: Fleet) -> None:
    fleet.noop(users=1)
    fleet.plan()
    (fleet.folder / "empty").write_text("# no key yet\n")
    worker = fleet.start(CRAWLFLEET_KEYS_FILE=str(fleet.folder / "empty"))
    assert worker.exit_code() == 78
    assert str(fleet.folder / "empty") in worker.text()


def test_a_key_ring_that_lacks_the_accounts_key_stops_the_worker_instead_of_parking_accounts(
    fleet: Fleet,
) -> None:
    """A wrong Secret in the cluster must not end a thousand sellers as `auth`."""
    fleet.noop(users=3)
    fleet.plan()
    other = fleet.folder / "other"
    other.write_text(type(fleet.keys).new_key() + "\n")
    worker = fleet.start(CRAWLFLEET_KEYS_FILE=str(other))
    assert worker.exit_code() == 78
    assert str(other) in worker.text()
    assert fleet.scalar("select count(*) from account where state <> 'ok'") == 0


def test_an_unreachable_database_at_the_start_is_one_readable_message(fleet: Fleet) -> None:
    worker = fleet.start(CRAWLFLEET_DATABASE_URL="postgresql:///x?host=/nonexistent")
    assert worker.exit_code() == 1
    assert "cannot reach the database" in worker.text()
    assert "Traceback" not in worker.text()


def test_json_logs_have_one_event_a_crawl(fleet: Fleet) -> None:
    fleet.noop(users=12)
    fleet.plan()
    fleet.run()
    events = [json.loads(line) for line in fleet.workers[0].text().splitlines()]
    crawled = [event for event in events if event["event"] == "crawled"]
    assert sorted(event["user_id"] for event in crawled) == list(range(1, 13))
    assert {(event["verdict"], event["source"], event["task"]) for event in crawled} == {("ok", "noop", "ok")}
    assert all(event["at"] and event["level"] for event in events)


def test_metrics_count_the_crawls_and_healthz_says_well(fleet: Fleet) -> None:
    fleet.noop(users=4, duration_s=600)
    fleet.add_accounts("noop", [(user_id, {"duration_s": 0}) for user_id in range(11, 16)])
    fleet.plan()
    port = fleet.start().event("metrics served")["port"]
    until(lambda: fleet.count("ok") == 5 and fleet.held() == 4, "the short crawls to end")
    with urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    assert 'crawling_total{source="noop",status="ok"} 5.0' in lines
    assert "crawlfleet_permits_held 4.0" in lines
    with urlopen(f"http://127.0.0.1:{port}/healthz") as reply:
        assert reply.status == 200


def test_a_worker_above_its_memory_ceiling_takes_nothing_and_ends_for_a_new_process(fleet: Fleet) -> None:
    fleet.noop(users=1)
    fleet.plan()
    assert fleet.start(CRAWLFLEET_MEMORY_MB="1").exit_code() == 74
    assert fleet.leases() == 0
    fleet.run()
    assert fleet.count("ok") == 1
