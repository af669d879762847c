"""When a status is written, and which Events follow: little is written, and nothing is told twice."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from operators import NOW_S, UID, condition, document

from crawlfleet.statuses import CrawlBatchStatus, CrawlSourceStatus
from crawlfleet_operator.build import Document
from crawlfleet_operator.cluster import Refused
from crawlfleet_operator.sight import Key, Sight
from crawlfleet_operator.statuswriter import CONFLICT_S, COUNTS, COUNTS_S, StatusWriter

KEY = Key("crawlbatches", "crawl", "nightly")
RUNS = condition("Progressing", "True", "Running")
DEGRADED = condition("Degraded", "True", "NoCapacity")


@dataclass
class Stage:
    """A cluster of one object, a clock, and a writer: what was called in its order, when to look again."""

    called: list[tuple[str, Document]] = field(default_factory=list)
    marked: list[tuple[Key, float]] = field(default_factory=list)
    refused: dict[str, Refused] = field(default_factory=dict)
    now_s: float = NOW_S
    uid: str = UID

    def __post_init__(self) -> None:
        self.sight = Sight()
        self.sight.put("crawlbatches", document())
        self.writer = self.restarted()

    def restarted(self) -> StatusWriter:
        """A writer that has written nothing."""
        self.writer = StatusWriter(self, self.sight, self._mark_in, lambda: self.now_s)  # type: ignore[arg-type]  # as much of a cluster as it calls
        return self.writer

    def _mark_in(self, key: Key, seconds: float) -> None:
        self.marked.append((key, seconds))

    def write(self, *conditions: Any, **fields: Any) -> None:
        status = CrawlBatchStatus(conditions=conditions or None, **fields)
        asyncio.run(self.writer.write(KEY, self.uid, status))

    async def apply_status(self, plural: str, change: Document) -> Document:
        if "status" in self.refused:
            raise self.refused["status"]
        self.called.append(("status", change))
        return document(version=1 + len(self.called), status=change["status"])

    async def create(self, plural: str, namespace: str, made: Document) -> None:
        if "event" in self.refused:
            raise self.refused["event"]
        self.called.append(("event", made))

    @property
    def what(self) -> list[str]:
        return [what for what, _ in self.called]

    @property
    def last(self) -> Document:
        return self.called[-1][1]


def test_a_status_is_applied_as_kubernetes_has_it() -> None:
    stage = Stage()
    stage.write(phase="Running", ready_workers=2)

    assert stage.called == [
        (
            "status",
            {
                "apiVersion": "crawlfleet.dev/v1alpha1",
                "kind": "CrawlBatch",
                "metadata": {"name": "nightly", "namespace": "crawl", "resourceVersion": "1"},
                "status": {"phase": "Running", "readyWorkers": 2},
            },
        )
    ]


def test_what_was_written_is_what_is_seen() -> None:
    """Without waiting for the watch: the next look has to know it."""
    stage = Stage()
    stage.write(phase="Running")

    assert stage.sight[KEY]["status"] == {"phase": "Running"}
    assert stage.writer.before(KEY, CrawlBatchStatus).phase == "Running"


def test_nothing_is_written_when_nothing_has_changed() -> None:
    stage = Stage()
    for _ in range(3):
        stage.write(RUNS, phase="Running", done=1)

    assert stage.what.count("status") == 1


def test_nothing_is_written_after_a_restart_when_nothing_has_changed() -> None:
    stage = Stage()
    stage.write(RUNS, phase="Running", done=1)
    stage.restarted()
    stage.write(RUNS, phase="Running", done=1)

    assert stage.what == ["status", "event"]


def test_counts_alone_are_written_every_few_seconds() -> None:
    stage = Stage()
    stage.write(done=1)
    stage.now_s += 2
    stage.write(done=2)
    assert (stage.what, stage.marked) == (["status"], [(KEY, COUNTS_S - 2)])
    stage.now_s += COUNTS_S - 2
    stage.write(done=3)

    assert stage.what == ["status", "status"]
    assert stage.last["status"] == {"done": 3}


@pytest.mark.parametrize("news", [{"phase": "Complete"}, {"ready_workers": 3}, {"revision": 2}], ids=str)
def test_other_news_are_written_at_once(news: dict[str, Any]) -> None:
    stage = Stage()
    stage.write(done=1)
    stage.write(done=2, **news)

    assert stage.what == ["status", "status"]


def test_an_event_follows_the_write() -> None:
    stage = Stage()
    stage.write(RUNS)

    assert stage.what == ["status", "event"]
    assert (stage.last["type"], stage.last["reason"]) == ("Normal", "Running")
    assert stage.last["involvedObject"]["name"] == "nightly"
    assert stage.last["involvedObject"]["uid"] == document()["metadata"]["uid"]
    assert stage.last["metadata"]["namespace"] == "crawl"


def test_every_transition_is_an_event_of_its_own() -> None:
    stage = Stage()
    stage.write(RUNS)
    stage.write(RUNS, DEGRADED)

    assert [(made["type"], made["reason"]) for what, made in stage.called if what == "event"] == [
        ("Normal", "Running"),
        ("Warning", "NoCapacity"),
    ]


def test_no_event_without_the_write() -> None:
    stage = Stage(refused={"status": Refused(500, "no")})
    with pytest.raises(Refused):
        stage.write(RUNS)
    assert stage.called == []
    stage.refused.clear()
    stage.write(RUNS)

    assert stage.what == ["status", "event"]


def test_an_event_that_is_refused_stops_nothing() -> None:
    stage = Stage(refused={"event": Refused(403, "no")})
    stage.write(RUNS)
    stage.write(RUNS)

    assert stage.what == ["status"]


def test_an_object_that_is_gone_is_no_error() -> None:
    stage = Stage(refused={"status": Refused(404, "gone")})
    stage.write(RUNS)

    assert stage.called == []


def test_a_status_of_what_has_changed_meanwhile_is_made_anew() -> None:
    """It would be another spec's, or that of an object which is no more, told of its namesake."""
    stage = Stage(refused={"status": Refused(409, "the object has been modified")})
    stage.write(RUNS)

    assert (stage.called, stage.marked) == ([], [(KEY, CONFLICT_S)])
    assert stage.writer.before(KEY, CrawlBatchStatus) == CrawlBatchStatus()


