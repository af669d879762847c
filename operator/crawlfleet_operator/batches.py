"""Reconciles one CrawlBatch: see, plan, take the steps, look again, write the status once.

What it remembers of a batch between two looks can be lost at any time: then a step is taken again, which changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from crawlfleet import documents, planner
from crawlfleet.apply import plan_of
from crawlfleet.errors import BadInput, CrawlfleetError
from crawlfleet.local.watch import Rate, progress
from crawlfleet.manifests import API_VERSION, CrawlBatch, CrawlSource, Manifests
from crawlfleet.sources import needs_browser
from crawlfleet.statuses import CrawlBatchStatus
from crawlfleet.store import oversight
from crawlfleet.store.oversight import BatchRow, SourceRow
from crawlfleet_operator import build, status, trouble
from crawlfleet_operator.build import Document, Images
from crawlfleet_operator.cluster import BATCHES, SOURCES, Cluster, Refused, in_namespace
from crawlfleet_operator.database import Database
from crawlfleet_operator.plan import (
    CreateJob,
    DeleteBatch,
    DeleteJob,
    LookAtPods,
    Observed,
    PlanTasks,
    ResizeJob,
    SetBudget,
    SetLevers,
    Step,
    Trouble,
    again_s,
    plan,
)
from crawlfleet_operator.sight import Key, Sight
from crawlfleet_operator.statuswriter import StatusWriter
from crawlfleet_operator.times import seconds

log = logging.getLogger(__name__)

PASSES = 6
"""Steps may make others due; so often in a row at most."""
LOOK_S = 10.0
"""Between two looks at the pods of one Job."""
KEEP_S = 7 * 86_400
"""How long a batch's tasks outlive its CrawlBatch."""


@dataclass
class Memory:
    """What is remembered of one batch. `alive_s`: when a worker was last seen alive."""

    alive_s: float
    obstacle: Trouble | None = None
    trouble: Trouble | None = None
    looked_s: float = 0.0
    budget: int | None = None
    rate: Rate = field(default_factory=Rate)


@dataclass(frozen=True)
class Subject:
    """The CrawlBatch under reconciliation."""

    key: Key
    uid: str
    generation: int
    created_s: float
    batch: CrawlBatch

    @property
    def namespace(self) -> str:
        return self.key.namespace


