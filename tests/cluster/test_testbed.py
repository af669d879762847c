"""The testbed is a real cluster: it resolves, admits, evicts; and what it can break comes back."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cluster.testbed.cluster import FAKE, Cluster
from cluster.testbed.images import CRAWLER
from cluster.testbed.kubectl import Document, Kubectl, KubectlFailed
from cluster.testbed.place import API_PORT, AUTHORITY, ETCD_PORT, KUBECONFIG, REPOSITORY

NOTICED_S = 120
"""After so long the controllers have noticed that a kubelet is silent."""


def idler(name: str, *, node: str = "", **spec: object) -> Document:
    """A pod that waits for its end, with all that the restricted standard wants."""
    walls = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    program = ["python3", "-c", "import signal; signal.sigwait([signal.SIGTERM])"]
    container = {
        "name": "idler",
        "image": CRAWLER,
        "imagePullPolicy": "Never",
        "command": program,
        "securityContext": walls,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "containers": [container],
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            **({"nodeName": node} if node else {}),
            **spec,
        },
    }


def run(namespace: Kubectl, *pods: Document) -> None:
    """Until they are ready. Raises if an image is on no node."""
    namespace.apply(*pods)
    for pod in pods:
        namespace.await_ready(pod["metadata"]["name"])


def test_pods_of_both_nodes_find_services_by_name(namespace: Kubectl) -> None:
    run(namespace, idler("one", node="node-0"), idler("two", node="node-1"))
    ask = "import ssl, urllib.request as u; c = ssl._create_unverified_context()"
    ask += "; print(u.urlopen('https://kubernetes.default.svc/version', context=c, timeout=20).status)"
    for pod in ("one", "two"):
        assert namespace("exec", pod, "--", "python3", "-c", ask).strip() == "200"


def test_a_pod_that_is_not_restricted_is_refused(namespace: Kubectl) -> None:
    with pytest.raises(KubectlFailed, match='violates PodSecurity "restricted:latest": host namespaces'):
        namespace.apply(idler("spy", hostNetwork=True))


def test_an_image_that_no_node_has_is_told_at_once(namespace: Kubectl) -> None:
    pod = idler("lost")
    pod["spec"]["containers"][0]["image"] = "localhost/nowhere:test"
    namespace.apply(pod)
    with pytest.raises(
        KubectlFailed, match="pod lost cannot start: ErrImageNeverPull localhost/nowhere:test: "
    ):
        namespace.await_ready("lost")


def test_a_killed_container_is_started_again(testbed: Cluster, namespace: Kubectl) -> None:
    run(namespace, idler("victim", node="node-0"))
    status = namespace.get("pod", "victim")["status"]["containerStatuses"][0]
    testbed.nodes[0].kill_container(status["containerID"])
    namespace.wait("pod/victim", until="jsonpath={.status.containerStatuses[0].restartCount}=1")


def test_a_drained_node_hands_its_pods_over(testbed: Cluster, namespace: Kubectl) -> None:
    run(namespace, idler("stays", node="node-0"), idler("leaves", node="node-1"))
    try:
        namespace("drain", "node-1", "--pod-selector=app=leaves", "--force", "--timeout=60s")
        assert [pod["metadata"]["name"] for pod in namespace.list("pods")] == ["stays"]
    finally:
        namespace("uncordon", "node-1")


@pytest.mark.timeout(400)
def test_a_killed_kubelet_is_noticed_and_comes_back(testbed: Cluster, namespace: Kubectl) -> None:
    node = testbed.nodes[1]
    node.kubelet.kill()
    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    try:
        namespace.wait(f"node/{node.name}", until=f"{ready}=Unknown", timeout_s=NOTICED_S)
    finally:
        node.kubelet.start()
    namespace.wait(f"node/{node.name}", until="condition=Ready")
    run(namespace, idler("after", node=node.name))


@pytest.mark.timeout(400)
def test_a_lost_node_takes_its_pods_along_and_comes_back(testbed: Cluster, namespace: Kubectl) -> None:
    node = testbed.nodes[1]
    run(namespace, idler("lost", node=node.name))
    node.lose()
    node.start()
    namespace.wait("pod/lost", until="jsonpath={.status.containerStatuses[0].restartCount}=1")


@pytest.mark.parametrize("name", ["etcd", "kube-apiserver"])
def test_the_control_plane_comes_back_with_what_it_knew(
    testbed: Cluster, namespace: Kubectl, name: str
) -> None:
    namespace("create", "configmap", "memory", "--from-literal=it=stays")
    plane = testbed.control_plane
    {"etcd": plane.etcd, "kube-apiserver": plane.api_server}[name].kill()
    plane.start()
    assert namespace.get("configmap", "memory")["data"] == {"it": "stays"}
    run(namespace, idler("after"))


def test_etcd_answers_nobody_without_a_certificate(testbed: Cluster) -> None:
    """Whoever may write there is root of the machine."""
    trusted = ssl.create_default_context(cafile=str(AUTHORITY))
    with (
        socket.create_connection(("127.0.0.1", ETCD_PORT)) as plain,
        pytest.raises(ssl.SSLError, match="certificate required"),
        trusted.wrap_socket(plain, server_hostname="127.0.0.1") as line,
    ):
        line.recv(1)


@pytest.mark.timeout(600)
def test_hundreds_of_fake_nodes_run_fake_pods(testbed: Cluster, namespace: Kubectl) -> None:
    testbed.add_fake_nodes(200)
    try:
        template = idler("many")
        template["spec"]["tolerations"] = [{"key": FAKE, "operator": "Exists"}]
        template["spec"]["nodeSelector"] = {FAKE: "true"}
        deployment = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "many"},
            "spec": {
                "replicas": 200,
                "selector": {"matchLabels": {"app": "many"}},
                "template": {"metadata": {"labels": {"app": "many"}}, "spec": template["spec"]},
            },
        }
        namespace.apply(deployment)
        namespace.wait("deployment/many", until="jsonpath={.status.readyReplicas}=200", timeout_s=90)
        assert len({pod["spec"]["nodeName"] for pod in namespace.list("pods")}) > 50
    finally:
        namespace("delete", "deployment", "many", "--ignore-not-found", "--cascade=foreground")
        testbed.remove_fake_nodes()


class TestAnotherCluster:
    """CRAWLFLEET_TEST_KUBECONFIG, with our own in the part of somebody else's."""

    def run(self, kubeconfig: Path, test: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{test}"]
        env = {**os.environ, "CRAWLFLEET_TEST_KUBECONFIG": str(kubeconfig)}
        return subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True)

    def test_runs_the_same_tests(self, testbed: Cluster) -> None:
        done = self.run(KUBECONFIG, "test_a_pod_that_is_not_restricted_is_refused")
        assert "1 passed" in done.stdout, done.stdout

    def test_is_not_ours_to_break(self, testbed: Cluster) -> None:
        done = self.run(KUBECONFIG, "test_a_killed_container_is_started_again")
        assert "1 skipped" in done.stdout
        assert "that cluster is not ours to break" in done.stdout

    def test_whose_kubeconfig_is_not_there(self, tmp_path: Path) -> None:
        done = self.run(tmp_path / "none", "test_a_pod_that_is_not_restricted_is_refused")
        assert (
            f"the kubeconfig {tmp_path}/none cannot be read: set CRAWLFLEET_TEST_KUBECONFIG to one"
            in done.stdout
        )

    def test_that_does_not_answer(self, testbed: Cluster, tmp_path: Path) -> None:
        nobody = tmp_path / "kubeconfig"
        nobody.write_text(KUBECONFIG.read_text().replace(f":{API_PORT}", ":1"))
        done = self.run(nobody, "test_a_pod_that_is_not_restricted_is_refused")
        assert f"the cluster of {nobody} does not answer: " in done.stdout
        assert "; start it, or name another" in done.stdout