def test_an_object_that_nobody_sees_is_not_written() -> None:
    stage = Stage()
    stage.sight.drop(KEY)
    stage.write(RUNS)

    assert stage.called == []


def test_an_object_of_the_same_name_begins_anew() -> None:
    """The status of the one before it is none of its own."""
    stage = Stage()
    stage.write(RUNS, phase="Running")
    stage.sight.put("crawlbatches", document(version=99, uid="another"))

    assert stage.writer.before(KEY, CrawlBatchStatus) == CrawlBatchStatus()
    stage.write(DEGRADED, phase="Running")
    assert stage.what == ["status", "event"], "what is said of the one before it is not said of this one"
    stage.uid = "another"
    stage.write(RUNS, phase="Running")
    assert stage.what == ["status", "event"] * 2


def test_counts_are_written_after_the_clock_was_set_back() -> None:
    """They would stand still for as long as that."""
    stage = Stage()
    stage.write(done=1)
    stage.now_s -= 3600
    stage.write(done=2)

    assert (stage.what, stage.marked) == (["status", "status"], [])


@pytest.mark.parametrize(
    ("standing", "known"),
    [
        pytest.param(
            {"phase": "Running", "kopf": {}}, CrawlBatchStatus(phase="Running"), id="a-field-of-others"
        ),
        pytest.param({"phase": 7}, CrawlBatchStatus(), id="by-somebody-elses-hand"),
    ],
)
def test_a_status_that_we_did_not_write_is_read_as_far_as_it_goes(
    standing: Document, known: CrawlBatchStatus
) -> None:
    stage = Stage()
    stage.sight.put("crawlbatches", document(version=2, status=standing))

    assert stage.writer.before(KEY, CrawlBatchStatus) == known


def test_a_source_has_a_status_too() -> None:
    stage, key = Stage(), Key("crawlsources", "crawl", "shop")
    stage.sight.put("crawlsources", document("shop"))
    asyncio.run(stage.writer.write(key, UID, CrawlSourceStatus(throttled=3)))

    assert (stage.last["kind"], stage.last["status"]) == ("CrawlSource", {"throttled": 3})


def test_what_is_forgotten_is_read_again() -> None:
    stage = Stage()
    stage.write(phase="Running")
    stage.sight.put("crawlbatches", document(version=99, status={"phase": "Draining"}))
    stage.writer.forget(KEY)

    assert stage.writer.before(KEY, CrawlBatchStatus).phase == "Draining"


def test_whatever_is_counted_is_written_seldom() -> None:
    """A new count would else be a write each time that it changes."""
    steady = {"observed_generation", "total", "workers", "ready_workers", "round", "revision"}
    counted = {
        name
        for model in (CrawlBatchStatus, CrawlSourceStatus)
        for name, info in model.model_fields.items()
        if "int" in str(info.annotation) or name in ("sources", "permits")
    }

    assert counted - steady <= set(COUNTS)
