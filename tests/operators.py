"""Builders for tests of the operator: what it sees of a batch, and the documents that a cluster would show it.

The default is a batch `nightly` that runs as it should: two workers are wanted, there, and set in the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from crawlfleet.manifests import CrawlBatch, CrawlBatchSpec
from crawlfleet.statuses import Condition, CrawlBatchStatus
from crawlfleet.store.batches import Counts
from crawlfleet.store.oversight import BatchRow, SourceRow
from crawlfleet_operator.build import BATCH_UID, DIGEST, REVISION, ROUND, Document
from crawlfleet_operator.plan import JobView, Observed, Trouble
from crawlfleet_operator.status import Surroundings
from crawlfleet_operator.times import written

UID = "5b7f8f3e-0000-4000-8000-000000000001"
NOW_S = 1_800_000_000.0
DIGEST_NOW = "digest-now"
JOB_TIMEOUT_S = 600.0


def spec(**fields: Any) -> CrawlBatchSpec:
    """Fields as a manifest has them."""
    return CrawlBatchSpec.model_validate({"sources": ["shop"], **fields})


def batch(name: str = "nightly", **fields: Any) -> CrawlBatch:
    return CrawlBatch.model_validate(
        {
            "apiVersion": "crawlfleet.dev/v1alpha1",
            "kind": "CrawlBatch",
            "metadata": {"name": name, "namespace": "crawl"},
            "spec": {"sources": ["shop"], **fields},
        }
    )


def tasks(source: str = "shop", **numbers: int) -> Counts:
    """Counts of one source; `dead_auth=2` are dead of that verdict."""
    counted: dict[tuple[str, str | None], int] = {}
    for name, number in numbers.items():
        state, _, verdict = name.partition("_")
        counted[state, verdict or None] = number
    return {source: counted}


def row(**changed: Any) -> BatchRow:
    """A batch that has run for a minute."""
    plain = BatchRow(
        uid=UID,
        namespace="crawl",
        name="nightly",
        state="running",
        round=1,
        stop="none",
        worker_limit=2,
        max_concurrent=10,
        total=10,
        closed_at=None,
        adapters=["cafe24"],
        job_timeout_s=JOB_TIMEOUT_S,
        counts=tasks(ready=10),
        first_worker_at=NOW_S - 50,
        alive=2,
        held={0: 0, 1: 0},
    )
    return replace(plain, **changed)


def closed_row(**changed: Any) -> BatchRow:
    """It closed ten seconds ago; nobody is asked for its workers any more."""
    ended = {"state": "closed", "closed_at": NOW_S - 10, "alive": 0, "held": {}, "counts": tasks(ok=10)}
    return row(**{**ended, "first_worker_at": None, **changed})


def job(revision: int = 1, size: int = 2, **changed: Any) -> JobView:
    """A Job all of whose pods are ready."""
    round_ = changed.pop("round", 1)
    plain = JobView(
        name=f"nightly-{round_}-{revision}",
        round=round_,
        revision=revision,
        digest=DIGEST_NOW,
        size=size,
        active=size,
        ready=size,
        terminating=0,
        started_s=NOW_S - 60,
    )
    return replace(plain, **changed)


def ended_job(how: Literal["Complete", "Failed"], ago_s: float, **changed: Any) -> JobView:
    return job(active=0, ready=0, ended=how, ended_s=NOW_S - ago_s, **changed)


def condition(
    type_: str, status: Literal["True", "False"], reason: str = "Reason", ago_s: float = 0
) -> Condition:
    since = written(NOW_S - ago_s)
    return Condition(type=type_, status=status, reason=reason, last_transition_time=since)


def status(*conditions: Condition, **fields: Any) -> CrawlBatchStatus:
    """What was written last: of the first round and revision, with a worker that began 50 s ago."""
    known = {"round": 1, "revision": 1, "start_time": written(NOW_S - 50), **fields}
    return CrawlBatchStatus(conditions=conditions or None, **known)


def seen(*conditions: Condition, **changed: Any) -> Observed:
    """What is known of the batch. A mapping as `spec` stands for such a spec; `conditions` were written last."""
    wanted = changed.pop("spec", {})
    plain = Observed(
        spec=wanted if isinstance(wanted, CrawlBatchSpec) else spec(**wanted),
        status=status(*conditions),
        created_s=NOW_S - 70,
        row=row(),
        jobs=[job()],
        digest=DIGEST_NOW,
        obstacle=None,
        alone_s=0.0,
        budget=2,
        now_s=NOW_S,
    )
    return replace(plain, **changed)


def new(**changed: Any) -> Observed:
    """A batch that nothing has been done for, made a second ago."""
    nothing: dict[str, Any] = {"row": None, "jobs": [], "status": CrawlBatchStatus(), "budget": None}
    return seen(**{**nothing, "created_s": NOW_S - 1, **changed})


def planned(**changed: Any) -> Observed:
    """The same, whose tasks are in the database: no worker has begun."""
    fresh = row(alive=0, held={}, first_worker_at=None)
    return new(**{"row": fresh, **changed})


def trouble(reason: str = "NoCapacity", ago_s: float = 0) -> Trouble:
    return Trouble(reason, "the cluster's words", NOW_S - ago_s)


def source_row(name: str = "shop", **changed: Any) -> SourceRow:
    plain = SourceRow(
        name=name, namespace="crawl", total=4, held=0, cooling=0, blocked=0, throttled=0, cool_until=None
    )
    return replace(plain, **changed)


def around(*sources: SourceRow, **changed: Any) -> Surroundings:
    """Its source `shop` is open unless others are given."""
    plain = Surroundings(
        generation=3,
        selector=f"{BATCH_UID}={UID}",
        sources={one.name: one for one in sources or [source_row()]},
        missing=[],
        trouble=None,
        rate=0.0,
    )
    return replace(plain, **changed)


# Documents of a cluster.


def document(name: str = "nightly", *, version: int = 1, uid: str = UID, **fields: Any) -> Document:
    """Any object, as a watch hands it over."""
    metadata = {"namespace": "crawl", "name": name, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": {**metadata, "generation": 1, "managedFields": []}, **fields}


def job_document(
    *,
    version: int = 1,
    uid: str = UID,
    suspend: bool = False,
    conditions: Sequence[Document] = (),
    **status: Any,
) -> Document:
    """A Job of two workers."""
    made = document(
        "nightly-1-2",
        version=version,
        spec={"completions": 2, "parallelism": 2, "suspend": suspend},
        status={"conditions": list(conditions), **status},
    )
    made["metadata"] |= {
        "labels": {BATCH_UID: uid, ROUND: "1", REVISION: "2"},
        "annotations": {DIGEST: DIGEST_NOW},
        "creationTimestamp": written(NOW_S - 30),
    }
    return made


def pod(**status: Any) -> Document:
    return {"metadata": {"name": "nightly-1-1-0-abcde"}, "status": status}


def unscheduled(words: str) -> Document:
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "message": words}])


def waiting(reason: str, message: str = "", *, container: str = "crawler", init: bool = False) -> Document:
    """A pod with a container that waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    statuses = [{"name": container, "image": "registry/crawler:1", "state": state}]
    return pod(**{"initContainerStatuses" if init else "containerStatuses": statuses})


def terminated(code: int, message: str = "", *, container: str = "crawler", at: str = "") -> Document:
    """A pod with a container that has ended."""
    end = {"exitCode": code, "message": message, "reason": "Error", "finishedAt": at}
    return pod(containerStatuses=[{"name": container, "state": {"terminated": end}}])


def event(reason: str, message: str, *, at: str = "", type_: str = "Warning") -> Document:
    return {"type": type_, "reason": reason, "message": message, "lastTimestamp": at}
