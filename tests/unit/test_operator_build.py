"""The Job and the budget of a batch: every field that Kubernetes' behaviour forces, and what a template may change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from operators import UID, batch

from crawlfleet.errors import BadInput
from crawlfleet.manifests import CrawlBatch
from crawlfleet_operator import build
from crawlfleet_operator.build import Document, Images

IMAGES = Images("registry/crawler:1", "registry/chrome:1", "IfNotPresent", "fleet-secret")
RESTRICTED_VOLUMES = {"secret", "emptyDir", "configMap", "projected", "downwardAPI"}


def template(of: CrawlBatch | None = None, *, images: Images = IMAGES, needs_chrome: bool = True) -> Document:
    return build.pod_template(of or batch(), UID, images, needs_chrome=needs_chrome)


def merged(metadata: Document | None = None, **spec: Any) -> Document:
    """The pods of a batch whose template says so."""
    own = {"spec": spec} | ({"metadata": metadata} if metadata else {})
    return template(batch(template=own))


def job(of: CrawlBatch | None = None, *, size: int = 3, needs_chrome: bool = True) -> Document:
    made = of or batch()
    pods = template(made, needs_chrome=needs_chrome)
    name = build.job_name(made.metadata.name, 1, 2)
    return build.job(made, UID, pods, name=name, round_=1, revision=2, size=size)


def containers(pods: Document) -> list[Document]:
    return [*pods["spec"]["initContainers"], *pods["spec"]["containers"]]


def crawler(pods: Document) -> Document:
    (found,) = pods["spec"]["containers"]
    assert isinstance(found, dict)
    return found


def environment(pods: Document) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in crawler(pods)["env"]}


# What a Job does otherwise.


def test_completions_are_parallelism_so_that_the_job_is_elastic() -> None:
    spec = job(size=5)["spec"]

    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 5, 5)


def test_the_first_worker_that_ends_well_ends_the_job() -> None:
    assert job()["spec"]["successPolicy"] == {"rules": [{"succeededCount": 1}]}


def test_failures_are_counted_for_each_index_alone() -> None:
    """It needs restartPolicy Never, and no backoffLimit or maxFailedIndexes that would end the whole Job."""
    spec = job()["spec"]

    assert spec["backoffLimitPerIndex"] == build.WORKER_FAILURES
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert not {"backoffLimit", "maxFailedIndexes"} & set(spec)


@pytest.mark.parametrize("field", ["ttlSecondsAfterFinished", "activeDeadlineSeconds", "managedBy"])
def test_what_the_operator_decides_itself_is_no_field_of_the_job(field: str) -> None:
    assert field not in job()["spec"]


def test_a_disruption_is_ignored_before_any_exit_code_is_looked_at() -> None:
    first = job()["spec"]["podFailurePolicy"]["rules"][0]

    assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_exit_codes_mean_what_the_worker_says() -> None:
    """74 it stopped itself, 75 it drained: ignored. 78 bad configuration: the Job fails. Sorted, and never 0."""
    _, *rules = job()["spec"]["podFailurePolicy"]["rules"]

    assert [(rule["action"], rule["onExitCodes"]["values"]) for rule in rules] == [
        ("Ignore", [74, 75]),
        ("FailJob", [78]),
    ]


def test_each_rule_for_exit_codes_names_the_worker() -> None:
    """Without a name Chrome's 137 at the end would fail the whole Job."""
    rules = [
        rule["onExitCodes"] for rule in job()["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule
    ]

    assert {(rule["containerName"], rule["operator"]) for rule in rules} == {("crawler", "In")}
    assert crawler(template())["name"] == "crawler"


def test_chrome_is_a_native_sidecar() -> None:
    """Its restarts are no failures of the pod, and it ends after the worker."""
    (chrome,) = template()["spec"]["initContainers"]

    assert (chrome["name"], chrome["restartPolicy"]) == ("chrome", "Always")
    assert "lifecycle" not in chrome


def test_the_worker_id_is_the_completion_index() -> None:
    path = "metadata.labels['batch.kubernetes.io/job-completion-index']"

    assert environment(template())["WORKER_ID"] == {"fieldRef": {"fieldPath": path}}


def test_a_worker_finds_its_batch_its_database_and_its_keys() -> None:
    found = environment(template())

    assert found["CRAWLFLEET_BATCH"] == UID
    for name, key in (("CRAWLFLEET_DATABASE_URL_FILE", "database-url"), ("CRAWLFLEET_KEYS_FILE", "keys")):
        assert found[name] == f"{build.SECRETS}/{key}"


@pytest.mark.parametrize("grace_s", [30, 140, 3600])
def test_a_worker_drains_within_the_grace_period(grace_s: int) -> None:
    pods = merged(terminationGracePeriodSeconds=grace_s)

    assert pods["spec"]["terminationGracePeriodSeconds"] == grace_s
    assert 0 < int(environment(pods)["CRAWLFLEET_DRAIN_SECONDS"]) <= grace_s - 10


def test_a_lost_nodes_pods_go_after_half_a_minute() -> None:
    tolerations = template()["spec"]["tolerations"]

    assert {(one["key"], one["effect"], one["tolerationSeconds"]) for one in tolerations} == {
        ("node.kubernetes.io/not-ready", "NoExecute", 30),
        ("node.kubernetes.io/unreachable", "NoExecute", 30),
    }


def test_the_pods_of_a_batch_spread_over_nodes_if_they_can() -> None:
    (spread,) = template()["spec"]["topologySpreadConstraints"]

    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == (
        "kubernetes.io/hostname",
        "ScheduleAnyway",
    )
    assert spread["labelSelector"]["matchLabels"].items() <= template()["metadata"]["labels"].items()


def test_a_job_and_its_budget_go_with_their_batch() -> None:
    for document in (job(), build.disruption_budget(batch(), UID, 3)):
        (owner,) = document["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == (
            "CrawlBatch",
            "nightly",
            UID,
            True,
        )


# Safe pods.


@pytest.mark.parametrize("one", containers(template()), ids=lambda one: str(one["name"]))
def test_every_container_fits_the_restricted_pod_security_standard(one: Document) -> None:
    context = one["securityContext"]

    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"] == {"drop": ["ALL"]}


def test_a_pod_fits_the_restricted_pod_security_standard() -> None:
    spec = template()["spec"]

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert all(set(volume) - {"name"} <= RESTRICTED_VOLUMES for volume in spec["volumes"])
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


def test_a_pod_may_not_talk_to_the_api_server() -> None:
    spec = template()["spec"]

    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False


def test_chrome_sees_no_secret() -> None:
    (chrome,) = template()["spec"]["initContainers"]

    assert [mount["name"] for mount in chrome["volumeMounts"]] == ["shm", "chrome-tmp"]
    assert [mount["name"] for mount in crawler(template())["volumeMounts"]] == ["secret", "tmp"]


@pytest.mark.parametrize("needs_chrome", [True, False])
def test_every_mount_has_a_volume_and_every_volume_a_mount(needs_chrome: bool) -> None:
    pods = template(needs_chrome=needs_chrome)
    mounted = {mount["name"] for one in containers(pods) for mount in one["volumeMounts"]}

    assert mounted == {volume["name"] for volume in pods["spec"]["volumes"]}


def test_the_secret_is_readable_for_its_group_alone() -> None:
    (secret,) = (volume["secret"] for volume in template()["spec"]["volumes"] if "secret" in volume)

    assert secret == {"secretName": "fleet-secret", "defaultMode": 0o440}


def test_chromes_shared_memory_is_memory_and_has_a_limit() -> None:
    (shm,) = (volume["emptyDir"] for volume in template()["spec"]["volumes"] if volume["name"] == "shm")
    (chrome,) = template()["spec"]["initContainers"]

    assert shm == {"medium": "Memory", "sizeLimit": "512Mi"}
    assert {"name": "shm", "mountPath": "/dev/shm"} in chrome["volumeMounts"]


@pytest.mark.parametrize("one", containers(template()), ids=lambda one: str(one["name"]))
def test_every_container_asks_for_memory_and_has_a_limit(one: Document) -> None:
    assert one["resources"]["requests"]["memory"]
    assert one["resources"]["limits"]["memory"]


def test_no_chrome_where_no_source_needs_one() -> None:
    pods = template(needs_chrome=False)

    assert [one["name"] for one in containers(pods)] == ["crawler"]
    assert {volume["name"] for volume in pods["spec"]["volumes"]} == {"secret", "tmp"}


def test_what_a_template_says_of_chrome_makes_none() -> None:
    own = {
        "spec": {"initContainers": [{"name": "chrome", "image": "other"}, {"name": "mine", "image": "other"}]}
    }

    pods = template(batch(template=own), needs_chrome=False)

    assert [one["name"] for one in containers(pods)] == ["mine", "crawler"]


# A batch's own template.


def test_a_container_is_changed_by_its_name() -> None:
    resources = {"limits": {"memory": "1Gi"}}
    pods = merged(containers=[{"name": "crawler", "resources": resources}])

    assert crawler(pods)["resources"] == {
        "requests": {"cpu": "100m", "memory": "128Mi"},
        "limits": {"memory": "1Gi"},
    }
    assert crawler(pods)["image"] == IMAGES.crawler


def test_an_environment_variable_is_added_or_changed_by_its_name() -> None:
    env = [{"name": "TZ", "value": "Asia/Seoul"}, {"name": "CRAWLFLEET_LOG_FORMAT", "value": "text"}]

    found = environment(merged(containers=[{"name": "crawler", "env": env}]))

    assert (found["TZ"], found["CRAWLFLEET_LOG_FORMAT"], found["CRAWLFLEET_BATCH"]) == (
        "Asia/Seoul",
        "text",
        UID,
    )


def test_a_volume_may_be_mounted_twice() -> None:
    mounts = [{"name": "tmp", "mountPath": path, "subPath": path[1:]} for path in ("/a", "/b")]

    found = crawler(merged(containers=[{"name": "crawler", "volumeMounts": mounts}]))["volumeMounts"]

    assert found == [*crawler(template())["volumeMounts"], *mounts]


def test_another_container_comes_besides() -> None:
    pods = merged(containers=[{"name": "proxy", "image": "proxy:1"}])

    assert [one["name"] for one in pods["spec"]["containers"]] == ["crawler", "proxy"]


def test_a_list_of_things_without_names_is_replaced() -> None:
    mine = [{"key": "spot", "operator": "Exists"}]

    assert merged(tolerations=mine)["spec"]["tolerations"] == mine
    assert merged(topologySpreadConstraints=[])["spec"]["topologySpreadConstraints"] == []


def test_fields_that_we_do_not_set_are_taken_as_they_are() -> None:
    spec = merged(nodeSelector={"disk": "ssd"}, priorityClassName="low")["spec"]

    assert (spec["nodeSelector"], spec["priorityClassName"]) == ({"disk": "ssd"}, "low")


def test_own_labels_and_annotations_come_besides() -> None:
    metadata = merged({"labels": {"team": "data"}, "annotations": {"why": "so"}})["metadata"]

    assert metadata["labels"] == template()["metadata"]["labels"] | {"team": "data"}
    assert metadata["annotations"] == {"why": "so"}


def test_own_labels_cannot_take_ours_away() -> None:
    """The budget and the Job's Events find the pods by them."""
    theirs = dict.fromkeys(template()["metadata"]["labels"], "other")

    assert merged({"labels": theirs})["metadata"]["labels"] == template()["metadata"]["labels"]


@pytest.mark.parametrize("policy", ["Always", "OnFailure"])
def test_a_template_cannot_change_the_restart_policy(policy: str) -> None:
    assert merged(restartPolicy=policy)["spec"]["restartPolicy"] == "Never"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            {"containers": {"crawler": {}}},
            "template.spec.containers: expected a list of mappings, each with a name",
        ),
        (
            {"containers": [{"image": "x"}]},
            "template.spec.containers: expected a list of mappings, each with a name",
        ),
        (
            {"containers": [{"name": ["crawler"]}]},
            "template.spec.containers: expected a list of mappings, each with a name",
        ),
        (
            {"containers": [{"name": "crawler", "volumeMounts": [{"name": "cache"}]}]},
            "template.spec.containers[crawler].volumeMounts: expected a list of mappings, each with a mountPath",
        ),
        ({"containers": None}, "template.spec.containers: expected a list of mappings, each with a name"),
        (
            {"initContainers": "chrome"},
            "template.spec.initContainers: expected a list of mappings, each with a name",
        ),
        ({"securityContext": []}, "template.spec.securityContext: expected a mapping"),
        (
            {"containers": [{"name": "crawler", "resources": "much"}]},
            "template.spec.containers[crawler].resources: expected a mapping",
        ),
        (
            {"containers": [{"name": "crawler", "env": {"TZ": "UTC"}}]},
            "template.spec.containers[crawler].env: expected a list of mappings, each with a name",
        ),
    ],
)
def test_a_template_of_another_shape_is_refused_by_its_path(spec: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as refused:
        merged(**spec)

    assert str(refused.value) == words


# Revisions and names.


def test_max_concurrent_is_no_new_revision() -> None:
    three, seven = (template(batch(maxConcurrent=number)) for number in (3, 7))

    assert build.digest(three) == build.digest(seven)


@pytest.mark.parametrize("field", ["workers", "activeDeadlineSeconds", "ttlSecondsAfterFinished"])
def test_a_lever_is_no_new_revision(field: str) -> None:
    spec: Document = {field: 77}
    assert build.digest(template(batch(**spec))) == build.digest(template())


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(template(images=replace(IMAGES, crawler="registry/crawler:2")), id="image"),
        pytest.param(template(needs_chrome=False), id="chrome"),
        pytest.param(template(batch(template={"spec": {"nodeSelector": {"disk": "ssd"}}})), id="template"),
    ],
)
def test_other_pods_are_a_new_revision(other: Document) -> None:
    assert build.digest(other) != build.digest(template())


