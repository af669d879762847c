"""The worker: take, crawl, commit.

The *loop* (main thread) turns: each turn is one transaction that commits what finished and takes what there is room for.
*Slots* (`slots.py`) crawl; the *heartbeat* and the *watchdog* (`vitals.py`) see to it that this process may still work; the
*housekeeper* does the fleet's chores whenever no other worker is at them; the *browsers* thread looks after Chrome, if a source
needs one. Loop, heartbeat and housekeeper have a connection each, slots share a small pool.

It decides nothing about tasks or egresses itself: `verdicts`, `politeness` and the SQL of `store` do.
"""

from __future__ import annotations

import ctypes
import logging
import queue
import random
import resource
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING

import psycopg

from crawlfleet import __version__, metrics
from crawlfleet.crawl import boottime
from crawlfleet.credentials import KeyRing
from crawlfleet.errors import (
    CLOSED,
    DRAINED,
    STOPPED_ITSELF,
    BadConfiguration,
    ChromeUnusable,
    DatabaseUnavailable,
    Interrupted,
    Verdict,
)
from crawlfleet.keys import check_keys
from crawlfleet.leases import Leases
from crawlfleet.serving import Server
from crawlfleet.settings import WorkerSettings
from crawlfleet.slots import Exits, Slots, batch_sources
from crawlfleet.store import batches, fleet, turn
from crawlfleet.store.batches import Batch
from crawlfleet.store.connection import (
    Connection,
    Reconnecting,
    check_durability,
    connect,
    first_line,
    is_refused_data,
    pool,
    transaction,
)
from crawlfleet.store.migrations import check_schema
from crawlfleet.store.turn import Finished, Identity, Lease
from crawlfleet.vitals import Vitals

if TYPE_CHECKING:
    from crawlfleet.browser.pool import Pool

log = logging.getLogger(__name__)

POLL_S = (0.1, 1.0)
"""Between turns without work: from the first to the longest, doubling, with jitter."""
STALLED_S = 60.0
"""A loop that did not turn for so long is not well: longer than any statement of a turn may take."""
CRAWL_CONNECTIONS = 4
TEND_S = 1.0
_M_ARENA_MAX = -8  # glibc's malloc.h
TRIES = 5
TRY_AGAIN = ("40001", "40P01", "23505")
"""Another worker was at the same rows: a serialisation failure, a deadlock, the same account in two batches."""


