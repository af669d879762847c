"""Writes statuses: only when they say something new, counts not too often, and an Event for each transition after the write."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from crawlfleet.manifests import API_VERSION
from crawlfleet.statuses import Condition, CrawlBatchStatus, CrawlSourceStatus
from crawlfleet_operator.build import MANAGER
from crawlfleet_operator.cluster import Cluster, Refused, status_of
from crawlfleet_operator.sight import KINDS, Key, Sight
from crawlfleet_operator.status import changes
from crawlfleet_operator.times import written

log = logging.getLogger(__name__)

S = TypeVar("S", CrawlBatchStatus, CrawlSourceStatus)

COUNTS_S = 5.0
"""Between two writes that only bring counts up to date."""
CONFLICT_S = 1.0
"""Until then the watch should have told what has changed."""
COUNTS = ("done", "failed", "cancelled", "sources", "eta", "permits", "throttled", "blocked")


@dataclass(frozen=True)
class _Written:
    uid: str
    status: CrawlBatchStatus | CrawlSourceStatus
    at_s: float


class StatusWriter:
    """Owns what was written last of each object; after a restart that is what the object itself says."""

    def __init__(
        self,
        cluster: Cluster,
        sight: Sight,
        mark_in: Callable[[Key, float], None],
        now: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._sight = sight
        self._mark_in = mark_in
        self._now = now
        self._written: dict[Key, _Written] = {}

    def before(self, key: Key, model: type[S]) -> S:
        """The status that stands there now."""
        document = self._sight.get(key)
        if document is None:
            return model()
        last = self._written.get(key)
        if last is not None and last.uid == document["metadata"]["uid"] and isinstance(last.status, model):
            return last.status
        known = {name: value for name, value in document.get("status", {}).items() if name in _fields(model)}
        try:
            return model.model_validate_json(json.dumps(known))
        except ValidationError:  # by somebody else's hand: it is made anew
            return model()

    async def write(self, key: Key, uid: str, status: S) -> None:
        """Write it, unless it says nothing new, or its object is gone, also if there is another one of that name."""
        document = self._sight.get(key)
        if document is None or document["metadata"]["uid"] != uid:
            return
        before = self.before(key, type(status))
        if status == before:
            return
        last = self._written.get(key)
        if last is not None and _without_counts(status) == _without_counts(before):
            wait_s = last.at_s + COUNTS_S - self._now()
            if 0 < wait_s <= COUNTS_S:  # longer: the clock was set back
                self._mark_in(key, wait_s)
                return
        shown = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        change = status_of(KINDS[key.kind], document, shown)
        try:
            self._sight.put(key.kind, await self._cluster.apply_status(key.kind, change))
        except Refused as exc:
            if exc.is_conflict:  # what was said is of another spec, or of another one of that name
                self._mark_in(key, CONFLICT_S)
            elif not exc.is_gone:
                raise
            return
        self._written[key] = _Written(uid, status, self._now())
        for weight, condition in changes(before, status):
            await self._tell(key, uid, weight, condition)

    def forget(self, key: Key) -> None:
        """It is gone."""
        self._written.pop(key, None)

    async def _tell(self, key: Key, uid: str, weight: str, condition: Condition) -> None:
        """One Event. That it was not taken is no reason to stop."""
        at = written(self._now())
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{key.name}.", "namespace": key.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KINDS[key.kind],
                "namespace": key.namespace,
                "name": key.name,
                "uid": uid,
            },
            "type": weight,
            "reason": condition.reason,
            "message": condition.message or f"{condition.type}: {condition.status}",
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
        }
        try:
            await self._cluster.create("events", key.namespace, event)
        except Refused as exc:
            log.warning("event not taken", extra={"object": str(key), "error": str(exc)})


def _fields(model: type[S]) -> set[str]:
    return {info.alias or name for name, info in model.model_fields.items()}


def _without_counts(status: S) -> S:
    known = type(status).model_fields
    return status.model_copy(update={name: None for name in COUNTS if name in known})
