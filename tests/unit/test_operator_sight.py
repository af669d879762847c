"""What the operator has seen: the newest version of everything, whatever comes late."""

from __future__ import annotations

from typing import Any

import pytest
from operators import DIGEST_NOW, NOW_S, UID, document, job_document

from crawlfleet_operator.build import Document
from crawlfleet_operator.plan import JobView
from crawlfleet_operator.sight import GONE, Key, Sight, job_view
from crawlfleet_operator.times import written

KEY = Key("crawlbatches", "crawl", "nightly")


def sight(*documents: Document, kind: str = "crawlbatches") -> Sight:
    found = Sight()
    for one in documents:
        found.put(kind, one)
    return found


def missing(found: Sight, *documents: Document, kind: str = "crawlbatches") -> list[tuple[Key, Document]]:
    """From a list that was asked for just now."""
    return found.drop_missing(kind, documents, dict(found.of_kind(kind)))


def ended(type_: str, message: str = "", *, ago_s: float = 5) -> Document:
    """A condition of a Job."""
    return {"type": type_, "status": "True", "message": message, "lastTransitionTime": written(NOW_S - ago_s)}


def test_news_are_kept_and_named() -> None:
    found = Sight()

    assert found.put("crawlbatches", document()) == KEY
    assert found[KEY]["metadata"]["uid"] == UID


@pytest.mark.parametrize("version", [9, 10], ids=["older", "the-same"])
def test_what_comes_late_is_no_news(version: int) -> None:
    """Versions are numbers: 9 is older than 10."""
    found = sight(document(version=10, spec={"workers": 2}))

    assert found.put("crawlbatches", document(version=version, spec={"workers": 1})) is None
    assert found[KEY]["spec"] == {"workers": 2}


def test_what_is_newer_takes_its_place() -> None:
    found = sight(document(version=9), document(version=10, spec={"workers": 2}))

    assert found[KEY]["spec"] == {"workers": 2}


def test_who_owns_which_field_is_not_kept() -> None:
    assert sight(document())[KEY]["metadata"]["managedFields"] is None


def test_what_was_deleted_is_gone_and_may_come_again() -> None:
    found = sight(document(version=10))
    dropped = found.drop(KEY)

    assert dropped is not None
    assert (found.get(KEY), found.drop(KEY)) == (None, None)
    assert found.put("crawlbatches", document(version=11, uid="another")) == KEY


@pytest.mark.parametrize("version", [5, 7, 9])
def test_what_is_gone_does_not_come_back_with_what_is_told_late(version: int) -> None:
    """The answer to a write of ours, or a list that was asked for before."""
    found = Sight()
    found.put("crawlbatches", document(version=5))
    found.bury(KEY, document(version=8))

    assert found.put("crawlbatches", document(version=version)) is None
    assert found.get(KEY) is None
    assert found.put("crawlbatches", document(version=9, uid="another")) == KEY


def test_a_deletion_told_late_leaves_who_has_the_name_now() -> None:
    found = Sight()
    found.put("crawlbatches", document(version=9, uid="another"))

    assert not found.bury(KEY, document(version=8))
    assert found[KEY]["metadata"]["uid"] == "another"


def test_so_many_deletions_are_remembered() -> None:
    found = Sight()
    for number in range(GONE + 3):
        found.bury(KEY, document(uid=str(number)))
    assert found.put("crawlbatches", document(uid=str(GONE))) is None
    assert found.put("crawlbatches", document(uid="0")) == KEY


def test_a_list_tells_what_is_gone() -> None:
    found = sight(document("a"), document("b"))

    gone = missing(found, document("b"), document("c"))

    assert [key.name for key, _ in gone] == ["a"]
    assert [key.name for key, _ in found.of_kind("crawlbatches")] == ["b"]


def test_a_list_of_one_kind_leaves_the_others() -> None:
    found = sight(document("a"))

    assert missing(found, kind="crawlsources") == []
    assert [key.name for key, _ in found.of_kind("crawlbatches")] == ["a"]


@pytest.mark.parametrize(
    "known", [(), (document(version=1, uid="the-one-before"),)], ids=["new", "made-again"]
)
def test_what_came_while_a_list_was_under_way_is_not_gone(known: tuple[Document, ...]) -> None:
    """The list is older: to take it for deleted would cancel the batch."""
    found = sight(*known)
    before = dict(found.of_kind("crawlbatches"))
    found.put("crawlbatches", document(version=2))

    assert found.drop_missing("crawlbatches", [], before) == []
    assert found[KEY]["metadata"]["uid"] == UID


def test_the_jobs_of_a_batch_are_those_with_its_uid() -> None:
    """Not those of another batch that had its name before, nor one that goes already."""
    other = job_document(uid="another")
    other["metadata"]["name"] = "nightly-1-1"
    going = job_document()
    going["metadata"] |= {"name": "nightly-1-3", "deletionTimestamp": written(NOW_S)}
    found = sight(job_document(), other, going, kind="jobs")

    assert [job.name for job in found.jobs(UID)] == ["nightly-1-2"]


def test_a_job_as_the_plan_sees_it() -> None:
    found = job_view(job_document(active=2, ready=1, terminating=1, startTime=written(NOW_S - 20)))

    assert found == JobView(
        name="nightly-1-2",
        round=1,
        revision=2,
        digest=DIGEST_NOW,
        size=2,
        active=2,
        ready=1,
        terminating=1,
        started_s=NOW_S - 20,
    )


def test_a_job_that_the_controller_has_not_seen_yet_has_no_pods() -> None:
    found = job_view(job_document())

    assert (found.is_empty, found.ready, found.started_s) == (True, 0, NOW_S - 30)


def test_a_suspended_job_has_no_size() -> None:
    assert job_view(job_document(suspend=True)).size == 0


@pytest.mark.parametrize(
    ("conditions", "how", "message"),
    [
        pytest.param([ended("Complete", "done")], "Complete", "done", id="complete"),
        pytest.param(
            [ended("SuccessCriteriaMet"), ended("Complete")], "Complete", "", id="by-its-success-policy"
        ),
        pytest.param(
            [ended("FailureTarget", "exit code 78"), ended("Failed", "policy")],
            "Failed",
            "exit code 78",
            id="failed",
        ),
        pytest.param([ended("FailureTarget", "exit code 78")], "", "exit code 78", id="its-pods-end-yet"),
        pytest.param([{**ended("Complete"), "status": "False"}], "", "", id="not-true"),
        pytest.param([], "", "", id="runs"),
    ],
)
def test_a_job_has_ended_when_its_pods_have(conditions: list[Document], how: str, message: str) -> None:
    found = job_view(job_document(conditions=conditions))

    assert (found.ended, found.message) == (how, message)
    assert found.ended_s == (NOW_S - 5 if how else 0.0)


@pytest.mark.parametrize(
    ("counts", "is_empty"),
    [({}, True), ({"active": 1}, False), ({"terminating": 1}, False), ({"ready": 0, "active": 0}, True)],
)
def test_a_job_is_empty_when_no_pod_may_still_crawl(counts: dict[str, Any], is_empty: bool) -> None:
    assert job_view(job_document(**counts)).is_empty == is_empty
