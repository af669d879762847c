"""`kubectl apply` a CrawlBatch, get a fleet: the sample to its end, each lever, and each thing that may break in the middle."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.operated import BATCH, INSTALLATION, Operated, installed_for_all, operated
from cluster.stage import stage, truth
from cluster.testbed.cluster import Cluster
from cluster.testbed.kubectl import Kubectl, KubectlFailed
from fleet import until

USERS = 40
pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("crds")]


@pytest.fixture
def fleet(namespace: Kubectl, tmp_path: Path) -> Iterator[Operated]:
    """The operator with the sample's sources and 40 users; nothing is crawled yet."""
    with operated(namespace, tmp_path, users=USERS) as fleet:
        yield fleet


def assert_whole(fleet: Operated, users: int = USERS) -> None:
    """Nothing lost, nothing doubled, nothing impolite."""
    fleet.await_complete()
    assert fleet.condition("Complete")[:2] == ("True", "AllSucceeded")
    assert fleet.items() == truth(range(1, users + 1))
    assert fleet.stage.violations() == {}


def test_the_sample_of_100_users_brings_every_item(namespace: Kubectl, tmp_path: Path) -> None:
    with operated(namespace, tmp_path, users=100) as fleet:
        fleet.apply_batch()

        assert_whole(fleet, users=100)
        fleet.kubectl.wait("job/nightly-1-1", until="condition=Complete", timeout_s=30)
        assert fleet.status()["total"] == fleet.status()["done"] == 200


def test_an_operator_for_all_namespaces(kubectl: Kubectl, namespace: Kubectl, tmp_path: Path) -> None:
    """As k8s/operator is applied, in its own namespace; the batch, and all that it needs, is in another one."""
    with stage(namespace, tmp_path) as staged:
        fleet = Operated(staged)
        staged.prepare_for_operator(USERS)
        its = kubectl.within("crawlfleet")
        try:
            kubectl.apply(*installed_for_all())
            secret = namespace.get("secret", "crawlfleet")["data"]
            url = f"postgresql://crawlfleet@postgres.{namespace.namespace}/crawlfleet"
            secret["database-url"] = base64.b64encode(url.encode()).decode()
            its.apply(
                {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "crawlfleet"}, "data": secret}
            )
            its("rollout", "status", "deployment/crawlfleet-operator", "--timeout=120s")
            fleet.apply_sources()
            fleet.apply_batch()

            assert_whole(fleet)
        finally:
            fleet.close()
            its("delete", "deployment", "--all", "--ignore-not-found")
            kubectl("delete", "--ignore-not-found", "--wait=false", "-f", str(INSTALLATION))


# Levers.


def test_up_at_once_and_down_when_the_highest_have_drained(fleet: Operated) -> None:
    fleet.apply_batch(workers=2, maxConcurrent=3)
    fleet.await_done(5)
    fleet.kubectl("scale", f"crawlbatch/{BATCH}", "--replicas=5")
    fleet.await_workers(5)
    fleet.kubectl("scale", f"crawlbatch/{BATCH}", "--replicas=1")
    fleet.await_workers(1)

    assert_whole(fleet)
    cut_off = "select count(*) from failure where reason in ('WorkerLost', 'WorkerEnds', 'Drained')"
    assert fleet.ask(cut_off) == [(0,)]


def test_a_suspended_batch_has_no_pod_and_goes_on_when_it_is_resumed(fleet: Operated) -> None:
    fleet.apply_batch(maxConcurrent=3)
    fleet.await_done(5)
    fleet.patch(suspend=True)
    fleet.kubectl.wait(f"crawlbatch/{BATCH}", until="condition=Suspended", timeout_s=90)
    assert fleet.workers() == []
    assert fleet.counted("leased") == 0
    fleet.patch(suspend=False)

    assert_whole(fleet)


def test_another_template_is_another_revision_and_no_crawl_is_lost(fleet: Operated) -> None:
    fleet.apply_batch(maxConcurrent=3)
    fleet.await_done(5)
    fleet.patch(template={"metadata": {"annotations": {"example.com/why": "another"}}})

    assert_whole(fleet)
    assert fleet.status()["revision"] == 2
    assert [job["metadata"]["name"] for job in fleet.kubectl.list("jobs")] == ["nightly-1-2"]


def test_a_stopped_batch_ends_what_runs_and_gives_up_the_rest(fleet: Operated) -> None:
    fleet.apply_batch(maxConcurrent=3)
    fleet.await_done(5)
    fleet.patch(stop="Drain")
    fleet.await_complete()

    status, reason, _ = fleet.condition("Complete")
    assert (status, reason) == ("True", "WithFailures")
    assert fleet.status()["cancelled"] > 0
    assert fleet.status()["failed"] == 0


