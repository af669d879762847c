"""The worker: take, crawl, commit.

Four kinds of threads, each with one job and its own connections:

- the *loop* (main thread) turns; every turn is one transaction: commit what finished, then take. `_held` are
  the leases from their take to their commit;
- *slots* crawl, one account at a time, and hand what they finished to the loop;
- the *heartbeat* renews permits each tick and reads the control row each second;
- the *watchdog* does no I/O: it ends crawls at their deadlines, and the process if renewals stay away;
- the *housekeeper* does the fleet's chores, whenever no other worker is at them.

It decides nothing about tasks or egresses itself: `verdicts.judge`, `politeness` and the SQL of `store` do.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import resource
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import FrameType

import psycopg
from psycopg_pool import PoolTimeout

from crawlfleet import metrics
from crawlfleet.crawl import Exit, Interrupted, LiveCrawl, boottime, encode
from crawlfleet.credentials import KeyRing, proxy_context, redact
from crawlfleet.errors import (
    AuthFailed,
    BadConfiguration,
    BadInput,
    Bug,
    CrawlEnded,
    DatabaseUnavailable,
    Verdict,
)
from crawlfleet.serving import Server
from crawlfleet.settings import WorkerSettings
from crawlfleet.sources import Adapter, load_adapter
from crawlfleet.store import batches, fleet, sources, turn
from crawlfleet.store.connection import Connection, connect, pool, transaction
from crawlfleet.store.fleet import Control
from crawlfleet.store.migrations import check_schema
from crawlfleet.store.sources import EgressRow, Settings
from crawlfleet.store.turn import Finished, Identity, Lease, Row
from crawlfleet.tokens import PendingStores, Tokens
from crawlfleet.verdicts import OK, Outcome, interrupted, judge

log = logging.getLogger(__name__)

EXIT_CLOSED, EXIT_DRAINED, EXIT_STOPPED_ITSELF = 0, 75, 74

POLL_S = (0.1, 1.0)
"""Between turns without work: from the first to the longest, doubling, with jitter."""
CONTROL_S = 1.0
WATCHDOG_S = 0.1
STALLED_S = 60.0
"""A loop that did not turn for so long is not well: longer than any statement of a turn may take."""
GIVE_UP_S = 15.0
"""A crawl that goes on that long after it was ended is hung in code of its own."""
CHUNK_ROWS, CHUNK_BYTES = 500, 256 * 1024
"""Above either, items are written ahead of the crawl's completion."""
REFUSED_DATA = ("22", "54")
TRY_AGAIN = ("40001", "40P01", "23505")


@dataclass(frozen=True)
class Source:
    """A source of the batch: its settings and its adapter, built once."""

    source_id: int
    name: str
    settings: Settings
    adapter: Adapter


@dataclass
class Shared:
    """What threads tell each other. Each field has one writer, named here; plain reads are safe."""

    stopping: threading.Event = field(default_factory=threading.Event)  # signal handler: drain
    done: threading.Event = field(default_factory=threading.Event)  # loop: the process ends
    chores_due: threading.Event = field(default_factory=threading.Event)  # loop: nothing left to take
    control: Control | None = None  # heartbeat
    lost: bool = False  # heartbeat, watchdog: this registration is over
    hung: bool = False  # watchdog: a crawl does not end
    renewed_at: float = 0.0  # heartbeat, on CLOCK_BOOTTIME
    turned_at: float = 0.0  # loop
    drain_until: float = float("inf")  # signal handler


