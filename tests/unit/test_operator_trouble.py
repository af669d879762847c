"""Why pods do not start, in the cluster's own words."""

from __future__ import annotations

import pytest
from operators import event, pod, terminated, unscheduled, waiting

from crawlfleet_operator.build import Document
from crawlfleet_operator.trouble import of_events, of_pods

NO_ROOM = "0/3 nodes are available: 3 Insufficient memory."


@pytest.mark.parametrize(
    ("found", "reason", "message"),
    [
        pytest.param(unscheduled(NO_ROOM), "NoCapacity", f"1 pod: {NO_ROOM}", id="in-the-schedulers-words"),
        pytest.param(
            waiting("ImagePullBackOff", "not found"),
            "ImagePull",
            "1 pod: registry/crawler:1: not found",
            id="image",
        ),
        pytest.param(
            waiting("ErrImagePull"),
            "ImagePull",
            "1 pod: registry/crawler:1: ErrImagePull",
            id="image-without-words",
        ),
        pytest.param(
            waiting("ImagePullBackOff", "no", container="chrome", init=True),
            "ImagePull",
            "1 pod: registry/crawler:1: no",
            id="image-of-chrome",
        ),
        pytest.param(
            waiting("CreateContainerConfigError", 'secret "keys" not found'),
            "ContainerConfig",
            '1 pod: secret "keys" not found',
            id="configuration",
        ),
        pytest.param(
            waiting("CrashLoopBackOff", "back-off 10s", container="chrome", init=True),
            "CrashLoop",
            "1 pod: chrome: back-off 10s",
            id="crash-loop",
        ),
        pytest.param(
            terminated(78, "CRAWLFLEET_KEYS_FILE is not set"),
            "WorkerFailed",
            "exit code 78: CRAWLFLEET_KEYS_FILE is not set",
            id="last-words",
        ),
        pytest.param(terminated(137), "WorkerFailed", "exit code 137: Error", id="no-last-words"),
        pytest.param(
            terminated(1, 'x\n{"level": "error", "message": "why"}\n{"level": "info"}'),
            "WorkerFailed",
            'exit code 1: {"level": "error", "message": "why"}',
            id="the-last-error-of-a-log",
        ),
    ],
)
def test_what_is_wrong_with_a_pod(found: Document, reason: str, message: str) -> None:
    trouble = of_pods([found])

    assert trouble is not None
    assert (trouble.reason, trouble.message) == (reason, message)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(pod(), id="it-has-just-been-made"),
        pytest.param(waiting("ContainerCreating"), id="it-starts"),
        pytest.param(waiting("PodInitializing"), id="its-chrome-starts"),
        pytest.param(pod(conditions=[{"type": "PodScheduled", "status": "True"}]), id="it-has-a-node"),
        pytest.param(
            {**unscheduled(NO_ROOM), "metadata": {"deletionTimestamp": "2026-11-27T09:00:00Z"}}, id="it-goes"
        ),
        pytest.param(terminated(0), id="the-batch-was-closed"),
        pytest.param(terminated(74), id="it-stopped-itself"),
        pytest.param(terminated(75), id="it-drained"),
        pytest.param(terminated(137, container="chrome"), id="chrome-was-killed-at-the-end"),
    ],
)
def test_what_is_no_trouble(found: Document) -> None:
    assert of_pods([found]) is None


def test_what_most_pods_suffer_from_is_told_with_their_number() -> None:
    trouble = of_pods([waiting("ErrImagePull", "no"), unscheduled(NO_ROOM), pod(), unscheduled(NO_ROOM)])

    assert trouble is not None
    assert trouble.message == f"2 pods: {NO_ROOM}"


def test_pods_that_cannot_start_are_told_before_one_that_failed() -> None:
    trouble = of_pods([terminated(1, "why"), unscheduled(NO_ROOM)])

    assert trouble is not None
    assert trouble.reason == "NoCapacity"


def test_the_worker_that_failed_last_has_the_word() -> None:
    trouble = of_pods(
        [
            terminated(1, "later", at="2026-11-27T09:00:02Z"),
            terminated(69, "first", at="2026-11-27T09:00:01Z"),
        ]
    )

    assert trouble is not None
    assert trouble.message == "exit code 1: later"


def test_long_words_are_cut_and_stand_on_one_line() -> None:
    trouble = of_pods([unscheduled("no\n  room " * 100)])

    assert trouble is not None
    assert trouble.message.startswith("1 pod: no room no room")
    assert trouble.message.endswith("…")
    assert len(trouble.message) <= 410


def test_of_a_job_without_pods_the_newest_warning_is_told() -> None:
    found = [
        event("FailedCreate", 'exceeded quota: "pods"', at="2026-11-27T09:00:02Z"),
        event("FailedCreate", "forbidden", at="2026-11-27T09:00:01Z"),
        event("SuccessfulCreate", "created", at="2026-11-27T09:00:03Z", type_="Normal"),
    ]

    trouble = of_events(found)

    assert trouble is not None
    assert (trouble.reason, trouble.message) == ("FailedCreate", 'exceeded quota: "pods"')


def test_an_event_of_the_newer_kind_has_its_time_elsewhere() -> None:
    newer = {
        **event("FailedCreate", "newer"),
        "lastTimestamp": None,
        "eventTime": "2026-11-27T09:00:02.000000Z",
    }

    trouble = of_events([newer, event("FailedCreate", "older", at="2026-11-27T09:00:01Z")])

    assert trouble is not None
    assert trouble.message == "newer"


@pytest.mark.parametrize(
    "found", [[], [event("SuccessfulCreate", "created", type_="Normal")]], ids=["none", "normal"]
)
def test_without_warnings_there_is_no_trouble(found: list[Document]) -> None:
    assert of_events(found) is None
