"""What the operator has seen of the cluster: the newest version of each CrawlBatch, CrawlSource and Job. An informer's cache.

kopf's watches feed it, and so do the answers to our own writes; what comes late is older and is ignored. A watch may miss a
deletion while it is broken: a fresh list, now and then, heals that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from crawlfleet_operator.build import BATCH_UID, DIGEST, REVISION, ROUND, Document
from crawlfleet_operator.plan import JobView
from crawlfleet_operator.times import seconds

BATCHES, SOURCES, JOBS = "crawlbatches", "crawlsources", "jobs"
KINDS = {BATCHES: "CrawlBatch", SOURCES: "CrawlSource", JOBS: "Job"}
"""What is watched: the plural names, as a Key has them, and the kinds of the documents."""


@dataclass(frozen=True)
class Key:
    """One object: `kind` is its plural."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"

    @classmethod
    def of(cls, kind: str, document: Document) -> Key:
        return cls(kind, document["metadata"]["namespace"], document["metadata"]["name"])


GONE = 10_000
"""So many deletions are remembered: answers that come late are seconds late."""


class Sight:
    """Objects by key. One that is gone never comes back: whatever tells of it is late."""

    def __init__(self) -> None:
        self._objects: dict[Key, Document] = {}
        self._gone: dict[tuple[Key, str], None] = {}

    def __getitem__(self, key: Key) -> Document:
        return self._objects[key]

    def get(self, key: Key) -> Document | None:
        return self._objects.get(key)

    def put(self, kind: str, document: Document) -> Key | None:
        """Keep it, unless what is known is as new; its key if it was news."""
        key = Key.of(kind, document)
        known = self._objects.get(key)
        if known is not None and _version(known) >= _version(document):
            return None
        if (key, _uid(document)) in self._gone:
            return None
        self._objects[key] = {**document, "metadata": {**document["metadata"], "managedFields": None}}
        return key

    def drop(self, key: Key) -> Document | None:
        """It will be deleted. Returns what was known of it."""
        return self._objects.pop(key, None)

    def bury(self, key: Key, document: Document) -> bool:
        """It was deleted. False if another one has its name already, which stays."""
        self._gone[key, _uid(document)] = None
        if len(self._gone) > GONE:
            del self._gone[next(iter(self._gone))]
        known = self._objects.get(key)
        if known is not None and _uid(known) != _uid(document):
            return False
        self._objects.pop(key, None)
        return True

    def of_kind(self, kind: str) -> Iterator[tuple[Key, Document]]:
        return ((key, document) for key, document in list(self._objects.items()) if key.kind == kind)

    def drop_missing(
        self, kind: str, listed: Iterable[Document], before: Mapping[Key, Document]
    ) -> list[tuple[Key, Document]]:
        """Drop, and return, what a list does not hold.

        `before` is what was known when the list was asked for: what a watch told since then may be missing in it.
        """
        there = {Key.of(kind, document) for document in listed}
        gone = [(k, known) for k, known in self.of_kind(kind) if k not in there and before.get(k) is known]
        for key, document in gone:
            self.bury(key, document)
        return gone

    def jobs(self, uid: str) -> list[JobView]:
        """The Jobs of a batch."""
        mine = (document for key, document in self.of_kind(JOBS) if _batch_uid(document) == uid)
        return [job_view(job) for job in mine if not job["metadata"].get("deletionTimestamp")]


def job_view(job: Document) -> JobView:
    """A Job as `plan` sees it."""
    metadata, spec, status = job["metadata"], job["spec"], job.get("status", {})
    labels = metadata["labels"]
    ended = {c["type"]: c for c in status.get("conditions", ()) if c["status"] == "True"}
    end = ended.get("Complete") or ended.get("Failed")
    why = ended.get("FailureTarget") or end or {}
    return JobView(
        name=metadata["name"],
        round=int(labels[ROUND]),
        revision=int(labels[REVISION]),
        digest=metadata.get("annotations", {}).get(DIGEST, ""),
        size=0 if spec.get("suspend") else spec["completions"],
        active=status.get("active", 0),
        ready=status.get("ready", 0),
        terminating=status.get("terminating", 0),
        started_s=seconds(status.get("startTime") or metadata["creationTimestamp"]),
        ended=end["type"] if end else "",
        ended_s=seconds(end["lastTransitionTime"]) if end else 0.0,
        message=why.get("message", ""),
    )


def _batch_uid(document: Document) -> str:
    uid: str = document["metadata"].get("labels", {}).get(BATCH_UID, "")
    return uid


def _uid(document: Document) -> str:
    uid: str = document["metadata"]["uid"]
    return uid


def _version(document: Document) -> int:
    return int(document["metadata"]["resourceVersion"])