def test_a_retry_of_a_closed_batch_is_a_new_round_with_a_new_job(fleet: Operated) -> None:
    fleet.apply_batch(maxConcurrent=3)
    fleet.await_done(5)
    fleet.patch(stop="Cancel")
    fleet.await_complete()
    fleet.patch(stop="None")
    fleet.stage.crawlfleet("retry", BATCH)
    fleet.kubectl.wait(f"crawlbatch/{BATCH}", until="condition=Complete=false", timeout_s=60)

    assert_whole(fleet)
    assert (fleet.status()["round"], fleet.status()["jobName"]) == (2, "nightly-2-2")


def test_limits_of_a_source_are_live_in_a_running_fleet(fleet: Operated) -> None:
    fleet.apply_batch()
    fleet.await_done(1)
    fleet.apply_sources(maxConcurrent=1)
    cap = "select max(cap) from egress"
    until(lambda: fleet.ask(cap) == [(1,)], "the new cap", 5)
    until(
        lambda: fleet.ask("select count(*) from permit where lease_id is not null")[0][0] <= 2, "fewer crawls"
    )
    until(lambda: fleet.status("cafe24", "crawlsource")["permits"]["total"] == 1, "the status")
    fleet.apply_sources(maxConcurrent=10)

    assert_whole(fleet)


def test_max_concurrent_is_live_and_no_new_revision(fleet: Operated) -> None:
    fleet.apply_batch(maxConcurrent=1)
    fleet.await_done(1)
    fleet.patch(maxConcurrent=7)
    until(lambda: fleet.ask("select max_concurrent from batch") == [(7,)], "the new number", 10)
    until(
        lambda: fleet.ask("select count(*) from permit where lease_id is not null")[0][0] > 2, "more crawls"
    )

    assert_whole(fleet)
    assert fleet.status()["revision"] == 1


# What may break in the middle.


def absence(fleet: Operated, seconds: int) -> None:
    """The operator is gone for so long, by the fleet's own clock."""
    ticks = "select tick from fleet"
    fleet.kubectl("scale", "deployment/crawlfleet-operator", "--replicas=0")
    fleet.kubectl.wait("pod", "--selector=app.kubernetes.io/component=operator", until="delete", timeout_s=60)
    (began,) = fleet.ask(ticks)[0]
    until(lambda: fleet.ask(ticks)[0][0] >= began + seconds, "the absence", 3 * seconds)
    fleet.kubectl("scale", "deployment/crawlfleet-operator", "--replicas=1")


def kill(testbed: Cluster, pod: dict[str, object], container: str) -> None:
    """As the kernel does it when memory runs out."""
    status = pod["status"]
    assert isinstance(status, dict)
    both = (*status.get("initContainerStatuses", ()), *status["containerStatuses"])
    (victim,) = (one for one in both if one["name"] == container)
    node = next(node for node in testbed.nodes if node.name == pod["spec"]["nodeName"])  # type: ignore[index]
    node.kill_container(victim["containerID"])


def test_the_fleet_goes_on_without_its_operator(fleet: Operated) -> None:
    fleet.apply_sources(requestsPerSecond=1)
    fleet.apply_batch()
    fleet.await_done(1)
    before = fleet.counted("ok")
    absence(fleet, seconds=60)
    assert fleet.counted("ok") > before
    fleet.apply_sources()

    assert_whole(fleet)


def test_two_operators_by_mistake_do_nothing_twice(fleet: Operated) -> None:
    fleet.kubectl("scale", "deployment/crawlfleet-operator", "--replicas=2")
    fleet.kubectl("rollout", "status", "deployment/crawlfleet-operator", "--timeout=60s")
    fleet.apply_batch(maxConcurrent=3)
    fleet.await_done(5)
    fleet.patch(template={"metadata": {"annotations": {"example.com/why": "another"}}})

    assert_whole(fleet)
    assert [job["metadata"]["name"] for job in fleet.kubectl.list("jobs")] == ["nightly-1-2"]
    assert fleet.ask("select count(*) from batch") == [(1,)]
    assert fleet.ask("select count(*) from task") == [(2 * USERS,)]


def test_an_operator_that_is_upgraded_hands_its_batches_over(fleet: Operated) -> None:
    """A newer one makes other pods; here they differ by how they get their images."""
    fleet.apply_batch(maxConcurrent=3)
    fleet.await_done(5)
    fleet.install(CRAWLFLEET_PULL_POLICY="IfNotPresent")

    assert_whole(fleet)
    assert fleet.status()["revision"] == 2


@pytest.mark.parametrize("container", ["crawler", "chrome"])
def test_a_killed_container(fleet: Operated, testbed: Cluster, container: str) -> None:
    fleet.apply_batch(maxConcurrent=3)
    fleet.await_done(5)
    kill(testbed, fleet.workers()[0], container)

    assert_whole(fleet)


def test_an_evicted_pod(fleet: Operated) -> None:
    fleet.apply_batch(maxConcurrent=3)
    fleet.await_done(5)
    evict(fleet, fleet.workers()[0]["metadata"]["name"])

    assert_whole(fleet)


def evict(fleet: Operated, pod: str) -> None:
    """What a drain or an autoscaler does, as soon as the budget allows it."""
    namespace = fleet.kubectl.namespace
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
    }

    def is_allowed() -> bool:
        try:
            fleet.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        except KubectlFailed as exc:
            if "TooManyRequests" not in str(exc):
                raise
            return False
        return True

    until(is_allowed, "an eviction", 120)


