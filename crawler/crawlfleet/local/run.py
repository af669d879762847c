"""`crawlfleet run`: manifests on a local fleet, to the end, with the same planner, store and worker as the pods."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
from rich.console import Console

from crawlfleet.apply import check_namesakes, local_plan, plan_batch
from crawlfleet.browser import preflight
from crawlfleet.errors import CrawlfleetError, DatabaseUnavailable
from crawlfleet.local.fleet import LocalFleet, bury_strangers
from crawlfleet.local.postgres import EmbeddedPostgres
from crawlfleet.local.shops import Shop
from crawlfleet.local.view import Look, PlainView, say, tell, view
from crawlfleet.local.watch import CHANGED, CLOSED_ALREADY, OPEN, summary, waits_for
from crawlfleet.manifests import CrawlBatch, Manifests
from crawlfleet.progress import ALL_SUCCEEDED, Rate, by_source, progress
from crawlfleet.settings import ChromeSettings
from crawlfleet.sources import needs_browser
from crawlfleet.store import batches, fleet
from crawlfleet.store.connection import Connection, connect, transaction

LOOK_S = 0.25
DRAINS = "running crawls to end (draining)"
DRAINED = "nothing, since every worker has drained"
ALL_DRAINED = "every worker was drained by `crawlfleet drain`; the same command starts new ones and goes on"
DRAINING = "draining: running crawls end, nothing new begins; Ctrl-C again stops at once"
SHOP_DIED = (
    "{}: the stand-in shop was ended by somebody: every crawl fails from now on; Ctrl-C, then run again"
)
LOST = (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnavailable)

Summary = dict[str, Any]


class Interrupt:
    """Ctrl-C and SIGTERM. While a batch runs, the first one drains and the second one stops at once
    (KeyboardInterrupt); before and after, the first one stops. What comes later is too late to matter.
    """

    def __init__(self) -> None:
        self.count = 0
        self._drains = False

    def __call__(self, _: int, __: FrameType | None) -> None:
        self.count += 1
        if self.count == (2 if self._drains else 1):
            raise KeyboardInterrupt

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals."""
        before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def draining(self) -> Iterator[None]:
        """A batch runs: the first one drains."""
        self._drains = True
        try:
            yield
        finally:
            self._drains = False


@dataclass(frozen=True)
class LocalRun:
    """What every batch of one `run` shares. `postgres` is None if the database is not ours.

    `command` builds a command line for this place, `again` is the one that runs this again.
    """

    database_url: str
    keys_file: Path
    log_dir: Path
    console: Console
    postgres: EmbeddedPostgres | None
    shops: Sequence[Shop]
    command: Callable[..., str]
    again: str
    workers: int | None = None


def run_batches(run: LocalRun, manifests: Manifests, interrupt: Interrupt) -> Iterator[Summary]:
    """Run the manifests' batches one after another, until one is interrupted; yields each one's summary."""
    with connect(run.database_url, "crawlfleet run") as conn:
        for batch in manifests.batches:
            plan = local_plan(batch, manifests)
            if check_namesakes(conn, plan, cancel=run.command("cancel", plan.name)):
                say(run.console, CHANGED.format(plan.name))
    for batch in manifests.batches:
        yield run_batch(run, manifests, batch, interrupt)
        if interrupt.count:
            return


def exit_code(told: Sequence[Summary]) -> int:
    """0 every task ok, 3 ended with failures, 1 a batch is still open."""
    if any(summed["state"] == OPEN for summed in told):
        return 1
    return 0 if all(summed["reason"] == ALL_SUCCEEDED for summed in told) else 3


def run_batch(run: LocalRun, manifests: Manifests, batch: CrawlBatch, interrupt: Interrupt) -> Summary:
    """Plan the batch and run it to its end, or a drain: its summary, also told. A closed batch is only told."""
    plan = local_plan(batch, manifests)
    workers = run.workers or batch.spec.workers
    with connect(run.database_url, "crawlfleet run") as conn:
        batch_id = plan_batch(conn, plan, workers)
        if run.postgres is not None:
            bury_strangers(conn, batch_id)
        fleet.recount(conn, batch_id)
        if _find(conn, plan.uid).state == "closed":
            say(run.console, CLOSED_ALREADY.format(plan.name))
            return _told(run, conn, plan.uid)
    chrome = any(needs_browser(manifests.sources[name].spec.adapter) for name in batch.spec.sources)
    if chrome:
        preflight.inspect(ChromeSettings.from_environment(os.environ))
    local_fleet = LocalFleet(
        database_url=run.database_url,
        keys_file=run.keys_file,
        batch_uid=plan.uid,
        batch_id=batch_id,
        workers=workers,
        max_concurrent=batch.spec.max_concurrent,
        log_dir=run.log_dir / plan.name,
        chrome=chrome,
    )
    _run_fleet(run, local_fleet, plan.uid, interrupt)
    with _connected(run) as conn:
        local_fleet.bury(conn)
        fleet.housekeep(conn)  # what the buried held is ready again
        fleet.recount(conn, batch_id)
        if local_fleet.has_drained() and not interrupt.count and _find(conn, plan.uid).state != "closed":
            say(run.console, ALL_DRAINED)
        return _told(run, conn, plan.uid)