class Worker:
    """One registration of one process. `run` returns the exit code."""

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        rng: random.Random | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._settings = settings
        self._random = rng or random.Random()  # noqa: S311 - jitter, not secrets
        self._clock = clock
        self._keys = KeyRing.load(settings.keys_file)
        self._shared = Shared()
        self._pending = PendingStores()
        self._lock = threading.Lock()  # over the next two
        self._held: dict[int, Lease] = {}
        self._running: dict[int, LiveCrawl] = {}
        self._committing: list[Finished] = []
        self._to_crawl: queue.SimpleQueue[LiveCrawl | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[Finished | None] = queue.SimpleQueue()
        self._slots = 0
        self._poll_s = POLL_S[0]

    # Life.

    def run(self) -> int:
        """Work until the batch is closed or this process has to stop. Raises CrawlfleetError before it began."""
        with connect(self._settings.database_url, "crawlfleet worker") as conn:
            self._begin(conn)
        server = Server(self._settings.metrics_port, self.is_well)
        log.info("metrics served", extra={"port": server.port})
        self._pool = pool(self._settings.database_url, 4, "crawlfleet crawl")
        threads = [
            threading.Thread(target=target, name=target.__name__.strip("_"), daemon=True)
            for target in (self._heartbeat, self._watchdog, self._housekeeper)
        ]
        for thread in threads:
            thread.start()
        try:
            code = self._loop()
        finally:
            self._shared.done.set()
            self._shared.chores_due.set()
            self._finish_threads(threads)
            server.stop()
        log.info("worker ended", extra={"code": code})
        return code

    def drain(self, *_: object) -> None:
        """Take no more, finish what is held. Safe in a signal handler."""
        self._shared.drain_until = self._clock() + self._settings.drain_s
        self._shared.stopping.set()
        self._finished.put(None)

    def is_well(self) -> bool:
        """Whether the loop turns and permits are renewed: progress, not mere life."""
        now = self._clock()
        renewed = now - self._shared.renewed_at < self._fleet_clock.stop_after_s
        return renewed and now - self._shared.turned_at < STALLED_S

    def _begin(self, conn: Connection) -> None:
        check_schema(conn)
        batch = batches.find(conn, self._settings.batch)
        if batch is None:
            raise BadConfiguration(
                f"CRAWLFLEET_BATCH: there is no batch {self._settings.batch!r} in this database"
            )
        self._fleet_clock = fleet.read_clock(conn)
        self._sources = {
            i: _source(i, name, s) for i, (name, s) in sources.batch_settings(conn, batch.batch_id).items()
        }
        self._exits = self._read_exits(conn, batch.batch_id)
        self._shared.renewed_at = self._shared.turned_at = self._clock()
        worker_id = fleet.register(
            conn,
            batch.batch_id,
            self._settings.worker_id,
            self._settings.max_concurrent,
            socket.gethostname(),
            os.getpid(),
        )
        if worker_id is None:
            raise BadConfiguration(f"CRAWLFLEET_BATCH: batch {self._settings.batch!r} was deleted just now")
        self._me = Identity(worker_id, batch.batch_id, self._settings.worker_id % batch.workers)
        for source in self._sources.values():
            metrics.declare_source(source.name)
        metrics.SLOTS.set(self._settings.max_concurrent)
        log.info(
            "worker registered", extra={"worker": worker_id, "batch": batch.name, "shard": self._me.shard}
        )

    def _read_exits(self, conn: Connection, batch_id: int) -> dict[int, Exit]:
        return {e.egress_id: self._exit(e) for e in sources.egresses(conn, batch_id)}

    def _exit(self, egress: EgressRow) -> Exit:
        if egress.proxy is None:
            return Exit(egress.egress_id, egress.source_id, None)
        opened = self._keys.open(bytes(egress.proxy), proxy_context(egress.source, egress.name))
        return Exit(egress.egress_id, egress.source_id, opened["url"])

    def _finish_threads(self, threads: Sequence[threading.Thread]) -> None:
        """Tokens that a shop has rotated are stored before the process goes, whatever it takes."""
        for _ in range(self._slots):
            self._to_crawl.put(None)
        while not self._pending.wait(60):
            log.warning("waiting to store a refreshed token")
        for thread in threads:
            thread.join(5)
        with suppress(psycopg.Error, DatabaseUnavailable), connect(self._settings.database_url) as conn:
            fleet.end_worker(conn, self._me.worker_id)
        self._pool.close(1)

    # The loop.

    def _loop(self) -> int:
        conn: Connection | None = None
        try:
            while True:
                finished = self._gather()
                if self._shared.lost or (self._shared.hung and not self._others_running()):
                    return EXIT_STOPPED_ITSELF
                self._committing += finished
                conn = self._turn_or_reconnect(conn)
                code = self._exit_code()
                if code is not None and not self._committing:
                    return code
        finally:
            if conn is not None:
                conn.close()

    def _gather(self) -> list[Finished]:
        """What finished since the last turn; waits for the first, at most until the next poll."""
        found: list[Finished] = []
        wait_s = 0.0 if self._committing else self._poll_s * self._random.uniform(0.7, 1.0)
        with suppress(queue.Empty):
            found.append(self._finished.get(timeout=wait_s))  # type: ignore[arg-type]
            while True:
                found.append(self._finished.get_nowait())  # type: ignore[arg-type]
        return [f for f in found if f is not None]

    def _turn_or_reconnect(self, conn: Connection | None) -> Connection | None:
        """One turn. A lost connection is replaced, and what the database really knows is read back."""
        try:
            if conn is None:
                conn = connect(self._settings.database_url, "crawlfleet loop")
                self._reconcile(conn)
            with metrics.TURN.time():
                self._turn(conn)
        except (psycopg.OperationalError, psycopg.InterfaceError, DatabaseUnavailable) as exc:
            metrics.DATABASE_ERRORS.labels("turn").inc()
            log.warning("turn failed, will reconnect", extra={"error": _first_line(exc)})
            if conn is not None:
                conn.close()
            self._shared.done.wait(self._random.uniform(0.1, 1.0))
            return None
        self._shared.turned_at = self._clock()
        metrics.LAST_TURN.set_to_current_time()
        return conn

    def _turn(self, conn: Connection) -> None:
        """Commit and take in one transaction; if data of a result is refused, crawl by crawl."""
        for _ in range(5):
            try:
                with transaction(conn):
                    ours = turn.commit(conn, self._me, self._committing, self._random)
                    busy = self._busy() - len(self._committing)
                    taken = turn.take(conn, self._me, busy) if self._may_take() else []
                break
            except psycopg.Error as exc:
                if (exc.sqlstate or "")[:2] in REFUSED_DATA:
                    return self._commit_one_by_one(conn)
                if exc.sqlstate not in TRY_AGAIN:
                    raise
        else:
            log.warning("turn given up for now: another worker is at the same rows")
            return None
        self._committed(ours)
        self._begin_crawls(taken)
        return None

    def _commit_one_by_one(self, conn: Connection) -> None:
        """Find the result that the database refuses: it becomes `bug`, the others commit."""
        ours: list[Finished] = []
        for finished in self._committing:
            try:
                with transaction(conn):
                    ours += turn.commit(conn, self._me, [finished], self._random)
            except psycopg.Error as exc:
                if (exc.sqlstate or "")[:2] not in REFUSED_DATA:
                    raise
                with transaction(conn):
                    ours += turn.commit(conn, self._me, [self._refused(finished, exc)], self._random)
        self._committed(ours)

    def _refused(self, finished: Finished, exc: psycopg.Error) -> Finished:
        return self._judged(finished.lease, Outcome.of(_bad_record(exc)), finished.generation, ())

    def _committed(self, ours: Sequence[Finished]) -> None:
        """The transaction has ended: these results are no longer ours to keep."""
        metrics.FENCED.inc(len(self._committing) - len(ours))
        for finished in ours:
            self._count(finished)
        with self._lock:
            for finished in self._committing:
                self._held.pop(finished.lease.lease_id, None)
        self._committing.clear()
        metrics.PERMITS.set(self._busy())

    def _reconcile(self, conn: Connection) -> None:
        """A reply was lost: was that turn committed? The permits tell.

        A finished crawl whose permit is gone was committed (or rescued); a permit that nobody here crawls was
        taken; a crawl whose permit is gone must stop.
        """
        with transaction(conn):
            held = {lease.lease_id: lease for lease in turn.read_back(conn, self._me)}
        self._committing = [f for f in self._committing if f.lease.lease_id in held]
        with self._lock:
            known = set(self._held)
            for lease_id in known - held.keys():
                del self._held[lease_id]
            fenced = [self._running[lease_id] for lease_id in self._running.keys() - held.keys()]
        for crawl in fenced:
            crawl.abort(Interrupted("Fenced", "the permit was rescued"))
        self._begin_crawls([lease for lease_id, lease in held.items() if lease_id not in known])

    def _may_take(self) -> bool:
        return not (self._shared.stopping.is_set() or self._shared.hung or self._is_full())

    def _is_full(self) -> bool:
        """The memory ceiling: above it nothing is taken."""
        ceiling = self._settings.memory_mb
        return ceiling is not None and _resident_mb() > ceiling

    def _busy(self) -> int:
        with self._lock:
            return len(self._held)

    def _others_running(self) -> bool:
        """Whether any crawl runs that is not hung."""
        with self._lock:
            return any(crawl.overdue_s() == 0 for crawl in self._running.values())

    def _exit_code(self) -> int | None:
        control = self._shared.control
        if self._busy() or control is None:
            return None
        if control.batch_state == "closed":
            return EXIT_CLOSED
        if self._shared.stopping.is_set() or control.draining:
            return EXIT_DRAINED
        return None

    def _begin_crawls(self, taken: Sequence[Lease]) -> None:
        self._poll_s = POLL_S[0] if taken else min(self._poll_s * 2, POLL_S[1])
        if not taken and not self._busy():
            self._shared.chores_due.set()
        stop_at = self._shared.renewed_at + self._fleet_clock.stop_after_s
        with self._lock:
            self._held |= {lease.lease_id: lease for lease in taken}
        for lease in taken:
            try:
                crawl = self._open(lease, stop_at)
            except CrawlEnded as ended:
                self._finished.put(self._judged(lease, Outcome.of(ended), lease.generation, ()))
                continue
            with self._lock:
                self._running[lease.lease_id] = crawl
                more = len(self._running) > self._slots
            if more:
                self._add_slot()
            self._to_crawl.put(crawl)
        metrics.PERMITS.set(self._busy())

    def _open(self, lease: Lease, stop_at: float) -> LiveCrawl:
        """Open the account's credentials and make its crawl. A new permit's renewal counts from the last tick seen."""
        source = self._sources[lease.source_id]
        if lease.credentials is None or lease.generation is None:
            raise AuthFailed("AccountPurged", "the account was deleted after the batch was planned")
        tokens = Tokens(
            self._pool.connection,
            self._keys,
            self._pending,
            source=source.name,
            source_id=lease.source_id,
            user_id=lease.user_id,
            lease_id=lease.lease_id,
            sealed=bytes(lease.credentials),
            generation=lease.generation,
        )
        return LiveCrawl(
            lease,
            source=source.name,
            base_url=source.settings.base_url,
            tokens=tokens,
            way_out=self._exit_of(lease.egress_id),
            database=self._pool.connection,
            timeout_s=source.settings.job_timeout_s,
            stop_at=stop_at,
            clock=self._clock,
        )

    def _exit_of(self, egress_id: int) -> Exit:
        """An egress that was added while the batch runs is read when it first appears."""
        if egress_id not in self._exits:
            with self._pool.connection() as conn:
                self._exits = self._read_exits(conn, self._me.batch_id)
        return self._exits[egress_id]

    def _judged(
        self, lease: Lease, outcome: Outcome, generation: int | None, rows: Sequence[Row], cost_ms: int = 0
    ) -> Finished:
        decision = judge(
            outcome, lease.history, self._sources[lease.source_id].settings.budgets, self._random
        )
        return Finished(lease, outcome, decision, generation, cost_ms, tuple(rows))

    def _count(self, finished: Finished) -> None:
        source, outcome = self._sources[finished.lease.source_id].name, finished.outcome
        status = outcome.verdict.value
        metrics.CRAWLS.labels(source, status).inc()
        metrics.CRAWL_SECONDS.labels(source, status).observe(finished.cost_ms / 1000)
        if outcome.verdict is Verdict.THROTTLED:
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

    # Slots.

    def _add_slot(self) -> None:
        self._slots += 1
        threading.Thread(target=self._slot, name=f"slot-{self._slots}", daemon=True).start()

    def _slot(self) -> None:
        while (crawl := self._to_crawl.get()) is not None:
            finished = self._crawl(crawl)
            with self._lock:
                del self._running[crawl.lease.lease_id]
            self._finished.put(finished)

    def _crawl(self, crawl: LiveCrawl) -> Finished:
        """Run one crawl to its verdict. The one place where everything is caught."""
        source = self._sources[crawl.lease.source_id]
        rows: list[Row] = []
        metrics.CRAWLS_RUNNING.labels(source.name).inc()
        try:
            self._collect(source, crawl, rows)
            outcome = OK
        except Interrupted as ended:
            outcome, rows = interrupted(ended.reason), []
        except CrawlEnded as ended:
            outcome, rows = _redacted(Outcome.of(ended), crawl), []
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, DatabaseUnavailable):
            outcome, rows = interrupted("DatabaseLost"), []
        except Exception as exc:
            log.error("adapter failed", extra={"user_id": crawl.user_id, "where": _where(exc)})
            outcome, rows = (
                Outcome(Verdict.BUG, type(exc).__name__, "the adapter failed; see the worker's log"),
                [],
            )
        finally:
            crawl.close()
            metrics.CRAWLS_RUNNING.labels(source.name).dec()
        cost_ms = max(1, round((self._clock() - crawl.began_at) * 1000))
        return self._judged(crawl.lease, outcome, crawl.tokens.generation, rows, cost_ms)

    def _collect(self, source: Source, crawl: LiveCrawl, rows: list[Row]) -> None:
        """Encode items as they come; above a chunk they are written ahead."""
        size = count = 0
        crawl.check()
        for item in source.adapter.crawl(crawl):
            row = encode(item)
            rows.append(row)
            count += 1
            size += len(row.body)
            if len(rows) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                self._write_ahead(crawl, rows)
                size = 0
        crawl.check()
        metrics.ITEMS.labels(source.name).inc(count)

    def _write_ahead(self, crawl: LiveCrawl, rows: list[Row]) -> None:
        crawl.check()
        try:
            with self._pool.connection() as conn, transaction(conn):
                held = turn.write_ahead(conn, self._me, crawl.lease, rows)
        except psycopg.Error as exc:
            if (exc.sqlstate or "")[:2] in REFUSED_DATA:
                raise _bad_record(exc) from None
            raise
        if not held:
            raise Interrupted("Fenced", "the permit was rescued")
        rows.clear()

    # Heartbeat, watchdog, housekeeper.

    def _heartbeat(self) -> None:
        """Renew each tick, read the control row each second; on its own connection."""
        with self._own_connection("heartbeat") as connection:
            renew_at = 0.0
            while not self._shared.done.is_set():
                try:
                    if self._clock() >= renew_at:
                        renew_at = self._clock() + self._fleet_clock.tick_s
                        self._renew(connection())
                    self._read_control(connection())
                except (psycopg.Error, DatabaseUnavailable) as exc:
                    metrics.DATABASE_ERRORS.labels("heartbeat").inc()
                    log.warning("heartbeat failed", extra={"error": _first_line(exc)})
                    renew_at = 0.0
                self._shared.done.wait(
                    min(CONTROL_S, self._fleet_clock.tick_s) * self._random.uniform(0.8, 1.0)
                )

    def _renew(self, conn: Connection) -> None:
        sent_at = self._clock()
        with self._lock:
            leases = list(self._held.values())
        renewed = fleet.renew(conn, self._me.worker_id, leases)
        if renewed is None:
            self._lose("the registration was ended by the fleet")
            return
        self._exits = self._read_exits(conn, self._me.batch_id)
        self._shared.renewed_at = sent_at
        metrics.LAST_RENEWAL.set_to_current_time()
        with self._lock:
            for lease_id in renewed & self._running.keys():
                self._running[lease_id].extend(sent_at + self._fleet_clock.stop_after_s)

    def _read_control(self, conn: Connection) -> None:
        control = fleet.read_control(conn, self._me.worker_id)
        if control is None or control.ended:
            self._lose("the registration is gone")
            return
        before, self._shared.control = self._shared.control, control
        if control.stop == "cancel":
            self._abort_all(Interrupted("Cancelled", "the batch was cancelled"))
        for egress_id, cut in control.cuts.items():
            if before and cut > before.cuts.get(egress_id, cut):
                metrics.CUTS.labels(self._sources[self._exits[egress_id].source_id].name).inc()

    def _watchdog(self) -> None:
        """End crawls at their deadlines and the process without renewals. No I/O, no lock that I/O holds."""
        while not self._shared.done.wait(WATCHDOG_S):
            with self._lock:
                crawls = list(self._running.values())
            for crawl in crawls:
                crawl.enforce()
                if crawl.overdue_s() > GIVE_UP_S and not self._shared.hung:
                    self._shared.hung = True
                    log.error(
                        "a crawl does not end; this worker takes no more",
                        extra={"lease": crawl.lease.lease_id},
                    )
            if self._clock() > self._shared.drain_until:
                self._abort_all(
                    Interrupted("Drained", "the worker was told to stop and this crawl took too long")
                )
            if self._clock() - self._shared.renewed_at > self._fleet_clock.stop_after_s:
                self._lose("permits could not be renewed in time")
            if self._shared.lost:
                self._leave()

    def _lose(self, why: str) -> None:
        """This registration is over: nothing may be sent any more."""
        if not self._shared.lost:
            log.error("worker stops itself", extra={"reason": why})
        self._shared.lost = True
        self._abort_all(Interrupted("RenewalLost", why))
        self._finished.put(None)

    def _leave(self) -> None:
        """Exit even if the loop hangs in the database; but not over a token that is not stored yet."""
        if self._shared.done.wait(3.0):
            return
        while not self._pending.wait(60):
            log.warning("waiting to store a refreshed token")
        os._exit(EXIT_STOPPED_ITSELF)

    def _abort_all(self, ending: CrawlEnded) -> None:
        with self._lock:
            crawls = list(self._running.values())
        for crawl in crawls:
            crawl.abort(ending)

    def _housekeeper(self) -> None:
        """The fleet's chores, on their own connection, at least twice a tick."""
        pause_s = min(1.0, self._fleet_clock.tick_s / 2)
        with self._own_connection("housekeeping") as connection:
            while not self._shared.done.is_set():
                try:
                    chores = fleet.housekeep(connection())
                    metrics.RESCUED.inc(chores.rescued)
                except (psycopg.Error, DatabaseUnavailable) as exc:
                    metrics.DATABASE_ERRORS.labels("housekeeping").inc()
                    log.warning("housekeeping failed", extra={"error": _first_line(exc)})
                self._shared.chores_due.wait(pause_s * self._random.uniform(0.8, 1.0))
                self._shared.chores_due.clear()

    @contextmanager
    def _own_connection(self, name: str) -> Iterator[Callable[[], Connection]]:
        """A thread's own connection, opened again when it was lost."""
        conn: Connection | None = None

        def connection() -> Connection:
            nonlocal conn
            if conn is None or conn.closed:
                conn = connect(self._settings.database_url, f"crawlfleet {name}")
            return conn

        try:
            yield connection
        finally:
            if conn is not None:
                conn.close()


