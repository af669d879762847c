"""Takes the steps that `plan` found due, in the cluster and in the database. Each may be taken twice."""

from __future__ import annotations

from collections.abc import Callable

from crawlfleet import planner
from crawlfleet.apply import plan_of
from crawlfleet.errors import CrawlfleetError
from crawlfleet.manifests import Manifests
from crawlfleet.store import oversight
from crawlfleet.store.oversight import SourceRow
from crawlfleet_operator import build, trouble
from crawlfleet_operator.build import Document, Images
from crawlfleet_operator.cluster import Cluster, Refused, in_namespace
from crawlfleet_operator.database import PLANNERS, Database
from crawlfleet_operator.plan import (
    REFUSED,
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
)
from crawlfleet_operator.sight import BATCHES, JOBS, SOURCES, Key, Sight
from crawlfleet_operator.subjects import Memory, Subject, crawl_sources

LOOK_S = 10.0
"""Between two looks at the pods of one batch."""


class NotYet(CrawlfleetError):
    """Another reconcile comes first: try again soon."""


class Obstacle(CrawlfleetError):
    """Something is missing that a person, or time, will bring. `reason` is CamelCase."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Effects:
    """`sources` are the rows of the database, `refusal` tells why a CrawlSource is not available."""

    def __init__(
        self,
        cluster: Cluster,
        database: Database,
        sight: Sight,
        images: Images,
        *,
        sources: Callable[[], dict[str, SourceRow]],
        refusal: Callable[[Key], str | None],
        now: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._database = database
        self._sight = sight
        self._images = images
        self._sources = sources
        self._refusal = refusal
        self._now = now
        self._plans = 0

    async def take(
        self, subject: Subject, memory: Memory, template: Document, seen: Observed, step: Step
    ) -> bool:
        """Whether another look is worth while now. `template` is what its pods shall be. Raises Obstacle, or NotYet."""
        try:
            return await self._take(subject, memory, template, seen, step)
        except planner.NobodyToCrawl as exc:
            raise Obstacle("EmptySelection", str(exc)) from exc
        except Refused as exc:
            raise Obstacle("PodsRefused" if isinstance(step, CreateJob) else REFUSED, str(exc)) from exc

    async def _take(
        self, subject: Subject, memory: Memory, template: Document, seen: Observed, step: Step
    ) -> bool:
        match step:
            case PlanTasks():
                await self._plan_tasks(subject)
            case SetLevers(levers):
                await self._database(oversight.set_levers, subject.uid, levers)
            case CreateJob(revision, size):
                assert seen.row is not None  # a Job is planned for a planned batch alone
                await self._create_job(subject, template, seen.row.round, revision, size)
                memory.trouble, memory.alive_s = None, self._now()
            case ResizeJob(name, size):
                await self._resize(subject, name, size)
            case DeleteJob(name):
                await self._delete_job(Key(JOBS, subject.namespace, name))
            case SetBudget(size):
                await self._set_budget(subject, size)
                memory.budget = size
                return False
            case LookAtPods(job):
                await self._look_at_pods(subject, memory, job)
                return False
            case DeleteBatch():
                await self._delete_batch(subject)
                return False
        memory.obstacle = None
        return True

    async def _plan_tasks(self, subject: Subject) -> None:
        if subject.missing:
            names = ", ".join(subject.missing)
            raise Obstacle(
                "SourceMissing", f"there is no CrawlSource {names} in namespace {subject.namespace}"
            )
        sources = crawl_sources(subject, self._sight)
        for name in subject.batch.spec.sources:
            self._require_declared(subject.namespace, name, is_readable=name in sources)
        tasks = plan_of(subject.batch, Manifests(sources=sources), uid=subject.uid)
        if self._plans >= PLANNERS:
            raise NotYet(
                "others are planned first; whoever waited here would keep levers from being looked at"
            )
        self._plans += 1
        try:
            await self._database.plan(planner.plan_somebody, tasks)
        finally:
            self._plans -= 1

    def _require_declared(self, namespace: str, name: str, *, is_readable: bool) -> None:
        row = self._sources().get(name)
        if is_readable and row is not None and row.namespace == namespace:
            return
        refusal = self._refusal(Key(SOURCES, namespace, name))
        if refusal is None:
            raise NotYet(f"CrawlSource {name} is not declared yet")
        raise Obstacle("SourceUnavailable", f"CrawlSource {name} is not available: {refusal}")

    async def _create_job(
        self, subject: Subject, template: Document, round_: int, revision: int, size: int
    ) -> None:
        await self._require_secret(subject.namespace)
        batch = subject.batch
        await self._cluster.try_out("pods", subject.namespace, build.pod(batch, template))
        name = build.job_name(subject.key.name, round_, revision)
        job = build.job(batch, subject.uid, template, name=name, round_=round_, revision=revision, size=size)
        made = await self._cluster.apply(JOBS, in_namespace(subject.namespace, job))
        self._sight.put(JOBS, made)

    async def _require_secret(self, namespace: str) -> None:
        """A pod without it would wait for ever."""
        name = self._images.secret
        try:
            secret = await self._cluster.get("secrets", namespace, name)
        except Refused as exc:
            if not exc.is_gone:
                raise
            words = (
                f"there is no Secret {name} in namespace {namespace}; it has to hold database-url and keys"
            )
            raise Obstacle("SecretMissing", words) from exc
        lacking = [key for key in ("database-url", "keys") if key not in secret.get("data", {})]
        if lacking:
            words = f"the Secret {name} in namespace {namespace} lacks {' and '.join(lacking)}"
            raise Obstacle("SecretMissing", words)

    async def _resize(self, subject: Subject, name: str, size: int) -> None:
        change: Document = {"suspend": True}
        if size:
            change = {"suspend": False, "completions": size, "parallelism": size}
        try:
            resized = await self._cluster.patch(JOBS, subject.namespace, name, {"spec": change})
        except Refused as exc:
            if not exc.is_gone:
                raise
            self._sight.drop(Key(JOBS, subject.namespace, name))
        else:
            self._sight.put(JOBS, resized)

    async def _delete_job(self, key: Key) -> None:
        if (job := self._sight.get(key)) is not None:
            await self._cluster.delete(key.kind, key.namespace, key.name, uid=job["metadata"]["uid"])
            self._sight.drop(key)

    async def _delete_batch(self, subject: Subject) -> None:
        """As it was read: one that was changed meanwhile may have been given more time."""
        only = {"uid": subject.uid, "resourceVersion": subject.version}
        await self._cluster.delete(BATCHES, subject.namespace, subject.key.name, **only)

    async def _set_budget(self, subject: Subject, size: int) -> None:
        if size == 0:
            await self._cluster.delete("poddisruptionbudgets", subject.namespace, subject.key.name)
        else:
            budget = build.disruption_budget(subject.batch, subject.uid, size)
            await self._cluster.apply("poddisruptionbudgets", in_namespace(subject.namespace, budget))

    async def _look_at_pods(self, subject: Subject, memory: Memory, job: str) -> None:
        if 0 <= self._now() - memory.looked_s < LOOK_S:  # below: the clock was set back
            return
        selector = build.selector(subject.uid)
        pods = await self._cluster.list("pods", subject.namespace, labelSelector=selector, limit="500")
        memory.looked_s = self._now()
        memory.trouble = trouble.of_pods(pods)
        if memory.trouble is None and all(map(trouble.has_ended, pods)):
            about = f"involvedObject.kind=Job,involvedObject.name={job},type=Warning"
            events = await self._cluster.list("events", subject.namespace, fieldSelector=about)
            memory.trouble = trouble.of_events(events)
