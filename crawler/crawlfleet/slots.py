"""The slots of a worker: threads that crawl, one account at a time, and hand what they finished to the loop.

Hop three and four of a crawl: a lease becomes a `LiveCrawl`, the adapter runs, `verdicts.judge` decides. What is
written ahead of the completion goes through `store.turn.write_ahead`; the completion itself is the loop's.
"""

from __future__ import annotations

import logging
import queue
import threading
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import psycopg
from psycopg_pool import ConnectionPool

from crawlfleet import metrics
from crawlfleet.crawl import Exit, LiveCrawl, Source, encode
from crawlfleet.credentials import KeyRing, proxy_context, redact
from crawlfleet.errors import (
    AuthFailed,
    BadConfiguration,
    BadInput,
    Bug,
    Crashed,
    CrawlEnded,
    CrawlfleetError,
    Interrupted,
    Throttled,
    Verdict,
)
from crawlfleet.leases import Leases
from crawlfleet.sources import load_adapter
from crawlfleet.store import sources, turn
from crawlfleet.store.connection import Connection, is_refused_data, transaction
from crawlfleet.store.sources import EgressRow
from crawlfleet.store.turn import Finished, Identity, Lease, Row
from crawlfleet.tokens import PendingStores, Tokens
from crawlfleet.verdicts import OK, RETRY_FIRST_S, Outcome, interrupted, judge

if TYPE_CHECKING:
    from crawlfleet.browser.pool import Pool

log = logging.getLogger(__name__)

CHUNK_ROWS, CHUNK_BYTES = 500, 256 * 1024
"""Above either, items are written ahead of the crawl's completion."""


def batch_sources(conn: Connection, batch_id: int) -> dict[int, Source]:
    """The sources of a batch by id. Raises BadConfiguration if an adapter is missing or refuses its options."""
    found = {}
    for source_id, (name, settings) in sources.batch_settings(conn, batch_id).items():
        try:
            adapter = load_adapter(settings.adapter)(settings.options)
        except BadInput as exc:
            raise BadConfiguration(f"source {name}: {exc}") from exc
        found[source_id] = Source(source_id, name, settings, adapter)
    return found


class Exits:
    """How requests of each egress leave. Read anew with each renewal, so that a changed proxy is live."""

    def __init__(self, keys: KeyRing, batch_id: int) -> None:
        self._keys = keys
        self._batch_id = batch_id
        self._by_egress: dict[int, Exit] = {}

    def read(self, conn: Connection) -> None:
        """Read all egresses of the batch. The first time, BadConfiguration if a proxy cannot be opened.

        Later such an egress is left as it was: whoever sealed its new proxy used a key that we do not have.
        """
        found = {}
        for egress in sources.egresses(conn, self._batch_id):
            try:
                found[egress.egress_id] = self._opened(egress)
            except CrawlfleetError as exc:
                if not self._by_egress:
                    raise BadConfiguration(str(exc)) from exc
                log.warning("proxy not opened", extra={"source": egress.source, "egress": egress.name})
                if known := self._by_egress.get(egress.egress_id):
                    found[egress.egress_id] = known
        self._by_egress = found

    def of(self, egress_id: int, pool: ConnectionPool[Connection]) -> Exit:
        """One egress; one that was added just now is read first."""
        if egress_id not in self._by_egress:
            with pool.connection() as conn:
                self.read(conn)
        if egress_id not in self._by_egress:
            raise Crashed("CannotBeOpened", "the key ring of this worker does not open the egress's proxy")
        return self._by_egress[egress_id]

    def source_of(self, egress_id: int) -> int | None:
        """The source an egress belongs to, None if it is not known yet."""
        known = self._by_egress.get(egress_id)
        return known.source_id if known else None

    def _opened(self, egress: EgressRow) -> Exit:
        if egress.proxy is None:
            return Exit(egress.egress_id, egress.source_id, None)
        opened = self._keys.open(bytes(egress.proxy), proxy_context(egress.source, egress.name))
        return Exit(egress.egress_id, egress.source_id, opened["url"])