def run_worker(settings: WorkerSettings) -> int:
    """What `crawlfleet worker` does: run until the batch is closed; SIGTERM drains."""
    worker = Worker(settings)

    def on_signal(number: int, _: FrameType | None) -> None:
        worker.drain()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return worker.run()


def _source(source_id: int, name: str, settings: Settings) -> Source:
    try:
        return Source(source_id, name, settings, load_adapter(settings.adapter)(settings.options))
    except BadInput as exc:
        raise BadConfiguration(f"source {name}: {exc}") from exc


def _redacted(outcome: Outcome, crawl: LiveCrawl) -> Outcome:
    """Whatever an adapter puts into its words, its account's secrets do not get out."""
    secrets = [str(value) for value in crawl.credentials.values()]
    snapshot = outcome.snapshot and redact(outcome.snapshot, secrets)
    return replace(
        outcome, detail=redact(outcome.detail, secrets)[:500], snapshot=snapshot and snapshot[:8192]
    )


def _bad_record(exc: psycopg.Error) -> Bug:
    return Bug("RefusedByDatabase", f"PostgreSQL refuses a record of this crawl (SQLSTATE {exc.sqlstate})")


def _where(exc: BaseException) -> str:
    """Type and place of an adapter's failure, without its message: that may quote a reply or a credential."""
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__} at {last.filename.rsplit('/', 1)[-1]}:{last.lineno} in {last.name}"


def _first_line(exc: Exception) -> str:
    return str(exc).strip().split("\n", 1)[0]


def _resident_mb() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20
