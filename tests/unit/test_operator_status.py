"""What people are told of a batch: each condition with its reason, the phase, the counts, and which changes are Events."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from operators import (
    JOB_TIMEOUT_S,
    NOW_S,
    UID,
    around,
    closed_row,
    condition,
    ended_job,
    job,
    new,
    planned,
    row,
    seen,
    source_row,
    status,
    tasks,
    trouble,
)
from schemas import document_schema

from crawlfleet.crds import Schema, definitions
from crawlfleet.statuses import Condition, CrawlBatchStatus
from crawlfleet_operator.plan import ALONE_S, Observed
from crawlfleet_operator.status import Surroundings, changes, describe, spoilt, unreadable
from crawlfleet_operator.times import written

WHEN = written(NOW_S + 90)
BANNED = source_row(cool_until=NOW_S + 90)
SUSPENDED: dict[str, Any] = {"spec": {"suspend": True}, "jobs": [job(size=0)], "row": row(worker_limit=0)}
LATE: dict[str, Any] = {"spec": {"startDeadlineSeconds": 1}, "jobs": [job(ready=0)]}
FAILED = condition("Failed", "True", "StartDeadlineExceeded")


def told(observed: Observed, surroundings: Surroundings | None = None) -> dict[str, Condition]:
    """The conditions by type."""
    return {one.type: one for one in describe(observed, surroundings or around()).conditions or ()}


def lost() -> Observed:
    return seen(jobs=[job(ready=0, active=0, terminating=2)], row=row(alive=0), alone_s=ALONE_S)


@pytest.mark.parametrize(
    ("type_", "truth", "reason", "words", "observed", "surroundings"),
    [
        pytest.param("Planned", "False", "Planning", "become tasks", new(), around(), id="planning"),
        pytest.param("Planned", "True", "Planned", "10 accounts", seen(), around(), id="planned"),
        pytest.param(
            "Planned", "False", "EmptySelection", "the cluster's words", new(obstacle=trouble("EmptySelection")), around(),
            id="cannot-be-planned",
        ),
        pytest.param("Planned", "False", "Suspended", "resumed", new(spec={"suspend": True}), around(), id="not-planned"),
        pytest.param("Progressing", "True", "Running", "", seen(), around(), id="running"),
        pytest.param("Progressing", "False", "Planning", "tasks", new(), around(), id="waits-for-the-plan"),
        pytest.param("Progressing", "False", "Starting", "pods start", planned(), around(), id="waits-for-its-job"),
        pytest.param(
            "Progressing", "False", "Starting", "pods start", planned(jobs=[job(ready=0)]), around(), id="waits-for-pods"
        ),
        pytest.param(
            "Progressing", "False", "NoCapacity", "the cluster's words", planned(jobs=[job(ready=0)]),
            around(trouble=trouble()), id="waits-for-the-scheduler",
        ),
        pytest.param(
            "Progressing", "True", "Running", "", seen(jobs=[job(ready=1)]), around(trouble=trouble()), id="one-is-enough"
        ),
        pytest.param(
            "Progressing", "False", "SecretMissing", "the cluster's words", planned(obstacle=trouble("SecretMissing")),
            around(), id="waits-for-a-person",
        ),
        pytest.param(
            "Progressing", "False", "Throttled", f"shop rests after a ban until {WHEN}", seen(), around(BANNED),
            id="waits-for-the-only-source",
        ),
        pytest.param(
            "Progressing", "True", "Throttled", f"shop rests after a ban until {WHEN}",
            seen(row=row(counts=tasks(ready=1) | tasks("mall", ready=1))), around(BANNED, source_row("mall")),
            id="one-source-of-two-rests",
        ),
        pytest.param(
            "Progressing", "True", "Running", "", seen(row=row(counts=tasks(ok=1) | tasks("mall", ready=1))),
            around(BANNED, source_row("mall")), id="a-source-that-is-done-holds-nothing-up",
        ),
        pytest.param("Progressing", "False", "Suspended", "suspend", seen(**SUSPENDED), around(), id="waits-to-be-resumed"),
        pytest.param("Progressing", "False", "Closed", "nothing is left", seen(row=closed_row()), around(), id="is-closed"),
        pytest.param("Progressing", "False", "Failed", "could not be run", planned(**LATE), around(), id="never-will"),
        pytest.param(
            "Draining", "True", "Draining", "no more: worker 1,", seen(row=row(worker_limit=1, held={1: 1})), around(), id="drains-one"
        ),
        pytest.param(
            "Draining", "True", "Draining", "taking no more: workers 1 to 3, until the last crawl has ended",
            seen(jobs=[job(size=4)], row=row(worker_limit=1, held={3: 1})), around(), id="drains-busy-ones",
        ),
        pytest.param(
            "Draining", "True", "Draining", "taking no more: workers 1 to 3, with no crawl left",
            seen(jobs=[job(size=4)], row=row(worker_limit=1, held={0: 1})), around(), id="drains-idle-ones",
        ),
        pytest.param(
            "Draining", "True", "Stopping", "stop is drain", seen(row=row(stop="drain")), around(), id="stops"
        ),
        pytest.param(
            "Draining", "False", "NotDraining", "", seen(condition("Draining", "True")), around(), id="has-drained"
        ),
        pytest.param("Suspended", "True", "Suspended", "no pod is left", seen(**SUSPENDED), around(), id="suspended"),
        pytest.param(
            "Suspended", "True", "Suspended", "", new(spec={"suspend": True}), around(), id="suspended-before-its-plan"
        ),
        pytest.param(
            "Suspended", "False", "NotSuspended", "",
            seen(condition("Suspended", "True"), **{**SUSPENDED, "jobs": [job(size=0, active=0, terminating=1)]}),
            around(), id="a-pod-is-left",
        ),
        pytest.param("Degraded", "False", "AsWanted", "", seen(), around(), id="well"),
        pytest.param(
            "Degraded", "True", "ImagePull", "the cluster's words", seen(jobs=[job(ready=1)]),
            around(trouble=trouble("ImagePull")), id="fewer-pods-than-wanted",
        ),
        pytest.param(
            "Degraded", "False", "AsWanted", "", seen(), around(trouble=trouble("ImagePull")), id="what-was-is-over"
        ),
        pytest.param(
            "Degraded", "True", "PodsRefused", "the cluster's words", planned(obstacle=trouble("PodsRefused")), around(),
            id="refused",
        ),
        pytest.param(
            "Degraded", "True", "JobFailed", "Job nightly-1-1 ended before the batch: exit code 78",
            seen(jobs=[ended_job("Failed", 5, message="exit code 78")]), around(), id="its-job-failed",
        ),
        pytest.param(
            "Degraded", "True", "JobFailed", "the cluster's words", seen(jobs=[ended_job("Failed", 5, message="a rule")]),
            around(trouble=trouble("WorkerFailed")), id="its-job-failed-in-a-workers-words",
        ),
        pytest.param(
            "Degraded", "True", "JobComplete", "ended before the batch", seen(jobs=[ended_job("Complete", 5)]), around(),
            id="its-job-ended-early",
        ),
        pytest.param("Degraded", "True", "NodeLost", "others take over", lost(), around(), id="its-nodes-are-gone"),
        pytest.param(
            "Degraded", "True", "SourceMissing", "no CrawlSource shop any more", seen(), around(missing=["shop"]),
            id="its-source-is-gone",
        ),
        pytest.param(
            "Degraded", "True", "Oversized", "5 workers, but its sources allow 4 crawls", seen(spec={"workers": 5}),
            around(), id="more-workers-than-permits",
        ),
        pytest.param("Degraded", "False", "AsWanted", "", seen(spec={"workers": 4}), around(), id="as-many-as-permits"),
        pytest.param(
            "Degraded", "False", "Closed", "", seen(row=closed_row()), around(missing=["shop"]), id="closed-whatever-is-gone"
        ),
        pytest.param("Complete", "False", "NotPlanned", "", new(), around(), id="has-not-begun"),
        pytest.param("Complete", "False", "Running", "", seen(), around(), id="goes-on"),
        pytest.param(
            "Complete", "True", "AllSucceeded", "10 of 10 ok, 0 failed, 0 cancelled", seen(row=closed_row()), around(),
            id="all-succeeded",
        ),
        pytest.param(
            "Complete", "True", "WithFailures", "7 of 10 ok, 2 failed, 1 cancelled",
            seen(row=closed_row(counts=tasks(ok=7, dead_auth=2, cancelled=1))), around(), id="with-failures",
        ),
        pytest.param(
            "Complete", "True", "WithFailures", "cancelled after activeDeadlineSeconds",
            seen(row=closed_row(stop="cancel", counts=tasks(ok=7, cancelled=3)), spec={"activeDeadlineSeconds": 40}),
            around(), id="cut-off-by-its-deadline",
        ),
        pytest.param(
            "Complete", "True", "WithFailures", "0 of 10 ok", seen(row=closed_row(counts={})), around(), id="nothing-is-counted"
        ),
        pytest.param(
            "Failed", "True", "StartDeadlineExceeded", "startDeadlineSeconds (1)", planned(**LATE), around(), id="too-late"
        ),
        pytest.param("Failed", "True", "StartDeadlineExceeded", "", seen(FAILED), around(), id="stays-failed"),
        pytest.param("Complete", "False", "Failed", "", seen(FAILED, row=closed_row()), around(), id="failed-is-not-complete"),
        pytest.param(
            "Failed", "False", "AsWanted", "", seen(condition("Failed", "True", "Invalid")), around(), id="was-mended"
        ),
    ],
)  # fmt: skip
def test_a_condition_says_how_it_is_and_why(
    type_: str, truth: str, reason: str, words: str, observed: Observed, surroundings: Surroundings
) -> None:
    found = told(observed, surroundings)[type_]

    assert (found.status, found.reason) == (truth, reason)
    assert words in (found.message or "")


@pytest.mark.parametrize(
    ("phase", "observed"),
    [
        pytest.param("Pending", new(), id="not-planned"),
        pytest.param("Starting", planned(), id="no-job"),
        pytest.param("Starting", planned(jobs=[job(ready=0)]), id="no-pod-is-ready"),
        pytest.param("Running", seen(jobs=[job(ready=1)]), id="one-pod-is-ready"),
        pytest.param("Draining", seen(row=row(worker_limit=1)), id="drains"),
        pytest.param("Draining", seen(row=row(stop="cancel")), id="stops"),
        pytest.param("Suspended", seen(**SUSPENDED), id="suspended"),
        pytest.param("Complete", seen(row=closed_row()), id="closed"),
        pytest.param("Failed", planned(**LATE), id="failed"),
    ],
)
def test_the_phase_sums_it_up(phase: str, observed: Observed) -> None:
    assert describe(observed, around()).phase == phase


def test_conditions_that_were_never_true_are_not_shown() -> None:
    assert set(told(seen())) == {"Planned", "Progressing", "Degraded", "Complete"}


def test_a_condition_that_was_true_once_stays() -> None:
    drained = condition("Draining", "True", ago_s=60)

    assert told(seen(drained))["Draining"].status == "False"


def test_a_transition_time_stays_while_the_status_stays() -> None:
    """Only the reason has changed: it is not running since now."""
    before = condition("Progressing", "True", "Throttled", ago_s=500)

    assert told(seen(before))["Progressing"].last_transition_time == written(NOW_S - 500)


def test_a_transition_time_is_now_when_the_status_changes() -> None:
    before = condition("Progressing", "False", "Starting", ago_s=500)

    assert told(seen(before))["Progressing"].last_transition_time == written(NOW_S)


def test_every_condition_names_the_generation_it_is_of() -> None:
    found = describe(seen(), around(generation=7))

    assert found.observed_generation == 7
    assert {one.observed_generation for one in found.conditions or ()} == {7}


def test_the_sums_and_the_counts_of_each_source() -> None:
    counts = tasks(ok=3, leased=2, ready=4, waiting=1) | tasks("mall", dead_auth=2, dead_bug=1, cancelled=5)

    found = describe(seen(row=row(counts=counts, total=18)), around())

    assert (found.total, found.done, found.failed, found.cancelled) == (18, 3, 3, 5)
    mall, shop = found.sources or ()
    assert (shop.name, shop.total, shop.ok, shop.leased, shop.ready, shop.retrying) == (
        "shop",
        10,
        3,
        2,
        4,
        1,
    )
    assert (mall.name, mall.dead, mall.failures, mall.cancelled) == ("mall", 3, {"auth": 2, "bug": 1}, 5)
    assert shop.failures is None


def test_workers_for_kubectl_scale() -> None:
    found = describe(seen(jobs=[job(ready=1)]), around())

    assert (found.workers, found.ready_workers) == (2, 1)
    assert found.selector == f"crawlfleet.dev/batch-uid={UID}"


def test_the_newest_job_and_its_revision() -> None:
    found = describe(seen(jobs=[job(1, size=0), job(2)]), around())

    assert (found.job_name, found.revision, found.round) == ("nightly-1-2", 2, 1)


def test_a_revision_is_remembered_when_its_job_is_gone() -> None:
    assert describe(seen(jobs=[], status=status(revision=4)), around()).revision == 4


@pytest.mark.parametrize(
    ("observed", "rate", "eta"),
    [
        pytest.param(seen(), 0.5, "20s", id="at-that-rate"),
        pytest.param(seen(), 0.0, None, id="no-rate-yet"),
        pytest.param(seen(row=closed_row()), 0.5, None, id="closed"),
        pytest.param(new(), 0.5, None, id="not-planned"),
    ],
)
def test_the_eta(observed: Observed, rate: float, eta: str | None) -> None:
    assert describe(observed, around(rate=rate)).eta == eta


def test_the_start_is_that_of_the_first_worker_and_is_remembered() -> None:
    """The database tells it only while that worker lives."""
    first = describe(seen(status=CrawlBatchStatus(), row=row(first_worker_at=NOW_S - 50)), around())
    later = describe(seen(status=first, row=closed_row()), around())

    assert first.start_time == later.start_time == written(NOW_S - 50)
    assert (first.completion_time, later.completion_time) == (None, written(NOW_S - 10))


def test_a_retry_begins_anew() -> None:
    """Its deadline counts from its own first worker."""
    again = seen(row=row(round=2, first_worker_at=None), spec={"activeDeadlineSeconds": 1})
    found = describe(again, around())

    assert (found.round, found.start_time, found.completion_time) == (2, None, None)
    assert not again.is_overdue


# Other beginnings.


def test_a_database_that_does_not_answer_leaves_the_rest_as_it_was() -> None:
    before = describe(seen(), around(rate=1.0))
    after = unreadable(before, trouble("DatabaseUnavailable"), NOW_S + 60)
    found = {one.type: one for one in after.conditions or ()}

    assert (found["Degraded"].status, found["Degraded"].reason) == ("True", "DatabaseUnavailable")
    assert found["Degraded"].last_transition_time == written(NOW_S + 60)
    assert {k: v for k, v in found.items() if k != "Degraded"} == {
        one.type: one for one in before.conditions or () if one.type != "Degraded"
    }
    assert (after.done, after.phase, after.eta) == (before.done, "Running", None)


def test_a_database_that_never_answered_leaves_a_batch_pending() -> None:
    after = unreadable(CrawlBatchStatus(), trouble("DatabaseUnavailable"), NOW_S)

    assert after.phase == "Pending"
    assert [one.type for one in after.conditions or ()] == ["Degraded"]


def test_a_spec_that_cannot_be_run_is_told_in_words() -> None:
    after = spoilt(CrawlBatchStatus(), "template.spec.containers: …", 4, NOW_S)

    assert (after.phase, after.observed_generation) == ("Failed", 4)
    assert [(one.type, one.status, one.reason) for one in after.conditions or ()] == [
        ("Planned", "False", "Invalid"),
        ("Progressing", "False", "Invalid"),
        ("Failed", "True", "Invalid"),
    ]
    assert (after.conditions or ())[2].message == "template.spec.containers: …"


def test_a_spec_that_was_mended_is_told_as_if_nothing_had_been() -> None:
    before = spoilt(CrawlBatchStatus(), "no", 4, NOW_S)

    found = describe(seen(status=before), around())

    assert found.phase == "Running"
    assert {one.type: one.status for one in found.conditions or ()} == {
        "Planned": "True", "Progressing": "True", "Degraded": "False", "Complete": "False", "Failed": "False",
    }  # fmt: skip


def test_a_spec_that_is_spoilt_under_a_running_batch_only_degrades_it() -> None:
    before = describe(seen(), around())
    found = {one.type: one for one in spoilt(before, "no", 4, NOW_S).conditions or ()}

    assert (found["Degraded"].status, found["Degraded"].reason) == ("True", "Invalid")
    assert (found["Planned"].status, "Failed" in found) == ("True", False)


# Events.


def events(before: CrawlBatchStatus, after: CrawlBatchStatus) -> list[tuple[str, str, str | None]]:
    return [(weight, one.type, one.reason) for weight, one in changes(before, after)]


@pytest.mark.parametrize(
    "observed", [new(), seen(), seen(**SUSPENDED), seen(row=closed_row()), planned(**LATE), lost()]
)
def test_the_same_status_twice_is_no_event(observed: Observed) -> None:
    once = describe(observed, around())
    twice = describe(replace(observed, status=once), around())

    assert twice == once
    assert events(once, twice) == []


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(CrawlBatchStatus(), new(), [("Normal", "Progressing", "Planning")], id="begins"),
        pytest.param(
            new(), planned(), [("Normal", "Planned", "Planned"), ("Normal", "Progressing", "Starting")], id="is-planned"
        ),
        pytest.param(planned(), seen(), [("Normal", "Progressing", "Running")], id="runs"),
        pytest.param(seen(), seen(row=row(worker_limit=1)), [("Normal", "Draining", "Draining")], id="drains"),
        pytest.param(seen(row=row(worker_limit=1)), seen(), [], id="has-drained"),
        pytest.param(
            planned(), planned(obstacle=trouble("SecretMissing")), [("Warning", "Degraded", "SecretMissing")],
            id="says-once-what-is-in-the-way",
        ),
        pytest.param(seen(), seen(**SUSPENDED), [("Normal", "Suspended", "Suspended")], id="says-once-that-it-is-suspended"),
        pytest.param(seen(), seen(row=closed_row()), [("Normal", "Complete", "AllSucceeded")], id="is-complete"),
        pytest.param(
            planned(jobs=[job(ready=0)]), planned(**LATE),
            [("Warning", "Failed", "StartDeadlineExceeded"), ("Normal", "Progressing", "Failed")], id="fails",
        ),
    ],
)  # fmt: skip
def test_an_event_for_each_transition(
    before: Observed | CrawlBatchStatus, after: Observed, expected: list[tuple[str, str, str]]
) -> None:
    first = before if isinstance(before, CrawlBatchStatus) else describe(before, around())
    then = describe(replace(after, status=first), around())

    assert events(first, then) == expected


def test_another_message_is_no_event() -> None:
    """Counts change with every crawl."""
    before, after = (condition("Complete", "True") for _ in range(2))
    after = after.model_copy(update={"message": "other words"})

    assert events(status(before), status(after)) == []


# The schema.


def breaches(schema: Schema, value: Any, path: str = "status") -> list[str]:
    """Where a document is not as its schema wants it, as far as statuses need it."""
    kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "integer": int}
    if not isinstance(value, kinds[schema["type"]]):
        return [f"{path}: {value!r} is no {schema['type']}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: {value!r} is none of {schema['enum']}")
    if schema.get("format") == "date-time" and not re.fullmatch(r"\d{4}(-\d\d){2}T\d\d(:\d\d){2}Z", value):
        found.append(f"{path}: {value!r} is no time")
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties")
        for name, inner in value.items():
            if name not in known and others is None:
                found.append(f"{path}.{name} is unknown")
            else:
                found += breaches(known.get(name) or others or {}, inner, f"{path}.{name}")
        found += [f"{path}.{name} is missing" for name in schema.get("required", ()) if name not in value]
    if isinstance(value, list):
        found += [
            words for no, one in enumerate(value) for words in breaches(schema["items"], one, f"{path}[{no}]")
        ]
    return found


@pytest.mark.parametrize(
    "written_status",
    [
        pytest.param(describe(new(), around()), id="new"),
        pytest.param(
            describe(seen(FAILED, row=row(counts=tasks(dead_auth=2, ok=1), stop="drain")), around(rate=1.0)),
            id="full",
        ),
        pytest.param(describe(seen(row=closed_row()), around()), id="closed"),
        pytest.param(spoilt(CrawlBatchStatus(), "no", 2, NOW_S), id="spoilt"),
        pytest.param(unreadable(CrawlBatchStatus(), trouble(), NOW_S), id="unreadable"),
    ],
)
def test_a_status_is_as_its_schema_wants_it(written_status: CrawlBatchStatus) -> None:
    (crd,) = (crd for crd in definitions() if crd["spec"]["names"]["kind"] == "CrawlBatch")
    document = written_status.model_dump(mode="json", by_alias=True, exclude_none=True)

    assert breaches(document_schema(crd)["properties"]["status"], document) == []
    assert CrawlBatchStatus.model_validate(document) == written_status


def test_the_drain_of_a_status_is_what_a_plan_waits_for() -> None:
    """A plan counts a drain from the time that the status says."""
    first = describe(seen(row=row(worker_limit=1, held={1: 1})), around())
    later = seen(status=first, now_s=NOW_S + JOB_TIMEOUT_S)

    assert later.since_s("Draining", "True") == NOW_S
