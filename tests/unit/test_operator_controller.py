"""What the controller makes of what it is told, in whatever order it is told, and of what it is not told."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from operators import NOW_S, UID, document, row, source_row, tasks

from crawlfleet.errors import DatabaseUnavailable
from crawlfleet_operator import controller
from crawlfleet_operator.build import Document
from crawlfleet_operator.controller import Controller
from crawlfleet_operator.database import TryAgain
from crawlfleet_operator.settings import OperatorSettings
from crawlfleet_operator.times import written
from crawlfleet_operator.worklist import SIDE_BY_SIDE

SETTINGS = OperatorSettings(
    database_url="postgresql:///none",
    keys_file=Path("/nowhere"),
    crawler_image="registry/crawler:1",
    chrome_image="registry/chrome:1",
)
ANOTHER = "5b7f8f3e-0000-4000-8000-000000000002"


class Stage:
    """A controller, its cluster and its database. `lists` is what the cluster has of each kind, `answers` what the database
    says when it is asked for that, `asked` what it was asked for, each with its arguments. It is open for one test."""

    def __init__(self) -> None:
        self.lists: dict[str, Any] = {"crawlbatches": [], "crawlsources": [], "jobs": []}
        self.answers: dict[str, Any] = {
            "look": {},
            "sources": {},
            "orphaned_batches": [],
            "claimed_sources": [],
            "forget_batch": None,
            "release_source": True,
            "_declare": None,
            "_housekeep": None,
        }
        self.secret: Document = {}
        self.asked: list[tuple[str, tuple[Any, ...]]] = []
        stage: Any = self
        self.controller = Controller(SETTINGS, stage, stage, now=lambda: NOW_S)

    async def __call__(self, do: Any, *args: Any) -> Any:
        self.asked.append((do.__name__, args))
        answer = self.answers[do.__name__]
        said = answer(*args) if callable(answer) else answer
        if isinstance(said, Exception):
            raise said
        return await said if isinstance(said, Coroutine) else said

    plan = __call__

    async def apply_status(self, plural: str, change: Document) -> Document:
        (one,) = (d for d in self.lists[plural] if d["metadata"]["name"] == change["metadata"]["name"])
        version = int(one["metadata"]["resourceVersion"]) + 1
        return {**one, **change, "metadata": {**one["metadata"], "resourceVersion": str(version)}}

    async def create(self, plural: str, namespace: str, made: Document) -> None:
        pass

    async def get(self, plural: str, namespace: str, name: str) -> Document:
        return self.secret

    def close(self) -> Awaitable[None]:
        """Of the database at once, of the cluster when it is awaited."""
        closed = asyncio.get_running_loop().create_future()
        closed.set_result(None)
        return closed

    def run(self, test: Coroutine[Any, Any, None]) -> None:
        asyncio.run(asyncio.wait_for(test, 10))

    def forgotten(self) -> list[str]:
        """The uids of batches that were given up."""
        return [args[0] for what, args in self.asked if what == "forget_batch"]

    async def list(self, plural: str, namespace: str | None, **query: str) -> Any:
        listed = self.lists[plural]
        return listed() if callable(listed) else [*listed]


@pytest.fixture
def stage() -> Stage:
    return Stage()


def batch(name: str = "nightly", *, version: int, uid: str = UID, suspend: bool = True) -> Document:
    spec = {"sources": ["shop"], "suspend": suspend}
    made = document(name, version=version, uid=uid, kind="CrawlBatch", spec=spec)
    made["metadata"]["creationTimestamp"] = written(NOW_S - 70)
    return made


def source(*, version: int, **more: Any) -> Document:
    spec = {"adapter": "noop", "maxConcurrent": 4, **more}
    return document("shop", version=version, kind="CrawlSource", spec=spec)


def test_a_deletion_that_is_told_late_is_none_of_its_namesakes(stage: Stage) -> None:
    """Each object has a queue of its own in kopf: that of a deleted batch may come after the first news of the next."""

    async def tell() -> None:
        await stage.controller.saw("crawlbatches", "ADDED", batch(version=1))
        await stage.controller.saw("crawlbatches", "ADDED", batch(version=9, uid=ANOTHER))
        await stage.controller.saw("crawlbatches", "DELETED", batch(version=8))

    stage.run(tell())

    assert stage.forgotten() == [UID]
    assert stage.controller.phases() == ["Pending"], "the second one is not seen any more"


def listed_with(stage: Stage, *there: Document, planned_meanwhile: str) -> None:
    """Start, while another operator plans a batch that came just after ours had been listed."""

    def batches() -> list[Document]:
        stage.answers["orphaned_batches"] = lambda _, uids: [
            u for u in (UID, planned_meanwhile) if u not in uids
        ]
        return list(there)

    stage.lists["crawlbatches"] = batches
    stage.answers["orphaned_batches"] = lambda _, uids: [u for u in (UID,) if u not in uids]

    async def start() -> None:
        await stage.controller.start()
        await stage.controller.stop()

    stage.run(start())


def test_a_batch_that_was_planned_after_the_list_is_no_orphan(stage: Stage) -> None:
    """Of two operators the one whose watch lags must not cancel what the other one has begun."""
    listed_with(stage, batch(version=1), planned_meanwhile=ANOTHER)
    assert stage.forgotten() == []


def test_a_batch_that_is_not_in_the_list_is_an_orphan(stage: Stage) -> None:
    listed_with(stage, planned_meanwhile=ANOTHER)
    assert stage.forgotten() == [UID]


def test_metrics_are_those_of_the_batches_that_are_there(stage: Stage) -> None:
    """A deleted batch keeps its tasks for a week: the next one of its name has the same labels and other numbers."""
    gone, there = row(uid=UID, counts=tasks(ok=10)), row(uid=ANOTHER, counts=tasks(ready=10))
    stage.lists["crawlbatches"] = [batch(version=9, uid=ANOTHER)]
    stage.answers["look"] = lambda _, uid=None: {r.uid: r for r in (gone, there) if uid in (None, r.uid)}

    async def resync() -> None:
        await stage.controller.start()
        await asyncio.sleep(0.05)
        await stage.controller.stop()

    stage.run(resync())

    assert stage.controller.shown() == [there]


def test_levers_are_looked_at_while_many_batches_are_planned(stage: Stage) -> None:
    """All batches of a night come at once, and someone suspends another one."""
    night = [batch(f"night-{n}", version=1, uid=f"night-{n}", suspend=False) for n in range(SIDE_BY_SIDE + 4)]
    stage.lists["crawlsources"] = [source(version=1)]
    stage.lists["crawlbatches"] = [*night, batch(version=1)]
    running = row(uid=UID, adapters=["noop"])
    stage.answers["look"] = lambda _, uid=None: {UID: running} if uid in (None, UID) else {}
    stage.answers["sources"] = {"shop": source_row()}
    is_planned, is_set = asyncio.Event(), asyncio.Event()
    stage.answers["plan_somebody"] = lambda *_: is_planned.wait()
    stage.answers["set_levers"] = lambda uid, levers: is_set.set()

    async def operate() -> None:
        await stage.controller.start()
        await asyncio.sleep(0.1)
        stage.lists["crawlbatches"][-1] = suspended = batch(version=5)
        suspended["metadata"]["generation"] = 2
        is_set.clear()
        await stage.controller.saw("crawlbatches", "MODIFIED", suspended)
        await asyncio.wait_for(is_set.wait(), 5)
        await stage.controller.stop()

    stage.run(operate())


def test_a_batch_whose_source_is_not_known_yet_is_looked_at_again(stage: Stage) -> None:
    """The database was slow just after it had taken the source."""
    stage.lists["crawlsources"] = [source(version=1)]
    stage.lists["crawlbatches"] = [batch(version=1, suspend=False)]
    failing = iter([TryAgain("canceling statement due to statement timeout")] * 2)
    is_planned = asyncio.Event()
    stage.answers["sources"] = lambda: next(failing, {"shop": source_row()})
    stage.answers["plan_somebody"] = lambda *_: is_planned.set()

    async def operate() -> None:
        await stage.controller.start()
        await asyncio.wait_for(is_planned.wait(), 9)
        await stage.controller.stop()

    stage.run(operate())


def test_a_source_is_declared_again_in_a_database_that_was_away(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been restored, or be another one: nobody else would tell it of the source."""
    monkeypatch.setattr(controller, "RESYNC_S", 0.05)
    stage.lists["crawlsources"] = [source(version=1)]
    stage.answers["sources"] = {"shop": source_row()}
    declared = asyncio.Event()
    stage.answers["_declare"] = lambda *_: declared.set()

    async def operate() -> None:
        await stage.controller.start()
        await asyncio.wait_for(declared.wait(), 5)
        stage.answers["sources"] = DatabaseUnavailable("gone")
        await asyncio.sleep(0.2)
        declared.clear()
        stage.answers["sources"] = {}
        await asyncio.wait_for(declared.wait(), 5)
        await stage.controller.stop()

    stage.run(operate())


def test_a_proxys_secret_may_hold_something_else(stage: Stage) -> None:
    """Its other keys are none of ours: a certificate has many lines, a key store is no text."""
    values = {"url": b"http://proxy:3128", "username": b"", "password": b"", "store": b"\xff\x00"}
    stage.secret = {"data": {key: b64encode(value).decode() for key, value in values.items()}}
    stage.lists["crawlsources"] = [
        source(version=1, egresses=[{"name": "a", "proxySecretRef": {"name": "exit"}}])
    ]
    declared = asyncio.Event()
    stage.answers["_declare"] = lambda *_: declared.set()

    async def operate() -> None:
        await stage.controller.start()
        await asyncio.wait_for(declared.wait(), 2)
        await stage.controller.stop()

    stage.run(operate())