class Batches:
    """Owns the memory of every batch.

    `sources` are the rows of the database, `refusal` tells why a CrawlSource is not available; the controller keeps both fresh.
    """

    def __init__(
        self,
        cluster: Cluster,
        database: Database,
        sight: Sight,
        writer: StatusWriter,
        images: Images,
        *,
        sources: Callable[[], dict[str, SourceRow]],
        refusal: Callable[[Key], str | None],
        mark_in: Callable[[Key, float], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._database = database
        self._sight = sight
        self._writer = writer
        self._images = images
        self._sources = sources
        self._refusal = refusal
        self._mark_in = mark_in
        self._now = now
        self._memory: dict[str, Memory] = {}

    async def reconcile(self, key: Key) -> None:
        """Bring it one look further."""
        document = self._sight.get(key)
        if document is None or document["metadata"].get("deletionTimestamp"):
            return
        before = self._writer.before(key, CrawlBatchStatus)
        subject = _read(key, document)
        if isinstance(subject, str):
            generation = document["metadata"]["generation"]
            spoilt = status.spoilt(before, subject, generation, self._now())
            await self._writer.write(key, spoilt)
            return
        await self._reconcile(subject)

    async def _reconcile(self, subject: Subject) -> None:
        memory = self._memory.setdefault(subject.uid, Memory(alive_s=self._now()))
        for _ in range(PASSES):
            seen, template = await self._see(subject, memory)
            if not await self._take_all(subject, memory, template, seen, plan(seen)):
                break
        seen = replace(seen, obstacle=memory.obstacle)
        await self._tell(subject, memory, seen)
        if (wait_s := again_s(seen)) is not None:
            self._mark_in(subject.key, wait_s)

    def spec_changed(self, key: Key) -> None:
        """What stood in the way may not any more: try at once."""
        if document := self._sight.get(key):
            memory = self._memory.get(document["metadata"]["uid"])
            if memory is not None:
                memory.obstacle, memory.looked_s = None, 0.0

    def alive(self, uid: str, row: BatchRow) -> None:
        """The database was looked at."""
        if row.alive and (memory := self._memory.get(uid)):
            memory.alive_s = self._now()

    async def forget(self, document: Document) -> None:
        """Its CrawlBatch is gone; pods and Job go with it by themselves."""
        uid = document["metadata"]["uid"]
        self._memory.pop(uid, None)
        await self._database(oversight.forget_batch, uid, KEEP_S)

    # See.

    async def _see(self, subject: Subject, memory: Memory) -> tuple[Observed, Document]:
        rows = await self._database(oversight.look, None, subject.uid)
        row = rows.get(subject.uid)
        template = self._template(subject)
        now_s = self._now()
        if row is not None:
            self.alive(subject.uid, row)
        seen = Observed(
            spec=subject.batch.spec,
            status=self._writer.before(subject.key, CrawlBatchStatus),
            created_s=subject.created_s,
            row=row,
            jobs=self._sight.jobs(subject.uid),
            digest=build.digest(template),
            obstacle=memory.obstacle,
            alone_s=now_s - memory.alive_s,
            budget=memory.budget,
            now_s=now_s,
        )
        return seen, template

    def _template(self, subject: Subject) -> Document:
        needs_chrome = any(needs_browser(source.spec.adapter) for source in self._crawl_sources(subject))
        return build.pod_template(subject.batch, subject.uid, self._images, needs_chrome=needs_chrome)

    def _crawl_sources(self, subject: Subject) -> list[CrawlSource]:
        found = []
        for name in subject.batch.spec.sources:
            document = self._sight.get(Key(SOURCES, subject.namespace, name))
            source = documents.parse(plain(document)) if document else None
            if isinstance(source, CrawlSource):
                found.append(source)
        return found

    # Act.

    async def _take_all(
        self, subject: Subject, memory: Memory, template: Document, seen: Observed, steps: Sequence[Step]
    ) -> bool:
        """Take the steps; whether another look is worth while now."""
        changed = False
        for step in steps:
            try:
                changed |= await self._take(subject, memory, template, seen, step)
            except _NotYet:
                return False
            except (Refused, BadInput, _Obstacle, planner.NobodyToCrawl) as exc:
                memory.obstacle = _obstacle(exc, step, self._now())
                log.warning("held up", extra={"batch": str(subject.key), "reason": memory.obstacle.reason})
                return False
        return changed

    async def _take(
        self, subject: Subject, memory: Memory, template: Document, seen: Observed, step: Step
    ) -> bool:
        if not isinstance(step, LookAtPods):
            log.info("step", extra={"batch": str(subject.key), "step": str(step)})
        match step:
            case PlanTasks():
                await self._plan_tasks(subject, memory, seen)
            case SetLevers(levers):
                await self._database(oversight.set_levers, subject.uid, levers)
            case CreateJob(revision, size):
                await self._create_job(subject, memory, template, seen, revision, size)
            case ResizeJob(name, size):
                await self._resize(subject, name, size)
            case DeleteJob(name):
                await self._cluster.delete("jobs", subject.namespace, name)
                self._sight.drop(Key("jobs", subject.namespace, name))
            case SetBudget(size):
                await self._set_budget(subject, size)
                memory.budget = size
                return False
            case LookAtPods(job):
                await self._look_at_pods(subject, memory, job)
                return False
            case DeleteBatch():
                await self._cluster.delete(BATCHES, subject.namespace, subject.key.name)
                return False
        return True

    async def _plan_tasks(self, subject: Subject, memory: Memory, seen: Observed) -> None:
        sources = {source.metadata.name: source for source in self._crawl_sources(subject)}
        self._require_sources(subject, sources)
        if seen.status.phase is None:
            await self._tell(subject, memory, seen)  # a big plan takes seconds
        tasks = plan_of(subject.batch, Manifests(sources=sources), uid=subject.uid)
        await self._database.plan(planner.plan_somebody, tasks)
        memory.obstacle = None

    def _require_sources(self, subject: Subject, sources: dict[str, CrawlSource]) -> None:
        missing = [name for name in subject.batch.spec.sources if name not in sources]
        if missing:
            raise _Obstacle(
                "SourceMissing",
                f"there is no CrawlSource {', '.join(missing)} in namespace {subject.namespace}",
            )
        for name in sources:
            row = self._sources().get(name)
            if row is not None and row.namespace == subject.namespace:
                continue
            refusal = self._refusal(Key(SOURCES, subject.namespace, name))
            if refusal is None:
                raise _NotYet(f"CrawlSource {name} is not declared yet")
            raise _Obstacle("SourceUnavailable", f"CrawlSource {name} is not available: {refusal}")

    async def _create_job(
        self, subject: Subject, memory: Memory, template: Document, seen: Observed, revision: int, size: int
    ) -> None:
        await self._require_secret(subject.namespace)
        batch, row = subject.batch, seen.row
        assert row is not None  # a Job is planned for a planned batch alone
        await self._cluster.try_out("pods", subject.namespace, build.pod(batch, template))
        job = build.job(
            batch,
            subject.uid,
            template,
            name=build.job_name(subject.key.name, row.round, revision),
            round_=row.round,
            revision=revision,
            size=size,
        )
        made = await self._cluster.apply("jobs", in_namespace(subject.namespace, job))
        self._sight.put("jobs", made)
        memory.obstacle, memory.trouble, memory.alive_s = None, None, self._now()

    async def _require_secret(self, namespace: str) -> None:
        name = self._images.secret
        try:
            secret = await self._cluster.get("secrets", namespace, name)
        except Refused as exc:
            if not exc.is_gone:
                raise
            raise _Obstacle(
                "SecretMissing",
                f"there is no Secret {name} in namespace {namespace}; it has to hold database-url and keys",
            ) from exc
        lacking = [key for key in ("database-url", "keys") if key not in secret.get("data", {})]
        if lacking:
            raise _Obstacle(
                "SecretMissing", f"the Secret {name} in namespace {namespace} lacks {' and '.join(lacking)}"
            )

    async def _resize(self, subject: Subject, name: str, size: int) -> None:
        change: Document = {"suspend": True}
        if size:
            change = {"suspend": False, "completions": size, "parallelism": size}
        try:
            resized = await self._cluster.patch("jobs", subject.namespace, name, {"spec": change})
        except Refused as exc:
            if not exc.is_gone:
                raise
            self._sight.drop(Key("jobs", subject.namespace, name))
        else:
            self._sight.put("jobs", resized)

    async def _set_budget(self, subject: Subject, size: int) -> None:
        if size == 0:
            await self._cluster.delete("poddisruptionbudgets", subject.namespace, subject.key.name)
        else:
            budget = build.disruption_budget(subject.batch, subject.uid, size)
            await self._cluster.apply("poddisruptionbudgets", in_namespace(subject.namespace, budget))

    async def _look_at_pods(self, subject: Subject, memory: Memory, job: str) -> None:
        if self._now() < memory.looked_s + LOOK_S:
            return
        memory.looked_s = self._now()
        selector = build.selector(subject.uid)
        pods = await self._cluster.list("pods", subject.namespace, labelSelector=selector, limit="500")
        memory.trouble = trouble.of_pods(pods)
        if not pods:
            about = f"involvedObject.kind=Job,involvedObject.name={job},type=Warning"
            events = await self._cluster.list("events", subject.namespace, fieldSelector=about)
            memory.trouble = trouble.of_events(events)

    # Tell.

    async def _tell(self, subject: Subject, memory: Memory, seen: Observed) -> None:
        rate = 0.0
        if seen.row is not None:
            rate = memory.rate.add(seen.now_s, progress(seen.row.counts).crawled)
        around = status.Surroundings(
            generation=subject.generation,
            selector=build.selector(subject.uid),
            sources=self._sources(),
            missing=self._missing(subject),
            trouble=memory.trouble,
            rate=rate,
        )
        await self._writer.write(subject.key, status.describe(seen, around))

    def _missing(self, subject: Subject) -> list[str]:
        return [
            name
            for name in subject.batch.spec.sources
            if self._sight.get(Key(SOURCES, subject.namespace, name)) is None
        ]


class _NotYet(CrawlfleetError):
    """Another reconcile comes first, and marks this batch when it is done."""


class _Obstacle(CrawlfleetError):
    """Something is missing that a person, or time, will bring."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def _obstacle(exc: Exception, step: Step, now_s: float) -> Trouble:
    match exc:
        case _Obstacle():
            reason = exc.reason
        case planner.NobodyToCrawl():
            reason = "EmptySelection"
        case Refused():
            reason = "PodsRefused" if isinstance(step, CreateJob) else "Refused"
        case _:
            reason = "SourceMissing"
    return Trouble(reason, str(exc), now_s)


def plain(document: Document) -> Document:
    """A CrawlBatch or CrawlSource as a person would write it, for the models."""
    metadata = document["metadata"]
    return {
        "apiVersion": API_VERSION,
        "kind": document["kind"],
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": document.get("spec", {}),
    }


def _read(key: Key, document: Document) -> Subject | str:
    """The batch, or what is wrong with it."""
    batch = documents.parse(plain(document))
    if not isinstance(batch, CrawlBatch):
        return "; ".join(batch) if isinstance(batch, list) else "not a CrawlBatch"
    metadata = document["metadata"]
    subject = Subject(
        key, metadata["uid"], metadata["generation"], seconds(metadata["creationTimestamp"]), batch
    )
    try:
        build.pod_template(batch, subject.uid, _NO_IMAGES, needs_chrome=True)
    except BadInput as exc:
        return str(exc)
    return subject


_NO_IMAGES = Images("", "", "", "")
