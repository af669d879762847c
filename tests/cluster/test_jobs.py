"""What Kubernetes does with a fleet's Job: the behaviours that the operator and the exit codes rest on.

Each holds for every version that is supported. When one fails on a new version, a design decision is to be looked at
again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cluster.job import JOB, job
from cluster.stand_in import INDEX, StandIn, index_of, is_active, is_terminating
from cluster.testbed.kubectl import Document, Kubectl, KubectlFailed
from fleet import until

GRACE_S = job(1)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
TRACKED = ["batch.kubernetes.io/job-tracking"]
"""The finalizer of a pod whose end counts."""
SILENT = "crawlfleet.dev/silent:NoExecute"
"""A taint of our own, since a controller owns `node.kubernetes.io/unreachable`."""
DISRUPTED = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


@pytest.fixture
def fleet(namespace: Kubectl) -> Iterator[StandIn]:
    stand_in = StandIn(namespace)
    yield stand_in
    stand_in.leave()


def on_exit(action: str, *codes: int, **where: str) -> Document:
    """A rule of a failure policy."""
    return {"action": action, "onExitCodes": {"operator": "In", "values": list(codes), **where}}


# What the end of a pod does.


@pytest.mark.parametrize("evicted", [False, True], ids=["by itself", "evicted"])
def test_exit_0_completes_an_index_for_good(fleet: StandIn, evicted: bool) -> None:
    """Even when the pod was told to go away. So 0 is for a finished batch alone."""
    fleet.run(job(2, successPolicy=None))
    if evicted:
        fleet.evict(0)
    fleet.end(0, 0)
    fleet.await_status("completedIndexes", 0)
    fleet.end(1, 75)
    fleet.await_pod(1)
    assert not any(map(is_active, fleet.pods(0)))


@pytest.mark.parametrize(
    ("code", "evicted"),
    [(75, False), (74, False), (137, True)],
    ids=["drained", "stopped itself", "evicted and killed"],
)
def test_an_ignored_end_is_replaced_and_never_counted(fleet: StandIn, code: int, evicted: bool) -> None:
    fleet.run(job(1, backoffLimitPerIndex=0))
    if evicted:
        fleet.evict(0)
    fleet.end(0, code)
    assert ends_before(fleet.await_pod(0)) == {"counted": 0, "ignored": 1}
    assert fleet.status["failedIndexes"] == ""


@pytest.mark.parametrize("code", [69, 137], ids=["Chrome unusable", "out of memory"])
def test_any_other_end_counts_until_its_index_has_failed(fleet: StandIn, code: int) -> None:
    fleet.run(job(2, backoffLimitPerIndex=1))
    fleet.end(1, code)
    assert ends_before(fleet.await_pod(1)) == {"counted": 1, "ignored": 0}
    fleet.end(1, code)
    fleet.await_status("failedIndexes", 1)


@pytest.mark.parametrize("where", [{}, {"containerName": "crawler"}], ids=["any container", "crawler"])
def test_an_exit_code_is_also_that_of_chrome_unless_the_rule_names_a_container(
    fleet: StandIn, where: dict[str, str]
) -> None:
    rules = [on_exit("FailJob", 137, **where), on_exit("Ignore", 75, containerName="crawler")]
    fleet.run(job(1, podFailurePolicy={"rules": rules}))
    fleet.end(0, 75, chrome=137)
    if where:
        assert ends_before(fleet.await_pod(0)) == {"counted": 0, "ignored": 1}
    else:
        fleet.await_condition("Failed")
        assert fleet.conditions()["Failed"] == "PodFailurePolicy"


def test_ignored_ends_count_for_the_back_off(fleet: StandIn) -> None:
    """10 s after the first end, 20 s after the second and so on: a fleet that is evicted often returns slowly."""
    fleet.run(job(1))
    fleet.end(0, 75)
    fleet.await_pod(0)
    ended = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=17)
    fleet.end(0, 75, at=ended)
    assert moment(fleet.await_pod(0), "creationTimestamp") >= ended + timedelta(seconds=20)


# Scaling.


def test_scale_down_takes_the_highest_indexes_whoever_is_busy(fleet: StandIn) -> None:
    fleet.run(job(4))
    fleet.end(0, 75)
    fleet.await_pod(0)  # and not yet ready, so any other rule would take it first
    fleet.scale(2)
    fleet.await_status("terminating", 2)
    assert [index_of(pod) for pod in fleet.pods() if is_terminating(pod)] == [2, 3]


dropping = pytest.mark.parametrize(
    ("change", "dropped"),
    [({"completions": 1, "parallelism": 1}, [1, 2]), ({"suspend": True}, [0, 1, 2])],
    ids=["scaled down", "suspended"],
)
"""Three workers."""


@dropping
def test_a_dropped_pod_has_its_grace_period_and_is_no_longer_tracked(
    fleet: StandIn, change: Document, dropped: list[int]
) -> None:
    fleet.run(job(3))
    before = datetime.now(UTC).replace(microsecond=0)
    fleet.patch(**change)
    fleet.await_status("terminating", len(dropped))
    grace = timedelta(seconds=GRACE_S)
    for pod in fleet.pods():
        if index_of(pod) in dropped:
            assert "finalizers" not in pod["metadata"]
            assert before + grace <= moment(pod, "deletionTimestamp") <= datetime.now(UTC) + grace
        else:
            assert pod["metadata"]["finalizers"] == TRACKED
            assert not is_terminating(pod)


@dropping
def test_a_dropped_pod_counts_neither_as_a_success_nor_as_a_failure(
    fleet: StandIn, change: Document, dropped: list[int]
) -> None:
    fleet.run(job(3, backoffLimitPerIndex=0, successPolicy=None))
    fleet.patch(**change)
    fleet.await_status("terminating", len(dropped))
    for index, code in zip(dropped, [0, 69, 137], strict=False):
        fleet.end(index, code)
    fleet.await_status("terminating", 0)
    status = fleet.status
    assert status["failedIndexes"] == ""
    assert not {"completedIndexes", "succeeded", "failed"} & status.keys()


@dropping
def test_a_dropped_pod_whose_exit_code_fails_the_job_fails_it_all_the_same(
    fleet: StandIn, change: Document, dropped: list[int]
) -> None:
    """If the controller comes to see the code before the pod is gone."""
    fleet.run(job(3))
    fleet.patch(**change)
    fleet.await_status("terminating", len(dropped))
    fleet.end(dropped[-1], 78)
    fleet.await_condition("FailureTarget")


def test_a_dropped_index_returns_when_its_old_pod_has_ended(fleet: StandIn) -> None:
    fleet.run(job(2))
    fleet.scale(1)
    fleet.await_status("terminating", 1)
    fleet.scale(3)
    fleet.await_pod(2)
    assert all(map(is_terminating, fleet.pods(1)))
    fleet.end(1, 75)
    fleet.await_pod(1)


def test_a_resumed_fleet_returns_when_its_old_pods_have_ended(fleet: StandIn) -> None:
    fleet.run(job(2))
    fleet.patch(suspend=True)
    fleet.await_status("terminating", 2)
    fleet.patch(suspend=False)
    fleet.await_condition("Suspended=False")
    fleet.end(0, 75)
    fleet.await_pod(0)
    assert all(map(is_terminating, fleet.pods(1)))
    fleet.end(1, 75)
    fleet.await_pod(1)


def test_as_many_replacements_wait_as_dropped_pods_have_not_ended(fleet: StandIn) -> None:
    """So a long drain of some workers also holds up others."""
    fleet.run(job(2))
    fleet.scale(1)
    fleet.await_status("terminating", 1)
    fleet.end(0, 75)
    until(lambda: not fleet.status.get("active"), "a Job without an active pod")
    assert len(fleet.pods(0)) == 1
    fleet.end(1, 75)
    fleet.await_pod(0)


def test_a_failed_index_that_was_dropped_starts_afresh(fleet: StandIn) -> None:
    fleet.run(job(2, backoffLimitPerIndex=0))
    fleet.end(1, 69)
    fleet.await_status("failedIndexes", 1)
    fleet.scale(1)
    until(lambda: fleet.status["failedIndexes"] == "", "a Job without failed indexes")
    fleet.scale(2)
    assert ends_before(fleet.await_pod(1)) == {"counted": 0, "ignored": 0}


def test_no_workers_is_the_end_of_a_fleet(fleet: StandIn) -> None:
    """So no workers has to mean: suspended."""
    fleet.run(job(2, successPolicy=None))
    fleet.scale(0)
    fleet.await_status("terminating", 2)
    fleet.end(0, 75)
    fleet.end(1, 75)
    fleet.await_condition("Complete")
    assert fleet.conditions()["Complete"] == "CompletionsReached"


def test_scaling_to_what_has_succeeded_is_the_end_of_a_fleet(fleet: StandIn) -> None:
    fleet.run(job(2, successPolicy=None))
    fleet.end(0, 0)
    fleet.await_status("completedIndexes", 0)
    fleet.scale(1)
    fleet.await_status("terminating", 1)
    fleet.end(1, 75)
    fleet.await_condition("Complete")
    assert fleet.conditions()["Complete"] == "CompletionsReached"


def test_an_ended_fleet_stays_ended(fleet: StandIn) -> None:
    """New completions are stored, and nothing comes of them."""
    fleet.run(job(1))
    fleet.end(0, 0)
    fleet.await_condition("Complete")
    fleet.scale(3)
    fleet.apply(job(1, "after"))
    fleet.kubectl.wait("job/after", until="jsonpath={.status.active}=1")
    assert len(fleet.pods()) == 1
    assert "Complete" in fleet.conditions()


# How a Job ends.


def test_the_first_exit_0_ends_a_fleet(fleet: StandIn) -> None:
    """Whoever else is running is deleted, whoever has failed does not matter."""
    fleet.run(job(4, backoffLimitPerIndex=0))
    fleet.end(3, 69)
    fleet.await_status("failedIndexes", 3)
    fleet.end(1, 0)
    fleet.await_condition("SuccessCriteriaMet")
    assert [index_of(pod) for pod in fleet.pods() if is_terminating(pod)] == [0, 2]
    fleet.end(0, 75)
    fleet.end(2, 69)
    fleet.await_condition("Complete")
    assert fleet.conditions()["Complete"] == "SuccessPolicy"


def test_exit_0_of_the_last_index_that_has_not_failed_fails_the_fleet(fleet: StandIn) -> None:
    fleet.run(job(2, backoffLimitPerIndex=0))
    fleet.end(0, 69)
    fleet.await_status("failedIndexes", 0)
    fleet.end(1, 0)
    fleet.await_condition("Failed")
    assert fleet.conditions()["Failed"] == "FailedIndexes"


def test_without_a_success_policy_a_failed_index_fails_the_fleet(fleet: StandIn) -> None:
    """At its end: the others are not disturbed."""
    fleet.run(job(3, backoffLimitPerIndex=0, successPolicy=None))
    fleet.end(0, 69)
    fleet.await_status("failedIndexes", 0)
    fleet.end(1, 0)
    fleet.await_status("completedIndexes", 1)
    assert fleet.conditions() == {}
    fleet.end(2, 0)
    fleet.await_condition("Failed")
    assert fleet.conditions()["Failed"] == "FailedIndexes"


@pytest.mark.parametrize(
    ("code", "at_once", "at_last"),
    [(78, "FailureTarget", "Failed"), (0, "SuccessCriteriaMet", "Complete")],
    ids=["bad configuration", "finished"],
)
def test_the_terminal_condition_waits_for_the_last_pod(
    fleet: StandIn, code: int, at_once: str, at_last: str
) -> None:
    fleet.run(job(2))
    fleet.end(0, code)
    fleet.await_status("terminating", 1)
    conditions = fleet.conditions()
    assert conditions.keys() == {at_once}
    fleet.end(1, 75)
    fleet.await_condition(at_last)
    assert fleet.conditions() == {**conditions, at_last: conditions[at_once]}


# Disruptions.


def test_an_evicted_pod_whose_node_is_silent_blocks_its_index_until_it_is_marked_failed(
    fleet: StandIn,
) -> None:
    """By a taint, as an unreachable node has one. Nothing is counted."""
    fleet.run(job(1, backoffLimitPerIndex=0))
    fleet.mark_not_ready(0)
    fleet.taint(SILENT)
    fleet.await_status("terminating", 1)
    assert [disruption(pod) for pod in fleet.pods(0)] == ["DeletionByTaintManager"]
    fleet.taint(f"{SILENT}-")
    fleet.mark_failed(0)
    assert ends_before(fleet.await_pod(0)) == {"counted": 0, "ignored": 1}
    assert fleet.status["failedIndexes"] == ""


def test_deletion_by_force_frees_no_index(fleet: StandIn) -> None:
    """Its pod stays until somebody says that it has ended: a kubelet, the garbage collector, or a person."""
    fleet.run(job(1))
    fleet.mark_not_ready(0)
    fleet.delete_by_force(0)
    fleet.await_status("terminating", 1)
    assert [is_terminating(pod) for pod in fleet.pods(0)] == [True]
    fleet.mark_failed(0)
    fleet.await_pod(0)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"minAvailable": 1}, "SufficientPods"),
        ({"minAvailable": "50%"}, "SyncFailed"),
        ({"maxUnavailable": 1}, "SyncFailed"),
    ],
    ids=["a number that stays", "a share that stays", "a number that goes"],
)
def test_only_a_number_of_pods_that_stay_can_be_a_disruption_budget(
    fleet: StandIn, rule: Document, reason: str
) -> None:
    """The others allow no disruption at all: a Job has no scale subresource to take a share of."""
    fleet.run(job(2))
    budget = {"selector": {"matchLabels": {"app": JOB}}, **rule}
    fleet.kubectl.apply(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": JOB},
            "spec": budget,
        }
    )
    fleet.kubectl.wait(f"pdb/{JOB}", until=f"jsonpath={{.status.conditions[0].reason}}={reason}")
    status = fleet.kubectl.get("pdb", JOB)["status"]
    assert status["disruptionsAllowed"] == (1 if reason == "SufficientPods" else 0)
    if reason == "SyncFailed":
        assert "does not implement the scale subresource" in status["conditions"][0]["message"]


# What the API server accepts.


def suspended(namespace: Kubectl, **spec: object) -> None:
    """A fleet that has no pods; the most that can be changed is changed while it is suspended."""
    namespace.apply(job(3, suspend=True, **spec))


def changed(namespace: Kubectl, **spec: object) -> Document:
    """What its fields would be. Nothing is stored."""
    patch = f"--patch={json.dumps({'spec': spec})}"
    answer: Document = json.loads(namespace("patch", "job", JOB, patch, "--dry-run=server", "--output=json"))
    return {field: answer["spec"][field] for field in spec}


def crawler(**fields: object) -> Document:
    """A patch of the container."""
    return {"spec": {"containers": [{"name": "crawler", **fields}]}}


@pytest.mark.parametrize(
    "spec",
    [
        {"completions": 2, "parallelism": 2},
        {"parallelism": 2},
        {"suspend": False},
        {"backoffLimit": 7},
        {"maxFailedIndexes": 1},
        {"ttlSecondsAfterFinished": 60},
        {"activeDeadlineSeconds": 60},
    ],
    ids=" and ".join,
)
def test_what_can_be_changed(namespace: Kubectl, spec: Document) -> None:
    suspended(namespace)
    assert changed(namespace, **spec) == spec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("completionMode", "NonIndexed"),
        ("backoffLimitPerIndex", 5),
        ("podFailurePolicy", {"rules": [DISRUPTED]}),
        ("successPolicy", {"rules": [{"succeededCount": 2}]}),
        ("template", crawler(image="localhost/crawlfleet/crawler:newer")),
        ("template", crawler(env=[{"name": "MAX_CONCURRENT", "value": "20"}])),
    ],
    ids=["completion mode", "limit of an index", "failure policy", "success policy", "image", "environment"],
)
def test_what_can_never_be_changed(namespace: Kubectl, field: str, value: object) -> None:
    suspended(namespace)
    with pytest.raises(KubectlFailed, match=rf"spec\.{field}\S*: Invalid value: .*field is immutable"):
        changed(namespace, **{field: value})


def test_completions_never_change_alone(namespace: Kubectl) -> None:
    suspended(namespace)
    with pytest.raises(KubectlFailed, match=r"spec\.completions: .*in tandem with spec\.parallelism"):
        changed(namespace, completions=2)


def test_completions_may_follow_parallelism(namespace: Kubectl) -> None:
    """Only the new values are compared."""
    suspended(namespace, parallelism=2)
    assert changed(namespace, completions=2) == {"completions": 2}


def test_completions_never_fall_below_what_the_success_policy_counts(namespace: Kubectl) -> None:
    """So a fleet cannot be scaled to nothing by mistake."""
    suspended(namespace)
    with pytest.raises(
        KubectlFailed, match="succeededCount: Invalid value: 1: must be less than or equal to 0"
    ):
        changed(namespace, completions=0, parallelism=0)


def test_completions_take_max_failed_indexes_along(namespace: Kubectl) -> None:
    suspended(namespace, maxFailedIndexes=3)
    with pytest.raises(
        KubectlFailed, match="maxFailedIndexes: Invalid value: 3: must be less than or equal to"
    ):
        changed(namespace, completions=2, parallelism=2)
    changed(namespace, completions=2, parallelism=2, maxFailedIndexes=2)


def test_resources_of_a_suspended_fleet(namespace: Kubectl) -> None:
    """They are fixed up to 1.35; from 1.36 on they can be changed."""
    suspended(namespace)
    more = crawler(resources={"requests": {"memory": "256Mi"}})
    if minor_version(namespace) >= 36:
        changed(namespace, template=more)
    else:
        with pytest.raises(KubectlFailed, match="field is immutable"):
            changed(namespace, template=more)


def test_a_failure_policy_wants_pods_replaced_when_they_have_failed(namespace: Kubectl) -> None:
    suspended(namespace)
    assert namespace.get("job", JOB)["spec"]["podReplacementPolicy"] == "Failed"
    with pytest.raises(KubectlFailed, match=r"podReplacementPolicy: Unsupported value: .*\"Failed\""):
        namespace.apply(job(1, "other", podReplacementPolicy="TerminatingOrFailed"))


def test_a_limit_of_each_index_takes_away_that_of_the_job(namespace: Kubectl) -> None:
    suspended(namespace)
    assert namespace.get("job", JOB)["spec"]["backoffLimit"] == 2**31 - 1


def test_every_container_knows_its_index(fleet: StandIn) -> None:
    """WORKER_ID is the label's value, and there is JOB_COMPLETION_INDEX."""
    fleet.run(job(2))
    for index, pod in enumerate(fleet.pods()):
        assert pod["metadata"]["labels"][INDEX] == str(index)
        for container in [*pod["spec"]["containers"], *pod["spec"]["initContainers"]]:
            assert "JOB_COMPLETION_INDEX" in {variable["name"] for variable in container["env"]}