def _run_fleet(run: LocalRun, local_fleet: LocalFleet, uid: str, interrupt: Interrupt) -> None:
    """Until all workers have ended; none is left, however this ends."""
    try:
        with interrupt.draining(), view(run.console) as shown:
            _Watch(run, local_fleet, uid, shown).until_the_end(interrupt)
    except KeyboardInterrupt:
        say(run.console, "stopped at once: what the running crawls had read is crawled again next time")
    finally:
        local_fleet.kill()


def _told(run: LocalRun, conn: Connection, uid: str) -> Summary:
    batch = _find(conn, uid)
    summed = summary(conn, batch)
    failures = batches.failures(conn, batch.batch_id)
    tell(run.console, summed, failures, run.command, run.again, run.log_dir / batch.name)
    return summed


def _find(conn: Connection, uid: str) -> batches.Batch:
    found = batches.find(conn, uid)
    if found is None:
        raise CrawlfleetError(f"batch {uid} is gone from the database; run it again")
    return found


def _connected(run: LocalRun) -> Connection:
    """A connection; if our server was killed just now, it is started again first."""
    try:
        return connect(run.database_url, "crawlfleet run")
    except DatabaseUnavailable:
        if run.postgres is None or run.postgres.poll():
            raise
    run.postgres.restart()
    return connect(run.database_url, "crawlfleet run")


class _Watch:
    """Looks at the batch, tends the workers and the database."""

    def __init__(self, run: LocalRun, local_fleet: LocalFleet, uid: str, shown: PlainView) -> None:
        self._run = run
        self._fleet = local_fleet
        self._uid = uid
        self._view = shown
        self._rate = Rate()
        self._conn: Connection | None = None
        self._said: set[str] = set()
        self._drains = False

    def until_the_end(self, interrupt: Interrupt) -> None:
        """Until no worker lives and none has to be restarted."""
        try:
            while self._fleet.is_needed():
                self._look()
                if interrupt.count and not self._drains:
                    self._drains = True
                    self._view.say(DRAINING)
                    self._fleet.drain()
                time.sleep(LOOK_S)
            self._look()
        finally:
            self._disconnect()

    def _look(self) -> None:
        """Once around. Without a database nothing can be tended: workers that end wait for it, too."""
        try:
            self._conn = self._conn or connect(self._run.database_url, "crawlfleet watch")
            for loss in self._fleet.tend(self._conn):
                self._view.say(loss)
            self._view.show(self._see(self._conn))
            self._said.discard("database")
        except LOST as exc:
            self._disconnect()
            self._revive(exc)
        for shop in self._run.shops:
            if shop.has_died():
                self._say_once(f"shop {shop.source}", SHOP_DIED.format(shop.source))
        if self._run.postgres and (full := self._run.postgres.full_disk()):
            self._say_once("disk", f"{full} Make room: the run waits for it.")

    def _disconnect(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _see(self, conn: Connection) -> Look:
        batch = _find(conn, self._uid)
        if self._fleet.alive() == 0:  # nobody is left who counts
            fleet.recount(conn, batch.batch_id)
        with transaction(conn):
            counts = batches.counts(conn, batch.batch_id)
            waits = batches.waits(conn, batch.batch_id)
            next_retry_s = batches.next_retry_s(conn, batch.batch_id)
        p = progress(counts)
        return Look(
            batch.name,
            p,
            by_source(counts),
            rate=self._rate.add(time.monotonic(), p.crawled),
            waits_for=self._waits_for(counts, waits, next_retry_s, batch.stop),
            workers=self._fleet.alive(),
            seconds=batch.seconds or 0.0,
        )

    def _waits_for(
        self, counts: batches.Counts, waits: list[batches.Wait], next_retry_s: float | None, stop: str
    ) -> str:
        if progress(counts).open and not self._fleet.is_needed():
            return DRAINED
        return DRAINS if self._drains else waits_for(counts, waits, next_retry_s, stop)

    def _revive(self, exc: Exception) -> None:
        """The database is away. If it is ours and was killed, start it again; otherwise it will come back."""
        if self._run.postgres is not None and not self._run.postgres.poll():
            self._view.say("PostgreSQL was killed; starting it again")
            self._run.postgres.restart()
        else:
            words = " ".join(str(exc).split())
            self._say_once("database", f"the database does not answer, waiting for it: {words}")

    def _say_once(self, what: str, text: str) -> None:
        """Tell an event of this kind unless it was told."""
        if what not in self._said:
            self._said.add(what)
            self._view.say(text)
