"""The operator's heart: what was seen goes in, marks come out, and everything is looked at again every few seconds.

Level-triggered: an event only marks an object, and whatever an event did not tell the next resync finds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Any

from crawlfleet.errors import CrawlfleetError, DatabaseUnavailable
from crawlfleet.statuses import CrawlBatchStatus
from crawlfleet.store import fleet, oversight
from crawlfleet.store.migrations import SchemaMismatch
from crawlfleet.store.oversight import BatchRow, SourceRow
from crawlfleet_operator import metrics, status
from crawlfleet_operator.batches import Batches
from crawlfleet_operator.build import BATCH, MANAGED, Document, Images
from crawlfleet_operator.cluster import Cluster
from crawlfleet_operator.database import Database
from crawlfleet_operator.effects import Effects
from crawlfleet_operator.plan import Trouble
from crawlfleet_operator.settings import OperatorSettings
from crawlfleet_operator.sight import BATCHES, JOBS, KINDS, SOURCES, Key, Sight
from crawlfleet_operator.sources import Sources
from crawlfleet_operator.statuswriter import StatusWriter
from crawlfleet_operator.worklist import Worklist

log = logging.getLogger(__name__)

RESYNC_S = 4.0
RELIST_S = 300.0
"""Everything is listed afresh so often: a watch that was broken may have missed a deletion."""
WELL_S = 60.0
"""A resync that is older than this means that the operator is not well."""


class Controller:
    """Owns what was read of the database at the last resync. Everything happens in one event loop."""

    def __init__(
        self,
        settings: OperatorSettings,
        cluster: Cluster,
        database: Database,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._database = database
        self._now = now
        self._rows: dict[str, BatchRow] = {}
        self._source_rows: dict[str, SourceRow] = {}
        self._down: Trouble | None = None
        self._resynced_s = time.monotonic()
        self._relisted_s = 0.0
        self._sight = Sight()
        self._work: Worklist[Key] = Worklist(self._reconcile)
        self._writer = StatusWriter(cluster, self._sight, self._work.mark_in, now)
        self._sources = Sources(
            cluster,
            database,
            self._sight,
            self._writer,
            settings,
            rows=lambda: self._source_rows,
            declared=self._source_declared,
            mark_in=self._work.mark_in,
            now=now,
        )
        images = Images(settings.crawler_image, settings.chrome_image, settings.pull_policy, settings.secret)
        effects = Effects(
            cluster,
            database,
            self._sight,
            images,
            sources=lambda: self._source_rows,
            refusal=self._sources.refusal,
            now=now,
        )
        self._batches = Batches(
            database,
            self._sight,
            self._writer,
            effects,
            images,
            sources=lambda: self._source_rows,
            mark_in=self._work.mark_in,
            now=now,
        )
        self._resyncing: asyncio.Task[None] | None = None
        self.collector = metrics.FleetCollector(self.phases, self.shown)

    async def start(self) -> None:
        """See everything once, then go on for ever."""
        await self._relist()
        self._resyncing = asyncio.create_task(self._resync_for_ever())

    async def stop(self) -> None:
        """What is under way is cut off; the next operator sees what came of it."""
        if self._resyncing is not None:
            self._resyncing.cancel()
        await self._work.stop()
        self._database.close()
        await self._cluster.close()

    def is_well(self) -> bool:
        """Whether it goes on looking at everything. May be asked from any thread."""
        return time.monotonic() - self._resynced_s < WELL_S

    # What the watches tell.

    async def saw(self, kind: str, what: str | None, document: Document) -> None:
        """An object was added, changed or DELETED (or is there, None)."""
        key = Key.of(kind, document)
        if what == "DELETED":
            await self._gone(key, document, is_free=self._sight.bury(key, document))
            return
        known = self._sight.get(key)
        if self._sight.put(kind, document) is None:
            return
        if kind == BATCHES and (known is None or _generation(known) != _generation(document)):
            self._batches.changed(key)
        if kind == JOBS:
            self._work.mark(_batch_of(document))
        elif known is None or _generation(known) != _generation(document) or _is_ending(document):
            self._work.mark(key)

    async def _gone(self, key: Key, document: Document, *, is_free: bool = True) -> None:
        """`is_free`: no other one has its name yet."""
        if key.kind == JOBS:
            self._work.mark(_batch_of(document))
            return
        if is_free:
            self._work.forget(key)
            self._writer.forget(key)
        try:
            if key.kind == BATCHES:
                self._rows.pop(document["metadata"]["uid"], None)
                await self._batches.forget(document["metadata"]["uid"])
            else:
                await self._sources.forget(key)
                self._mark_users_of(key)
        except CrawlfleetError as exc:  # the next relist does it
            log.warning("not forgotten yet", extra={"object": str(key), "error": str(exc)})

    async def _source_declared(self, key: Key) -> None:
        """Batches may wait for it."""
        self._source_rows = await self._database(oversight.sources)
        self._mark_users_of(key)

    def _mark_users_of(self, source: Key) -> None:
        for key, document in self._sight.of_kind(BATCHES):
            if key.namespace == source.namespace and source.name in document["spec"].get("sources", ()):
                self._batches.changed(key)
                self._work.mark(key)

    # One object.

    async def _reconcile(self, key: Key) -> None:
        with metrics.RECONCILE.labels(key.kind).time():
            if self._down is not None:
                await self._tell_down(key, self._down)
            elif key.kind == BATCHES:
                await self._batches.reconcile(key)
            else:
                await self._sources.reconcile(key)

    async def _tell_down(self, key: Key, trouble: Trouble) -> None:
        document = self._sight.get(key)
        if key.kind == BATCHES and document is not None:
            before = self._writer.before(key, CrawlBatchStatus)
            if not status.holds(before, "Complete"):
                told = status.unreadable(before, trouble, self._now())
                await self._writer.write(key, document["metadata"]["uid"], told)

    # Everything.

    async def _resync_for_ever(self) -> None:
        while True:
            try:
                await self._resync()
            except Exception as exc:  # the next one may do better; /healthz tells if none does
                log.warning("resync failed", extra={"error": str(exc)}, exc_info=True)
            await asyncio.sleep(RESYNC_S)

    async def _resync(self) -> None:
        try:
            rows = await self._database(oversight.look, self._namespaces())
            sources = await self._database(oversight.sources)
            await self._database(_housekeep)
        except (DatabaseUnavailable, SchemaMismatch) as exc:
            self._note_down(Trouble(type(exc).__name__, str(exc)))
        else:
            self._note_rows(rows, sources)
        self._resynced_s = time.monotonic()
        metrics.LAST_RESYNC.set_to_current_time()
        if self._down is None and time.monotonic() - self._relisted_s > RELIST_S:
            await self._relist()

    def _note_down(self, trouble: Trouble) -> None:
        metrics.DATABASE_UP.set(0)
        if self._down is None:
            log.error("database unavailable", extra={"error": trouble.message})
        self._down = trouble
        self._mark_all(BATCHES)

    def _note_rows(self, rows: dict[str, BatchRow], sources: dict[str, SourceRow]) -> None:
        metrics.DATABASE_UP.set(1)
        was_down, self._down = self._down is not None, None
        before, self._rows = self._rows, rows
        sources_before, self._source_rows = self._source_rows, sources
        if was_down:
            log.info("database back")
            self._sources.doubt()
            self._mark_all(BATCHES)
            self._mark_all(SOURCES)
        for uid, row in rows.items():
            self._batches.note(row)
            if before.get(uid) != row:
                self._work.mark(Key(BATCHES, row.namespace, row.name))
        for key, _ in self._sight.of_kind(SOURCES):
            if sources_before.get(key.name) != sources.get(key.name):
                self._work.mark(key)

    async def _relist(self) -> None:
        """List everything, in each namespace: what a watch did not tell is seen, what is gone is forgotten."""
        suspects = await self._suspects()
        for kind, query in ((SOURCES, {}), (BATCHES, {}), (JOBS, {"labelSelector": MANAGED})):
            before = dict(self._sight.of_kind(kind))
            documents = [
                {"kind": KINDS[kind], **document}
                for namespace in self._settings.namespaces or (None,)
                for document in await self._cluster.list(kind, namespace, **query)
            ]
            for document in documents:
                await self.saw(kind, None, document)
            for key, document in self._sight.drop_missing(kind, documents, before):
                await self._gone(key, document)
        self._relisted_s = time.monotonic()
        await self._forget_orphans(*suspects)

    async def _suspects(self) -> tuple[list[str], list[Key]]:
        """What the database has before the cluster is asked: what came later, another operator may have brought."""
        try:
            uids = await self._database(oversight.orphaned_batches, self._namespaces(), [])
            claims = await self._database(oversight.claimed_sources, self._namespaces())
        except CrawlfleetError as exc:
            log.warning("orphans not looked for", extra={"error": str(exc)})
            return [], []
        return uids, [Key(SOURCES, namespace, name) for name, namespace in claims]

    async def _forget_orphans(self, uids: Collection[str], sources: Collection[Key]) -> None:
        """Batches and sources of the database whose objects were deleted while nobody watched."""
        known = self._uids()
        try:
            for uid in uids:
                if uid not in known:
                    await self._batches.forget(uid)
            for key in sources:
                if self._sight.get(key) is None:
                    await self._sources.forget(key)
        except CrawlfleetError as exc:
            log.warning("orphans not forgotten yet", extra={"error": str(exc)})

    def _uids(self) -> set[str]:
        return {document["metadata"]["uid"] for _, document in self._sight.of_kind(BATCHES)}

    def _mark_all(self, kind: str) -> None:
        for key, _ in self._sight.of_kind(kind):
            self._work.mark(key)

    def _namespaces(self) -> list[str] | None:
        return list(self._settings.namespaces) or None

    def shown(self) -> list[BatchRow]:
        """Of every CrawlBatch that is there: until one that is gone is forgotten, the next of its name would have its series."""
        known = self._uids()
        return [row for row in list(self._rows.values()) if row.uid in known]

    def phases(self) -> list[str]:
        """Of every CrawlBatch."""
        found = self._sight.of_kind(BATCHES)
        return [document.get("status", {}).get("phase", "Pending") for _, document in found]


def _housekeep(conn: Any) -> None:
    """The fleet's chores: no worker may be there to do them."""
    if fleet.is_housekeeping_due(conn, RESYNC_S / 2):
        fleet.housekeep(conn)


def _batch_of(job: Document) -> Key:
    metadata = job["metadata"]
    return Key(BATCHES, metadata["namespace"], metadata["labels"][BATCH])


def _generation(document: Document) -> int:
    generation: int = document["metadata"]["generation"]
    return generation


def _is_ending(document: Document) -> bool:
    return "deletionTimestamp" in document["metadata"]