class Slots:
    """As many threads as crawls ever ran at once. `finished` is what the loop waits on."""

    def __init__(
        self,
        me: Identity,
        leases: Leases,
        sources: Mapping[int, Source],
        exits: Exits,
        browsers: Pool | None,
        *,
        pool: ConnectionPool[Connection],
        keys: KeyRing,
        random: Random,
        clock: Callable[[], float],
    ) -> None:
        self._me = me
        self._leases = leases
        self._sources = sources
        self._exits = exits
        self._browsers = browsers
        self._pool = pool
        self._keys = keys
        self._random = random
        self._clock = clock
        self._threads = 0
        self._to_crawl: queue.SimpleQueue[LiveCrawl | None] = queue.SimpleQueue()
        self.finished: queue.SimpleQueue[Finished | None] = queue.SimpleQueue()
        self.pending = PendingStores()

    def begin(self, lease: Lease, stop_at: float) -> None:
        """Begin to crawl a lease; requests may be sent until `stop_at` (and longer, as it is renewed)."""
        try:
            crawl = self._open(lease, stop_at)
        except Interrupted as ended:
            outcome = interrupted(ended.reason, ended.detail, retry_after_s=ended.retry_after_s)
        except CrawlEnded as ended:
            outcome = Outcome.of(ended)
        except psycopg.Error:
            outcome = interrupted("DatabaseLost", "the egress could not be read", retry_after_s=RETRY_FIRST_S)
        else:
            self._start(crawl)
            return
        self.finished.put(self.judged(lease, outcome, lease.generation, ()))

    def close(self) -> None:
        """Let idle threads end."""
        for _ in range(self._threads):
            self._to_crawl.put(None)

    def judged(
        self, lease: Lease, outcome: Outcome, generation: int | None, rows: Sequence[Row], cost_ms: int = 0
    ) -> Finished:
        """A finished crawl with what becomes of its task."""
        budgets = self._sources[lease.source_id].settings.budgets
        decision = judge(outcome, lease.history, budgets, self._random)
        return Finished(lease, outcome, decision, generation, cost_ms, tuple(rows))

    def refused(self, finished: Finished, exc: psycopg.Error) -> Finished:
        """The same crawl, ended `bug`: PostgreSQL refuses a record of it."""
        return self.judged(
            finished.lease, Outcome.of(_bad_record(exc)), finished.generation, (), finished.cost_ms
        )

    def _start(self, crawl: LiveCrawl) -> None:
        if self._leases.begin(crawl) > self._threads:
            self._threads += 1
            threading.Thread(target=self._slot, name=f"slot-{self._threads}", daemon=True).start()
        self._to_crawl.put(crawl)

    def _open(self, lease: Lease, stop_at: float) -> LiveCrawl:
        source = self._sources[lease.source_id]
        if lease.credentials is None or lease.generation is None:
            raise AuthFailed("AccountPurged", "the account was deleted after the batch was planned")
        if lease.account_state != "ok":
            reason = lease.account_reason or "NeedsAttention"
            raise AuthFailed(reason, "the account was parked or disabled after the batch was planned")
        if lease.wait_s is not None and lease.wait_s > 0:
            why = "the shop asked this account to wait, in this batch or another"
            raise Throttled(
                "AccountWaits", why, retry_after_s=lease.wait_s, account_only=True, never_sent=True
            )
        database = self._pool.connection
        try:
            tokens = Tokens(database, self._keys, self.pending, source.name, lease)
        except CrawlfleetError as exc:  # not `auth`: our keys are at fault, not the seller's credentials
            raise Crashed("CannotBeOpened", str(exc)) from exc
        way_out = self._exits.of(lease.egress_id, self._pool)
        return LiveCrawl(
            lease, source, tokens, way_out, database, self._browsers, stop_at=stop_at, clock=self._clock
        )

    def _slot(self) -> None:
        while (crawl := self._to_crawl.get()) is not None:
            finished = self._crawl(crawl)
            self._leases.end(crawl)
            self.finished.put(finished)

    def _crawl(self, crawl: LiveCrawl) -> Finished:
        """Run one crawl to its verdict."""
        source = self._sources[crawl.lease.source_id]
        rows: list[Row] = []
        with metrics.CRAWLS_RUNNING.labels(source.name).track_inprogress():
            outcome = self._outcome(source, crawl, rows)
            crawl.close()
        cost_ms = max(1, round((self._clock() - crawl.began_at) * 1000))
        kept = rows if outcome.verdict is Verdict.OK else ()
        return self.judged(crawl.lease, outcome, crawl.tokens.generation, kept, cost_ms)

    def _outcome(self, source: Source, crawl: LiveCrawl, rows: list[Row]) -> Outcome:
        """The one place where everything is caught, also what is wrong with a verdict itself."""
        try:
            outcome = _redacted(self._ending(source, crawl, rows), crawl.tokens.secrets)
        except (
            BaseException
        ) as exc:  # SystemExit too: it would end this thread, and nobody would hear of the lease
            log.error("adapter failed", extra={"user_id": crawl.user_id, "where": _where(exc)})
            outcome = Outcome(
                Verdict.BUG, type(exc).__name__, "the adapter failed; the worker's log says where"
            )
        return replace(outcome, account_wait_s=max(outcome.account_wait_s, crawl.account_wait_s))

    def _ending(self, source: Source, crawl: LiveCrawl, rows: list[Row]) -> Outcome:
        try:
            self._collect(source, crawl, rows)
        except Interrupted as ended:
            return interrupted(ended.reason, ended.detail, retry_after_s=ended.retry_after_s)
        except CrawlEnded as ended:
            return Outcome.of(ended)
        except (psycopg.OperationalError, psycopg.InterfaceError):  # an adapter has no database: it is ours
            return interrupted(
                "DatabaseLost", "the database could not be reached", retry_after_s=RETRY_FIRST_S
            )
        except psycopg.Error as exc:
            return Outcome(
                Verdict.CRASHED, "DatabaseRefused", f"PostgreSQL refused a write (SQLSTATE {exc.sqlstate})"
            )
        except CrawlfleetError as exc:  # refreshed meanwhile by a worker with a key that we do not have
            return Outcome(Verdict.CRASHED, "CannotBeOpened", str(exc))
        return OK

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
            if is_refused_data(exc):
                raise _bad_record(exc) from None
            raise
        if not held:
            raise Interrupted("Fenced", "the permit was rescued")
        rows.clear()


def _redacted(outcome: Outcome, secrets: Collection[str]) -> Outcome:
    """Whatever an adapter puts into its words, its account's secrets do not get out, and they can be stored."""

    def shown(text: str, most: int) -> str:
        return _storable(redact(str(text), secrets))[:most]

    return replace(
        outcome,
        reason=shown(outcome.reason, 64),
        detail=shown(outcome.detail, 500),
        snapshot=outcome.snapshot and shown(outcome.snapshot, 8192),
        retry_after_s=max(0.0, float(outcome.retry_after_s)),
    )


def _storable(text: str) -> str:
    """Without NUL and lone surrogates: a quoted page may hold them, and no text column takes them."""
    return text.replace("\x00", "\ufffd").encode(errors="replace").decode()


def _bad_record(exc: psycopg.Error) -> Bug:
    return Bug("RefusedByDatabase", f"PostgreSQL refuses a record of this crawl (SQLSTATE {exc.sqlstate})")


def _where(exc: BaseException) -> str:
    """Type and place of an adapter's failure, without its message: that may quote a reply or a credential."""
    last = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__} at {last.filename.rsplit('/', 1)[-1]}:{last.lineno} in {last.name}"