# Server-side apply.


def apply_as_operator(namespace: Kubectl, document: Document, *words: str) -> None:
    manager = "--field-manager=crawlfleet-operator"
    namespace("apply", "--server-side", manager, "--filename=-", *words, stdin=json.dumps(document))


def test_the_same_job_applied_again_is_no_change(namespace: Kubectl) -> None:
    same = job(2, suspend=True)
    apply_as_operator(namespace, same)
    namespace.wait(f"job/{JOB}", until="condition=Suspended")
    before = namespace.get("job", JOB)["metadata"]["resourceVersion"]
    apply_as_operator(namespace, same)
    assert namespace.get("job", JOB)["metadata"]["resourceVersion"] == before


def test_what_somebody_else_changed_is_a_conflict_unless_forced(namespace: Kubectl) -> None:
    apply_as_operator(namespace, job(2, suspend=True))
    namespace.patch("job", JOB, {"spec": {"completions": 3, "parallelism": 3}})
    with pytest.raises(KubectlFailed, match=r'conflicts? with "kubectl-patch"'):
        apply_as_operator(namespace, job(2, suspend=True))
    apply_as_operator(namespace, job(2, suspend=True), "--force-conflicts")
    assert namespace.get("job", JOB)["spec"]["completions"] == 2


def minor_version(kubectl: Kubectl) -> int:
    return int(json.loads(kubectl("version", "--output=json"))["serverVersion"]["minor"].rstrip("+"))


def disruption(pod: Document) -> str:
    """Why, as its condition says."""
    reasons = [each["reason"] for each in pod["status"]["conditions"] if each["type"] == "DisruptionTarget"]
    return str(reasons[0])


def ends_before(pod: Document) -> dict[str, int]:
    """How many ends of its index's earlier pods counted as failures, and how many did not."""
    annotations = pod["metadata"]["annotations"]
    names = {"counted": "job-index-failure-count", "ignored": "job-index-ignored-failure-count"}
    return {what: int(annotations.get(f"batch.kubernetes.io/{name}", 0)) for what, name in names.items()}


def moment(pod: Document, what: str) -> datetime:
    """`deletionTimestamp`, for example."""
    return datetime.fromisoformat(pod["metadata"][what])
