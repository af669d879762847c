"""Reconciles one CrawlBatch: see, plan, take the steps, look again, write the status once.

What it remembers of a batch between two looks can be lost at any time: then a step is taken again, which changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from crawlfleet.errors import BadInput
from crawlfleet.progress import progress
from crawlfleet.sources import needs_browser
from crawlfleet.statuses import CrawlBatchStatus
from crawlfleet.store import oversight
from crawlfleet.store.oversight import BatchRow, SourceRow
from crawlfleet_operator import build, status, subjects
from crawlfleet_operator.build import Document, Images
from crawlfleet_operator.database import Database
from crawlfleet_operator.effects import Effects, NotYet, Obstacle
from crawlfleet_operator.plan import REFUSED, LookAtPods, Observed, PlanTasks, Step, Trouble, again_s, plan
from crawlfleet_operator.sight import Key, Sight
from crawlfleet_operator.statuswriter import StatusWriter
from crawlfleet_operator.subjects import Memory, Subject

log = logging.getLogger(__name__)

INVALID = "Invalid"
PASSES = 6
"""Steps may make others due; so often in a row at most."""
NOT_YET_S = 2.0
"""What has to come first usually marks the batch when it has come; it may have failed to."""
KEEP_S = 7 * 86_400
"""How long a batch's tasks outlive its CrawlBatch."""


class Batches:
    """Owns the memory of every batch. `sources` are the rows of the database, which the controller keeps fresh."""

    def __init__(
        self,
        database: Database,
        sight: Sight,
        writer: StatusWriter,
        effects: Effects,
        images: Images,
        *,
        sources: Callable[[], dict[str, SourceRow]],
        mark_in: Callable[[Key, float], None],
        now: Callable[[], float],
    ) -> None:
        self._database = database
        self._sight = sight
        self._writer = writer
        self._effects = effects
        self._images = images
        self._sources = sources
        self._mark_in = mark_in
        self._now = now
        self._memory: dict[str, Memory] = {}

    async def reconcile(self, key: Key) -> None:
        """Bring it one look further."""
        document = self._sight.get(key)
        if document is None or document["metadata"].get("deletionTimestamp"):
            return
        try:
            await self._reconcile(subjects.read(key, document, self._sight))
        except BadInput as exc:
            before = self._writer.before(key, CrawlBatchStatus)
            generation = document["metadata"]["generation"]
            words = status.spoilt(before, str(exc), generation, self._now())
            await self._writer.write(key, document["metadata"]["uid"], words)

    def changed(self, key: Key) -> None:
        """What stood in the way may not any more: try at once."""
        document = self._sight.get(key)
        memory = self._memory.get(document["metadata"]["uid"]) if document else None
        if memory is not None:
            memory.obstacle, memory.looked_s = None, 0.0

    def note(self, row: BatchRow) -> None:
        """The database was looked at."""
        if row.alive and (memory := self._memory.get(row.uid)):
            memory.alive_s = self._now()

    async def forget(self, uid: str) -> None:
        """Its CrawlBatch is gone; pods and Job go with it by themselves."""
        self._memory.pop(uid, None)
        await self._database(oversight.forget_batch, uid, KEEP_S)

    async def _reconcile(self, subject: Subject) -> None:
        memory = self._memory.setdefault(subject.uid, Memory(alive_s=self._now()))
        for _ in range(PASSES):
            seen, template = await self._see(subject, memory)
            if not self._is_there(subject):
                await self.forget(subject.uid)  # also what was planned since it was forgotten
                return
            if not await self._take_all(subject, memory, template, seen, plan(seen)):
                break
        seen = replace(seen, obstacle=memory.obstacle)
        await self._tell(subject, memory, seen)
        if (wait_s := again_s(seen)) is not None:
            self._mark_in(subject.key, wait_s)

    def _is_there(self, subject: Subject) -> bool:
        """Whether it was not deleted meanwhile; another one may have its name already."""
        document = self._sight.get(subject.key)
        return document is not None and document["metadata"]["uid"] == subject.uid

    async def _see(self, subject: Subject, memory: Memory) -> tuple[Observed, Document]:
        """What is known now, and what its pods shall be."""
        rows = await self._database(oversight.look, None, subject.uid)
        row = rows.get(subject.uid)
        if row is not None:
            self.note(row)
        needs_chrome = row is not None and any(needs_browser(adapter) for adapter in row.adapters)
        now_s = self._now()
        template: Document = {}
        try:
            template = build.pod_template(subject.batch, subject.uid, self._images, needs_chrome=needs_chrome)
        except BadInput as exc:
            if row is None or row.state == "planning":
                raise
            memory.obstacle = Trouble(INVALID, str(exc), now_s)  # its levers work all the same
        else:
            if memory.obstacle is not None and memory.obstacle.reason == INVALID:
                memory.obstacle = None
        seen = Observed(
            spec=subject.batch.spec,
            status=self._writer.before(subject.key, CrawlBatchStatus),
            created_s=subject.created_s,
            row=row,
            jobs=self._sight.jobs(subject.uid),
            digest=build.digest(template) if template else None,
            obstacle=memory.obstacle,
            alone_s=now_s - memory.alive_s,
            budget=memory.budget,
            now_s=now_s,
        )
        return seen, template

    async def _take_all(
        self, subject: Subject, memory: Memory, template: Document, seen: Observed, steps: Sequence[Step]
    ) -> bool:
        """Take the steps; whether another look is worth while now."""
        if PlanTasks() in steps and seen.status.phase is None:
            await self._tell(subject, memory, seen)  # a big plan takes seconds
        changed = lacks_words = False
        for step in steps:
            if not isinstance(step, LookAtPods):
                log.info("step", extra={"batch": str(subject.key), "step": str(step)})
            try:
                changed |= await self._effects.take(subject, memory, template, seen, step)
            except NotYet:
                self._mark_in(subject.key, NOT_YET_S)
                return False
            except Obstacle as exc:
                memory.obstacle = Trouble(exc.reason, str(exc), self._now())
                log.warning("held up", extra={"batch": str(subject.key), "reason": exc.reason})
                if not isinstance(step, LookAtPods):
                    return False
                lacks_words = True
        if not lacks_words and memory.obstacle is not None and memory.obstacle.reason == REFUSED:
            memory.obstacle = None
        return changed

    async def _tell(self, subject: Subject, memory: Memory, seen: Observed) -> None:
        rate = memory.rate.add(seen.now_s, progress(seen.row.counts).crawled) if seen.row else 0.0
        around = status.Surroundings(
            generation=subject.generation,
            selector=build.selector(subject.uid),
            sources=self._sources(),
            missing=subject.missing,
            trouble=memory.trouble,
            rate=rate,
        )
        await self._writer.write(subject.key, subject.uid, status.describe(seen, around))