class Worker:
    """One registration of one process. `run` returns the exit code."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        """Register. Raises CrawlfleetError if there is no such batch, schema, key ring or database."""
        self._settings = settings
        self._random = rng or random.Random()  # noqa: S311  jitter, not secrets
        self._clock = clock
        self._stopping = False
        self._committing: list[Finished] = []
        self._poll_s = POLL_S[0]
        self._turned_at = clock()
        self._chores_due = threading.Event()
        self._leases = Leases()
        with connect(settings.database_url, "crawlfleet worker") as conn:
            self._begin(conn, KeyRing.load(settings.keys_file))

    def _begin(self, conn: Connection, keys: KeyRing) -> None:
        check_schema(conn, or_newer=True)
        check_durability(conn)
        batch = batches.find(conn, self._settings.batch)
        if batch is None:
            raise BadConfiguration(
                f"CRAWLFLEET_BATCH: there is no batch {self._settings.batch!r} in this database;"
                " plan it first, or name another"
            )
        check_keys(conn, keys, batch.batch_id)
        exits = Exits(keys, batch.batch_id)
        exits.read(conn)
        self._sources = batch_sources(conn, batch.batch_id)
        self._fleet_clock = fleet.read_clock(conn)
        self._browsers = self._start_browsers()
        self._server = Server(self._settings.metrics_port, self.is_well)
        renewed_at = self._clock()
        self._me = self._register(conn, batch)
        self._pool = pool(self._settings.database_url, CRAWL_CONNECTIONS, "crawlfleet crawl")
        self._slots = Slots(
            self._me,
            self._leases,
            self._sources,
            exits,
            self._browsers,
            pool=self._pool,
            keys=keys,
            random=self._random,
            clock=self._clock,
        )
        self._vitals = Vitals(
            self._me.worker_id,
            self._leases,
            exits,
            self._sources,
            self._fleet_clock,
            clock=self._clock,
            random=self._random,
            renewed_at=renewed_at,
            wake=self._wake,
            unable=self._unable,
            pending=self._slots.pending,
        )

    def _start_browsers(self) -> Pool | None:
        """The pool, if a source of the batch needs one; a worker without such a source needs no Selenium."""
        if not any(source.needs_browser for source in self._sources.values()):
            return None
        from crawlfleet.browser.chrome import Chrome
        from crawlfleet.browser.pool import Pool

        browsers = Pool(Chrome(self._settings.chrome_url))
        browsers.start(threading.Event().wait)
        return browsers

    def _register(self, conn: Connection, batch: Batch) -> Identity:
        slots, ordinal = self._settings.max_concurrent, self._settings.worker_id
        worker_id = fleet.register(conn, batch.batch_id, ordinal, slots, fleet.Process.this())
        if worker_id is None:
            raise BadConfiguration(f"CRAWLFLEET_BATCH: batch {self._settings.batch!r} was deleted just now")
        for source in self._sources.values():
            metrics.declare_source(source.name)
        metrics.SLOTS.set(slots)
        metrics.BUILD.labels(__version__).set(1)
        me = Identity(worker_id, batch.batch_id, ordinal % batch.workers)
        log.info("worker registered", extra={"worker": worker_id, "batch": batch.name, "shard": me.shard})
        log.info("metrics served", extra={"port": self._server.port})
        return me

    def run(self) -> int:
        """Work until the batch is closed or this process has to stop."""
        url = self._settings.database_url
        threads = [
            threading.Thread(target=self._vitals.heartbeat, args=(url,), name="heartbeat", daemon=True),
            threading.Thread(target=self._vitals.watchdog, name="watchdog", daemon=True),
            threading.Thread(target=self._housekeeper, name="housekeeper", daemon=True),
        ]
        if self._browsers is not None:
            tend = threading.Thread(target=self._tend, args=(self._browsers,), name="browsers", daemon=True)
            threads.append(tend)
        for thread in threads:
            thread.start()
        try:
            code = self._loop()
        finally:
            self._end(threads)
        log.info("worker ended", extra={"code": code})
        return code

    def drain(self) -> None:
        """Take no more, finish what is held. Safe in a signal handler."""
        self._vitals.drain(self._settings.drain_s)
        self._stopping = True
        self._wake()

    def is_well(self) -> bool:
        """Whether the loop turns and permits are renewed: progress, not mere life."""
        return self._vitals.is_well() and self._clock() - self._turned_at < STALLED_S

    def _wake(self) -> None:
        self._slots.finished.put(None)

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        """Tokens that a shop has rotated are stored before the process goes, whatever it takes."""
        self._slots.close()
        # Also those that the last turn began: from here on none begins a refresh that nobody would wait for.
        self._leases.abort(Interrupted("WorkerEnds", "the worker ended"))
        self._slots.pending.wait_long()  # the watchdog still ends what takes too long
        self._vitals.done.set()
        self._chores_due.set()
        for thread in threads:
            thread.join(5)
        with suppress(psycopg.Error, DatabaseUnavailable), connect(self._settings.database_url) as conn:
            fleet.end_worker(conn, self._me.worker_id)
        if self._browsers is not None:
            self._browsers.close()
        self._pool.close(1)
        self._server.stop()

    # The loop.

    def _loop(self) -> int:
        conn: Connection | None = None
        try:
            while True:
                self._committing += self._gather()
                if self._vitals.lost:
                    return STOPPED_ITSELF
                conn = self._turn_or_reconnect(conn)
                code = self._exit_code()
                if code is not None:
                    return code
        finally:
            if conn is not None:
                conn.close()

    def _gather(self) -> list[Finished]:
        """What finished since the last turn; waits for the first, at most until the next poll."""
        found: list[Finished | None] = []
        wait_s = 0.0 if self._committing else self._poll_s * self._random.uniform(0.7, 1.0)
        with suppress(queue.Empty):
            found.append(self._slots.finished.get(timeout=wait_s))
            while True:
                found.append(self._slots.finished.get_nowait())
        return [finished for finished in found if finished is not None]

    def _turn_or_reconnect(self, conn: Connection | None) -> Connection | None:
        """One turn. A lost connection is replaced, and what the database really knows is read back."""
        try:
            if conn is None:
                conn = connect(self._settings.database_url, "crawlfleet loop")
                self._reconcile(conn)
            with metrics.TURN.time():
                self._turn(conn)
        except (
            psycopg.OperationalError,
            psycopg.InterfaceError,
            psycopg.InternalError,
            DatabaseUnavailable,
        ) as exc:
            metrics.DATABASE_ERRORS.labels("turn").inc()
            log.warning("turn failed, will reconnect", extra={"error": first_line(exc)})
            if conn is not None:
                conn.close()
            self._vitals.done.wait(self._random.uniform(0.1, 1.0))
            return None
        self._turned_at = self._clock()
        metrics.LAST_TURN.set_to_current_time()
        return conn

    def _turn(self, conn: Connection) -> None:
        """Commit and take in one transaction; if data of a result is refused, crawl by crawl."""
        for _ in range(TRIES):
            try:
                with transaction(conn):
                    ours = turn.commit(conn, self._me, self._committing, self._random)
                    taken = self._take(conn)
            except psycopg.Error as exc:
                if is_refused_data(exc):
                    self._committed(self._commit_one_by_one(conn))
                    return
                if exc.sqlstate not in TRY_AGAIN:
                    raise
            else:
                self._committed(ours)
                self._begin_crawls(taken)
                return
        log.warning("turn put off: another worker is at the same rows")

    def _take(self, conn: Connection) -> list[Lease]:
        unable = self._unable()
        if len(unable) == len(self._sources):
            return []
        return turn.take(conn, self._me, len(self._leases) - len(self._committing), unable)

    def _commit_one_by_one(self, conn: Connection) -> list[Finished]:
        """Find the result that the database refuses: it becomes `bug`, the others commit."""
        ours: list[Finished] = []
        for finished in self._committing:
            try:
                with transaction(conn):
                    ours += turn.commit(conn, self._me, [finished], self._random)
            except psycopg.Error as exc:
                if not is_refused_data(exc):
                    raise
                with transaction(conn):
                    ours += turn.commit(conn, self._me, [self._slots.refused(finished, exc)], self._random)
        return ours

    def _committed(self, ours: Sequence[Finished]) -> None:
        """The transaction has ended: these leases are no longer ours to keep."""
        metrics.FENCED.inc(len(self._committing) - len(ours))
        self._leases.forget(finished.lease.lease_id for finished in self._committing)
        self._committing = []
        for finished in ours:
            self._tell(finished)

    def _begin_crawls(self, taken: Sequence[Lease]) -> None:
        self._leases.add(taken)
        for lease in taken:
            self._slots.begin(lease, self._vitals.stop_at)
        metrics.PERMITS.set(len(self._leases))
        self._poll_s = POLL_S[0] if taken else min(self._poll_s * 2, POLL_S[1])
        if not len(self._leases):
            self._chores_due.set()  # perhaps the batch can be closed

    def _reconcile(self, conn: Connection) -> None:
        """A reply was lost: was that turn committed? The permits tell.

        A finished crawl whose permit is gone was committed (or rescued); a permit that nobody here crawls was taken; a
        crawl whose permit is gone must stop.
        """
        with transaction(conn):
            held = {lease.lease_id: lease for lease in turn.read_back(conn, self._me)}
        known = {lease.lease_id for lease in self._leases.held()}
        self._leases.abort(Interrupted("Fenced", "the permit was rescued"), but=held)
        self._leases.forget(known - held.keys())
        self._committing = [f for f in self._committing if f.lease.lease_id in held]
        self._begin_crawls([lease for lease_id, lease in held.items() if lease_id not in known])

    def _unable(self) -> Collection[int]:
        """The sources that this worker cannot crawl just now."""
        if self._stopping or self._vitals.hung or self._is_full() or self._has_no_chrome():
            return self._sources.keys()
        if self._browsers is None or self._browsers.is_able:
            return ()
        return [s.source_id for s in self._sources.values() if s.needs_browser]

    def _has_no_chrome(self) -> bool:
        return self._browsers is not None and self._browsers.is_unusable()

    def _is_full(self) -> bool:
        """The memory ceiling: above it nothing is taken."""
        ceiling_mb = self._settings.memory_mb
        return ceiling_mb is not None and _resident_mb() > ceiling_mb

    def _is_crawling(self) -> bool:
        """Whether any crawl runs that is not hung."""
        return any(crawl.overdue_s() == 0 for crawl in self._leases.crawls())

    def _exit_code(self) -> int | None:
        control = self._vitals.control
        if self._vitals.hung and not self._committing and not self._is_crawling():
            return STOPPED_ITSELF
        if len(self._leases) or control is None:
            return None
        if control.batch_state == "closed":
            return CLOSED
        if self._stopping or control.draining:
            return DRAINED
        if self._has_no_chrome():
            why = self._browsers.why() if self._browsers else ""
            log.error("Chrome has been away for too long; a new process takes over", extra={"why": why})
            return ChromeUnusable.exit_code
        if self._is_full():
            log.error("memory is full although no crawl runs; a new process takes over")
            return STOPPED_ITSELF
        return None

    def _tell(self, finished: Finished) -> None:
        """One event a crawl, and its metrics."""
        source, outcome = self._sources[finished.lease.source_id].name, finished.outcome
        status = outcome.verdict.value
        metrics.CRAWLS.labels(source, status).inc()
        metrics.CRAWL_SECONDS.labels(source, status).observe(finished.cost_ms / 1000)
        if outcome.verdict is Verdict.THROTTLED and outcome.reason not in ("CoolingDown", "AccountWaits"):
            metrics.THROTTLES.labels(source, "account" if outcome.account_only else "egress").inc()
        if finished.decision.state == "waiting":
            metrics.RETRIES.labels(source, status).inc()
        log.info(
            "crawled",
            extra={
                "source": source,
                "user_id": finished.lease.user_id,
                "lease": finished.lease.lease_id,
                "verdict": status,
                "reason": outcome.reason,
                "ms": finished.cost_ms,
                "task": finished.decision.state,
            },
        )

    def _tend(self, browsers: Pool) -> None:
        """Look after Chrome, once a second."""
        while not self._vitals.done.wait(TEND_S):
            try:
                browsers.tend()
            except Exception as exc:  # whatever it is: without this nobody sees that Chrome is away
                log.warning("Chrome not tended", extra={"error": first_line(exc)})

    def _housekeeper(self) -> None:
        """The fleet's chores, at least twice a tick."""
        pause_s = min(1.0, self._fleet_clock.tick_s / 2)
        with Reconnecting(self._settings.database_url, "crawlfleet housekeeping") as connection:
            while not self._vitals.done.is_set():
                try:
                    if fleet.is_housekeeping_due(connection(), pause_s / 2):
                        metrics.RESCUED.inc(fleet.housekeep(connection()).rescued)
                except Exception as exc:  # whatever it is: without ticks and closing no batch ends
                    metrics.DATABASE_ERRORS.labels("housekeeping").inc()
                    log.warning("housekeeping failed", extra={"error": first_line(exc)})
                self._chores_due.wait(pause_s * self._random.uniform(0.8, 1.0))
                self._chores_due.clear()


def run_worker(settings: WorkerSettings) -> int:
    """What `crawlfleet worker` does: run until the batch is closed; SIGTERM drains."""
    _share_heaps()
    worker = Worker(settings)

    def on_signal(_: int, __: FrameType | None) -> None:
        worker.drain()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return worker.run()


def _share_heaps() -> None:
    """Two heaps for all threads: glibc gives each its own, and each keeps what its largest page once took."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _resident_mb() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20
