"""What a worker serves: `/healthz` tells progress and not mere life, `/metrics` counts what its crawls met."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Thread
from typing import Self
from urllib.error import HTTPError
from urllib.request import urlopen

import plugin
import pytest
from fleet import CALM, Fleet, WatchedShop, WorkerProcess, until

from crawlfleet.settings import WorkerSettings
from crawlfleet.store.fleet import Clock, set_clock
from crawlfleet.worker import STALLED_S, Worker

BEGAN = 1000.0
PATIENT = Clock(tick_s=3600)
"""Nobody misses a renewal for hours."""
SAMPLE = re.compile(r"(?m)^(crawl\w+(?:\{[^}]*\})?) (\S+)$")


# Health: a worker in this process, on a clock that moves only when the test says so.


class StillWorker:
    """Registered and served; it begins to run when it is told to, or at the end of the block, which drains it."""

    def __init__(self, fleet: Fleet, fleet_clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        self.now = BEGAN
        set_clock(fleet.conn, fleet_clock)
        fleet.noop(users=1)
        fleet.plan()
        fleet.conn.execute("update batch set suspended = true")
        with caplog.at_level("INFO", "crawlfleet.worker"):
            settings = WorkerSettings.from_environment(fleet.environment())
            self._worker = Worker(settings, clock=lambda: self.now)
        self._url = f"http://127.0.0.1:{caplog.records[-1].__dict__['port']}/healthz"
        self._codes: list[int] = []
        self._thread = Thread(target=lambda: self._codes.append(self._worker.run()), daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.now = BEGAN
        if not self._thread.ident:
            self.run()
        self._worker.drain()
        self._thread.join(60)
        assert self._codes == [75]

    def run(self) -> None:
        self._thread.start()

    def health(self) -> int:
        try:
            with urlopen(self._url) as reply:
                return int(reply.status)
        except HTTPError as refused:
            with refused:
                return refused.code


@pytest.mark.parametrize(
    ("fleet_clock", "limit_s"),
    [
        pytest.param(PATIENT, STALLED_S, id="the-loop-does-not-turn"),
        pytest.param(CALM, CALM.stop_after_s, id="permits-are-not-renewed"),
    ],
)
def test_healthz_says_503_after_too_long_without_progress(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, fleet_clock: Clock, limit_s: float
) -> None:
    with StillWorker(fleet, fleet_clock, caplog) as worker:
        worker.now = BEGAN + limit_s - 0.1
        assert worker.health() == 200
        worker.now = BEGAN + limit_s
        assert worker.health() == 503


def test_healthz_says_200_again_once_the_loop_turns(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    with StillWorker(fleet, PATIENT, caplog) as worker:
        worker.now = BEGAN + STALLED_S
        assert worker.health() == 503
        worker.run()
        until(lambda: worker.health() == 200, "a turn", timeout_s=20)


# Metrics, of real workers.


def samples(worker: WorkerProcess) -> dict[str, float]:
    """What it serves now: name with labels → value."""
    with urlopen(f"http://127.0.0.1:{worker.event('metrics served')['port']}/metrics") as reply:
        return {name: float(value) for name, value in SAMPLE.findall(reply.read().decode())}


def counted(worker: WorkerProcess, source: str) -> dict[str, float]:
    """The counters of that source that are not 0, without its label."""
    label = re.compile(f',?source="{source}",?')
    return {
        label.sub("", name).replace("{}", ""): value
        for name, value in samples(worker).items()
        if label.search(name) and value > 0 and not re.search(r"_(bucket|sum|running)\b|pace", name)
    }


def test_metrics_count_what_crawls_met_and_what_they_brought(fleet: Fleet, shop: WatchedShop) -> None:
    shop.switch(throttle_once=True)
    fleet.noop(users=0)
    fleet.add_accounts("noop", [(11, {"duration_s": 600})])
    fleet.cafe24(shop, users=3)
    fleet.plan()
    worker = fleet.start()
    until(lambda: fleet.count("ok") == 3 and samples(worker)["crawlfleet_permits_held"] == 1, "three crawls")
    assert counted(worker, "cafe24") == {
        'crawling_total{status="ok"}': 3,
        'crawling_total{status="throttled"}': 3,
        'crawling_duration_seconds_count{status="ok"}': 3,
        'crawling_duration_seconds_count{status="throttled"}': 3,
        "crawlfleet_items_total": sum(map(len, shop.truth([1, 2, 3]).values())),
        'crawlfleet_throttles_total{scope="account"}': 3,
        'crawlfleet_retries_total{status="throttled"}': 3,
        'crawlfleet_refreshes_total{result="rotated"}': 3,
    }


MOODY = """
from pathlib import Path
from crawlfleet.errors import Blocked, Throttled

class Adapter:
    official_url = None
    def __init__(self, options): self.go = Path(options["go"])
    def check_credentials(self, credentials): pass
    def crawl(self, crawl):
        while not self.go.exists():
            crawl.wait(0.02)
        if crawl.user_id == 1:
            raise Throttled("TooMany", "everybody is too fast")
        if crawl.user_id == 2:
            raise Blocked("BanPage", "go away")
        crawl.wait(600)
        yield
"""


def test_metrics_count_a_cut_once_and_not_as_throttles_of_the_crawls_that_it_ends(
    fleet: Fleet, tmp_path: Path
) -> None:
    options = {"go": str(tmp_path / "go")}
    fleet.declare("moody", adapter="moody", baseURL="http://localhost/", maxConcurrent=3, options=options)
    fleet.add_accounts("moody", [(user_id, {}) for user_id in (1, 2, 3)])
    fleet.plan()
    worker = fleet.start(0, slots=3, **plugin.install(tmp_path / "plugin", "moody", MOODY))
    until(lambda: fleet.held() == 3, "three crawls under way")
    tick = fleet.scalar("select tick from fleet")
    until(lambda: fleet.scalar("select renewed_tick from worker") >= tick + 2, "it to have seen the egress")
    (tmp_path / "go").touch()
    until(lambda: counted(worker, "moody").get("crawlfleet_cuts_seen_total"), "the cut")
    until(lambda: samples(worker)["crawlfleet_permits_held"] == 0, "the last crawl to end")
    assert counted(worker, "moody") == {
        'crawling_total{status="blocked"}': 1,
        'crawling_total{status="throttled"}': 2,
        'crawling_duration_seconds_count{status="blocked"}': 1,
        'crawling_duration_seconds_count{status="throttled"}': 2,
        'crawlfleet_throttles_total{scope="egress"}': 1,
        'crawlfleet_retries_total{status="blocked"}': 1,
        'crawlfleet_retries_total{status="throttled"}': 2,
        "crawlfleet_cuts_seen_total": 1,
    }


@pytest.mark.parametrize(
    ("connection", "operation"),
    [("loop", "turn"), ("heartbeat", "heartbeat"), ("housekeeping", "housekeeping")],
    ids=lambda word: word,
)
def test_metrics_count_each_failure_of_the_database(fleet: Fleet, connection: str, operation: str) -> None:
    fleet.noop(users=1, duration_s=600)
    fleet.plan()
    worker = fleet.start()
    terminate = (
        "select count(pg_terminate_backend(pid)) from pg_stat_activity"
        " where datname = current_database() and application_name = %s"
    )
    name = f'crawlfleet_database_errors_total{{operation="{operation}"}}'
    until(lambda: fleet.scalar(terminate, f"crawlfleet {connection}"), "its connection")
    until(lambda: samples(worker).get(name), "the failure")
