"""The operator may do what it does, and nothing else: its calls, as the API server noted them, against its Role."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import yaml
from cluster.audit import calls
from cluster.operated import INSTALLATION
from cluster.outside import ACCOUNT, Outside, outside, resource
from cluster.testbed.cluster import Cluster
from cluster.testbed.kubectl import Document, Kubectl
from fleet import Fleet, until

BATCH = "busy"
CREATED = 201
Right = tuple[str, str, str]
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("crds")]


@pytest.fixture
def operator(testbed: Cluster, namespace: Kubectl, database_url: str, tmp_path: Path) -> Iterator[Outside]:
    """At work on a source with a proxy. The notes are those of our own API server, so `testbed`."""
    with (
        Fleet(database_url, tmp_path) as fleet,
        outside(namespace, tmp_path, database_url, fleet.keys.path) as operator,
    ):
        fleet.noop(users=3)
        operator.start()
        proxy = {"url": "http://proxy.example.com:3128", "username": "crawler", "password": "secret"}
        namespace.apply(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "exit"}, "stringData": proxy}
        )
        egress = {"name": "exit", "proxySecretRef": {"name": "exit"}}
        namespace.apply(resource("CrawlSource", "noop", adapter="noop", maxConcurrent=1, egresses=[egress]))
        namespace.wait("crawlsource/noop", until="condition=Available")
        yield operator


def template(why: str) -> Document:
    """Pods that no node takes."""
    return {
        "metadata": {"annotations": {"example.com/why": why}},
        "spec": {"nodeSelector": {"example.com/nobody": "here"}},
    }


@pytest.mark.usefixtures("operator")
def test_the_operator_uses_each_of_its_rights_and_lacks_none(namespace: Kubectl) -> None:
    use_everything(namespace)

    made = [call for call in calls(namespace.namespace, ACCOUNT) if not call.resource.startswith("/")]
    assert [call for call in made if call.status == 403] == []
    used = {(call.verb, call.group, call.resource) for call in made}
    # Who applies what is not there yet needs both rights, and is noted with the one.
    used |= {("create", call.group, call.resource) for call in made if call.status == CREATED}
    assert used == granted()


def granted() -> set[Right]:
    """The rules of k8s/operator, one by one."""
    documents = yaml.safe_load_all(INSTALLATION.read_text())
    (role,) = (one for one in documents if one["kind"] == "ClusterRole")
    return {
        right
        for rule in role["rules"]
        for right in product(rule["verbs"], rule["apiGroups"], rule["resources"])
    }


def use_everything(kubectl: Kubectl) -> None:
    """A batch's life: pods that find no node, pods that may not be, another size, other pods, none, its end, and gone."""
    kubectl.apply(
        resource(
            "CrawlBatch",
            BATCH,
            sources=["noop"],
            workers=2,
            ttlSecondsAfterFinished=1,
            template=template("first"),
        )
    )
    await_reason(kubectl, "NoCapacity")
    kubectl("create", "quota", "no-pods", "--hard=pods=0")
    await_quota(kubectl)
    kubectl("delete", "pods", "--all", "--wait=false")
    await_reason(kubectl, "FailedCreate")
    kubectl("delete", "quota", "no-pods")
    change(kubectl, workers=1)
    kubectl.wait("job/busy-1-1", until="jsonpath={.spec.completions}=1")
    kubectl.wait("pdb/busy", until="jsonpath={.spec.minAvailable}=0")
    change(kubectl, template=template("second"))
    kubectl.wait("job/busy-1-2", until="create")
    kubectl.wait("job/busy-1-1", until="delete")
    change(kubectl, suspend=True)
    kubectl.wait("job/busy-1-2", until="jsonpath={.spec.suspend}=true")
    change(kubectl, stop="Cancel")
    kubectl.wait(f"crawlbatch/{BATCH}", until="delete")


def change(kubectl: Kubectl, **spec: object) -> None:
    kubectl.patch("crawlbatch", BATCH, {"spec": spec})


def await_reason(kubectl: Kubectl, reason: str) -> None:
    """Why it does not progress."""
    path = '-o=jsonpath={.status.conditions[?(@.type=="Progressing")].reason}'
    until(lambda: kubectl("get", "crawlbatch", BATCH, path) == reason, reason)


def await_quota(kubectl: Kubectl) -> None:
    """Until it counts."""
    kubectl.wait("quota/no-pods", until="jsonpath={.status.hard.pods}=0")