def test_a_job_says_of_which_pods_it_is() -> None:
    """The digest is that of the template, not of what max_concurrent makes of it."""
    assert job()["metadata"]["annotations"] == {build.DIGEST: build.digest(template())}


def test_workers_start_with_max_concurrent() -> None:
    pods = job(batch(maxConcurrent=7))["spec"]["template"]

    assert environment(pods)["MAX_CONCURRENT"] == "7"


def test_a_template_may_not_hold_max_concurrent_against_the_spec() -> None:
    """Twice in the list the API server would refuse it."""
    own = {"spec": {"containers": [{"name": "crawler", "env": [{"name": "MAX_CONCURRENT", "value": "99"}]}]}}
    pods = job(batch(maxConcurrent=7, template=own))["spec"]["template"]

    assert [one["value"] for one in crawler(pods)["env"] if one["name"] == "MAX_CONCURRENT"] == ["7"]


def test_the_pod_that_is_tried_out_is_one_of_the_job() -> None:
    made = batch(maxConcurrent=7)
    tried = build.pod(made, template(made))

    assert tried["spec"] == job(made)["spec"]["template"]["spec"]
    assert tried["metadata"]["generateName"] == "nightly-"


def test_the_longest_name_leaves_room_for_round_revision_and_index() -> None:
    """A Job's name and its highest index are a host name."""
    longest = batch("b" * 45)

    name = build.job_name(longest.metadata.name, 9999, 99_999)

    assert len(f"{name}-999") <= 63


@pytest.mark.parametrize(("size", "available"), [(1, 0), (2, 1), (300, 299)])
def test_the_budget_lets_one_pod_go_at_a_time(size: int, available: int) -> None:
    """As a number of pods that stay: nothing else works for pods of a Job."""
    spec = build.disruption_budget(batch(), UID, size)["spec"]

    assert spec["minAvailable"] == available
    assert "maxUnavailable" not in spec
    assert spec["selector"]["matchLabels"].items() <= job()["spec"]["template"]["metadata"]["labels"].items()


def test_the_labels_of_a_job_tell_the_operator_of_its_batch() -> None:
    labels = job()["metadata"]["labels"]

    assert (labels[build.BATCH], labels[build.BATCH_UID]) == ("nightly", UID)
    assert (labels[build.ROUND], labels[build.REVISION]) == ("1", "2")
    selector, *must_be_there = build.MANAGED.split(",")
    key, _, value = selector.partition("=")
    assert labels[key] == value
    assert set(must_be_there) == {build.BATCH, build.BATCH_UID, build.ROUND, build.REVISION}