def test_a_drained_node(fleet: Operated) -> None:
    fleet.apply_batch(maxConcurrent=3, workers=3)
    fleet.await_done(5)
    drain(fleet, "node-1")
    try:
        assert_whole(fleet)
    finally:
        fleet.kubectl("uncordon", "node-1")


def drain(fleet: Operated, node: str) -> None:
    fleet.kubectl("drain", node, "--pod-selector=app=fleet", "--delete-emptydir-data", "--timeout=120s")


def test_a_restarted_api_server(fleet: Operated, testbed: Cluster) -> None:
    fleet.apply_batch(maxConcurrent=3)
    fleet.await_done(5)
    restart_api_server(testbed)
    fleet.kubectl("scale", f"crawlbatch/{BATCH}", "--replicas=3")
    fleet.await_workers(3)

    with fleet.stage.reached():
        assert_whole(fleet)


def restart_api_server(testbed: Cluster) -> None:
    """Whatever was forwarded through it ends."""
    testbed.control_plane.api_server.kill()
    testbed.control_plane.start()


def test_a_restarted_database(fleet: Operated, testbed: Cluster) -> None:
    fleet.apply_batch(maxConcurrent=3)
    fleet.await_done(5)
    restart_database(fleet, testbed)

    assert_whole(fleet)


def restart_database(fleet: Operated, testbed: Cluster) -> None:
    kill(testbed, fleet.kubectl.get("pod", "postgres"), "postgres")
    count = "jsonpath={.status.containerStatuses[0].restartCount}=1"
    fleet.kubectl.wait("pod/postgres", until=count)
    fleet.kubectl.await_ready("postgres")


@pytest.fixture
def apart(namespace: Kubectl, tmp_path: Path, testbed: Cluster) -> Iterator[Operated]:
    """Shops, database and operator on node-0; a node that a test loses comes back."""
    namespace("cordon", "node-1")
    try:
        with operated(namespace, tmp_path, users=USERS) as fleet:
            namespace("uncordon", "node-1")
            yield fleet
    finally:
        testbed.nodes[1].start()
        namespace("uncordon", "node-0", "node-1")
        namespace.wait("node/node-1", until="condition=Ready", timeout_s=120)


@pytest.mark.timeout(900)
def test_a_node_lost_for_good_with_all_workers_on_it(apart: Operated, testbed: Cluster) -> None:
    start_on_node_1(apart, maxConcurrent=2)
    apart.await_done(5)
    testbed.nodes[1].lose()

    apart.await_complete(timeout_s=480)
    assert_whole(apart)
    assert apart.status()["revision"] == 2


def start_on_node_1(fleet: Operated, **spec: object) -> None:
    fleet.kubectl("cordon", "node-0")
    fleet.apply_batch(**spec)  # type: ignore[arg-type]  # fields of a spec
    fleet.await_workers(2)
    fleet.kubectl("uncordon", "node-0")


@pytest.mark.timeout(1200)
def test_all_of_it_in_one_run_and_a_lost_node_at_its_end(apart: Operated, testbed: Cluster) -> None:
    apart.apply_sources(requestsPerSecond=0.8)
    start_on_node_1(apart, maxConcurrent=2)
    apart.await_done(2)
    apart.kubectl("delete", "pod", "--selector=app.kubernetes.io/component=operator", "--wait=false")
    kill(testbed, apart.workers()[0], "crawler")
    kill(testbed, apart.workers()[1], "chrome")
    apart.await_done(6)
    evict(apart, apart.workers()[-1]["metadata"]["name"])
    apart.kubectl("scale", f"crawlbatch/{BATCH}", "--replicas=5")
    apart.await_workers(5)
    drain(apart, "node-1")
    apart.kubectl("uncordon", "node-1")
    restart_api_server(testbed)
    restart_database(apart, testbed)
    with apart.stage.reached():
        shrink_suspend_change_and_lose(apart, testbed)
        apart.await_complete(timeout_s=480)
        assert_whole(apart)


def shrink_suspend_change_and_lose(fleet: Operated, testbed: Cluster) -> None:
    """The last worker is on node-1, which is lost."""
    fleet.kubectl("scale", f"crawlbatch/{BATCH}", "--replicas=1")
    fleet.await_workers(1)
    fleet.patch(suspend=True)
    fleet.kubectl.wait(f"crawlbatch/{BATCH}", until="condition=Suspended", timeout_s=120)
    fleet.kubectl("cordon", "node-0")
    fleet.patch(suspend=False, template={"metadata": {"annotations": {"example.com/why": "another"}}})
    fleet.await_workers(1)
    fleet.kubectl("uncordon", "node-0")
    done = fleet.counted("ok")
    fleet.await_done(done + 3)
    assert fleet.status()["phase"] == "Running"
    testbed.nodes[1].lose()
    fleet.apply_sources()
