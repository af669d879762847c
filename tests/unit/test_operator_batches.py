"""How long something stands in the way of a batch: until it is tried again and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from operators import NOW_S, UID, closed_row, document, event, job_document, pod, row, source_row, unscheduled

from crawlfleet.statuses import CrawlBatchStatus
from crawlfleet.store import oversight
from crawlfleet.store.oversight import BatchRow, Levers
from crawlfleet_operator import build, subjects
from crawlfleet_operator.batches import Batches
from crawlfleet_operator.build import Document, Images
from crawlfleet_operator.cluster import Refused
from crawlfleet_operator.effects import Effects
from crawlfleet_operator.sight import Key, Sight
from crawlfleet_operator.times import written

KEY = Key("crawlbatches", "crawl", "nightly")
IMAGES = Images("registry/crawler:1", "registry/chrome:1", "IfNotPresent", "crawlfleet")


class Stage:
    """A batch that runs, and everything that the operator talks to.

    `refuses` are calls that the API server refuses, `lists` is what it has of each kind.
    """

    def __init__(self) -> None:
        self.now_s = NOW_S
        self.refuses: set[str] = set()
        self.lists = {"pods": [unscheduled("no room")], "events": [event("FailedCreate", "exceeded quota")]}
        self.status = CrawlBatchStatus()
        self.sight = Sight()
        self.row = row(adapters=["noop"])
        self.on_call: dict[Any, Callable[[], object]] = {}
        self.forgotten: list[str] = []
        self.levers: Levers | None = None
        self.made: list[str] = []
        self.deleted: list[tuple[str, str, dict[str, str]]] = []
        self.see_batch({"sources": ["shop"]}, version=1)
        spec = {"adapter": "noop", "maxConcurrent": 4}
        self.sight.put("crawlsources", document("shop", kind="CrawlSource", spec=spec))
        self.see_job(ready=1, version=1)
        stage: Any = self  # as much of a cluster, a database and a writer as is called
        parts: dict[str, Any] = {"sources": lambda: {"shop": source_row()}, "now": lambda: self.now_s}
        effects = Effects(stage, stage, self.sight, IMAGES, refusal=lambda _: None, **parts)
        self.batches = Batches(
            stage, self.sight, stage, effects, IMAGES, mark_in=lambda key, seconds: None, **parts
        )

    def see_batch(self, spec: Document, *, version: int) -> None:
        made = document(version=version, kind="CrawlBatch", spec=spec)
        made["metadata"] |= {"creationTimestamp": written(NOW_S - 70)}
        self.sight.put("crawlbatches", made)

    def see_job(self, *, ready: int, version: int) -> None:
        found = job_document(version=version, active=2, ready=ready, startTime=written(NOW_S - 60))
        batch = subjects.read(KEY, self.sight[KEY], self.sight).batch
        pods = build.pod_template(batch, UID, IMAGES, needs_chrome=False)
        found["metadata"]["annotations"] = {build.DIGEST: build.digest(pods)}
        self.sight.put("jobs", found)

    def reconcile(self) -> dict[str, tuple[str, str | None]]:
        """Status and reason of each condition."""
        asyncio.run(self.batches.reconcile(KEY))
        return {one.type: (one.status, one.reason) for one in self.status.conditions or ()}

    async def __call__(self, do: Any, *args: Any) -> dict[str, BatchRow]:
        self.on_call.get(do, lambda: None)()
        if do is oversight.forget_batch:
            self.forgotten.append(args[0])
        if do is oversight.set_levers:
            self.levers = args[1]
            self.row = replace(self.row, worker_limit=args[1].worker_limit)
        return {UID: self.row}

    async def list(self, plural: str, namespace: str, **query: str) -> list[Document]:
        self._may(plural)
        return self.lists[plural]

    async def patch(self, plural: str, namespace: str, name: str, change: Document) -> Document:
        known = self.sight[Key(plural, namespace, name)]
        metadata = {
            **known["metadata"],
            "resourceVersion": str(int(known["metadata"]["resourceVersion"]) + 1),
        }
        return {**known, "metadata": metadata, "spec": {**known["spec"], **change["spec"]}}

    async def get(self, plural: str, namespace: str, name: str) -> Document:
        return {"data": {"database-url": "", "keys": ""}}

    async def try_out(self, plural: str, namespace: str, made: Document) -> None:
        """It would be taken."""

    async def apply(self, plural: str, made: Document) -> Document:
        self._may(plural)
        if plural != "jobs":
            return made
        self.made.append(made["metadata"]["name"])
        known = {"uid": "its-own", "resourceVersion": "9", "creationTimestamp": written(self.now_s)}
        return {**made, "metadata": {**made["metadata"], **known}}

    async def delete(self, plural: str, namespace: str, name: str, **only: str) -> None:
        self.deleted.append((plural, name, only))

    def _may(self, plural: str) -> None:
        if plural in self.refuses:
            raise Refused(503, "the API server is shutting down")

    def before(self, key: Key, model: type[CrawlBatchStatus]) -> CrawlBatchStatus:
        return self.status

    async def write(self, key: Key, uid: str, status: CrawlBatchStatus) -> None:
        self.status = status


@pytest.mark.parametrize("call", ["pods", "poddisruptionbudgets"])
def test_what_the_api_server_refused_is_over_when_it_takes_it(call: str) -> None:
    stage = Stage()
    stage.refuses = {call}
    assert stage.reconcile()["Degraded"] == ("True", "Refused")
    stage.refuses = set()
    stage.now_s += 60
    stage.see_job(ready=2, version=2)

    found = stage.reconcile()

    assert (found["Degraded"], found["Progressing"]) == (("False", "AsWanted"), ("True", "Running"))


@pytest.mark.parametrize("call", ["pods", "poddisruptionbudgets"])
def test_what_is_refused_every_time_is_told_all_the_time(call: str) -> None:
    """It does not come and go with each look, and an Event each."""
    stage = Stage()
    stage.refuses = {call}
    for _ in range(5):
        assert stage.reconcile()["Degraded"] == ("True", "Refused")
        stage.now_s += 1


def test_pods_that_do_not_start_are_told_in_the_schedulers_words() -> None:
    stage = Stage()
    stage.reconcile()

    assert [one.message for one in stage.status.conditions or () if one.type == "Degraded"] == [
        "1 pod: no room"
    ]


def test_pods_are_looked_at_again_after_the_clock_was_set_back() -> None:
    stage = Stage()
    stage.reconcile()
    stage.now_s -= 3600
    stage.lists["pods"] = [unscheduled("not today")]
    stage.reconcile()

    assert [one.message for one in stage.status.conditions or () if one.type == "Degraded"] == [
        "1 pod: not today"
    ]


@pytest.mark.parametrize("pods", [[], [pod(phase="Failed")]], ids=["none", "only-one-that-ended"])
def test_a_job_that_may_have_no_pods_is_told_in_its_own_words(pods: list[Document]) -> None:
    stage = Stage()
    stage.lists["pods"] = pods
    stage.see_job(ready=0, version=2)

    assert stage.reconcile()["Progressing"] == ("False", "FailedCreate")


def test_a_batch_whose_time_is_over_is_deleted_as_it_was_read() -> None:
    """One that was changed meanwhile, or made anew under its name, nobody asked to delete."""
    stage = Stage()
    stage.row = closed_row(adapters=["noop"], closed_at=NOW_S - 10)
    spec = {"sources": ["shop"], "ttlSecondsAfterFinished": 5}
    stage.see_batch(spec, version=7)
    stage.reconcile()

    assert stage.deleted == [("crawlbatches", "nightly", {"uid": UID, "resourceVersion": "7"})]


def test_a_job_is_deleted_as_it_was_seen() -> None:
    stage = Stage()
    stage.row = closed_row(adapters=["noop"], closed_at=NOW_S - 100)
    stage.reconcile()

    assert stage.deleted == [("jobs", "nightly-1-2", {"uid": UID})]


SPOILT = {"sources": ["shop"], "template": {"spec": {"containers": [{"name": "crawler", "env": "none"}]}}}


def test_a_spoilt_template_keeps_no_lever_from_a_batch_that_runs() -> None:
    """Its pods go on as they were; it may have to be suspended in a hurry."""
    stage = Stage()
    stage.see_job(ready=2, version=2)
    stage.see_batch({**SPOILT, "suspend": True}, version=2)
    found = stage.reconcile()

    assert stage.levers == Levers(0, 10, None)
    assert (found["Degraded"], found["Planned"]) == (("True", "Invalid"), ("True", "Planned"))


def test_a_spoilt_template_makes_no_other_pods() -> None:
    stage = Stage()
    stage.see_job(ready=2, version=2)
    stage.see_batch(SPOILT, version=2)
    found = stage.reconcile()

    assert (found["Degraded"], found["Progressing"]) == (("True", "Invalid"), ("True", "Running"))
    assert stage.levers is None
    stage.see_batch({"sources": ["shop"]}, version=3)
    assert stage.reconcile()["Degraded"] == ("False", "AsWanted")


def test_a_batch_with_a_spoilt_template_is_told_as_complete() -> None:
    stage = Stage()
    stage.row = closed_row(adapters=["noop"])
    stage.see_batch(SPOILT, version=2)

    assert stage.reconcile()["Complete"] == ("True", "AllSucceeded")


def test_a_batch_that_was_deleted_while_it_was_planned_is_forgotten_again() -> None:
    """It was forgotten when there was nothing in the database yet; no Job is made for it, and nothing told."""
    stage = Stage()
    stage.on_call = {oversight.look: lambda: stage.sight.drop(KEY)}
    asyncio.run(stage.batches.reconcile(KEY))

    assert stage.forgotten == [UID]
    assert stage.status == CrawlBatchStatus()


def test_a_job_is_made_though_nobody_may_tell_why_the_last_one_failed() -> None:
    stage = Stage()
    failed = {"type": "Failed", "status": "True", "lastTransitionTime": written(NOW_S - 100)}
    stage.sight.put("jobs", job_document(version=2, conditions=[failed]))
    stage.refuses = {"pods"}
    stage.reconcile()

    assert stage.made == ["nightly-1-3"]
