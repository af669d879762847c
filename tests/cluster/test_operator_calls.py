"""The operator's calls, where an object is no longer what it was taken for: made anew under its name, or changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from cluster.testbed.kubectl import Document, Kubectl
from fleet import API
from kubernetes.aio.config import kube_config

from crawlfleet_operator.cluster import Cluster, Refused, status_of
from crawlfleet_operator.sight import BATCHES

NAME = "nightly"
pytestmark = pytest.mark.usefixtures("crds")


@pytest.fixture
def before(namespace: Kubectl, monkeypatch: pytest.MonkeyPatch) -> Document:
    """A CrawlBatch as it was before it was deleted and made again."""
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(namespace.kubeconfig))
    namespace.apply(batch())
    made: Document = namespace.get("crawlbatch", NAME)
    namespace("delete", "crawlbatch", NAME)
    namespace.apply(batch())
    return made


def batch() -> Document:
    return {
        "apiVersion": API,
        "kind": "CrawlBatch",
        "metadata": {"name": NAME},
        "spec": {"sources": ["shop"]},
    }


def call(what: Callable[[Cluster], Awaitable[object]]) -> None:
    async def connected() -> None:
        cluster = await Cluster.connect()
        try:
            await what(cluster)
        finally:
            await cluster.close()

    asyncio.run(connected())


def test_a_status_is_never_that_of_a_namesake(namespace: Kubectl, before: Document) -> None:
    """`kubectl wait` would take the new batch for complete."""
    status = status_of("CrawlBatch", before, {"phase": "Complete"})
    with pytest.raises(Refused) as refused:
        call(lambda cluster: cluster.apply_status(BATCHES, status))

    assert refused.value.is_conflict
    assert "status" not in namespace.get("crawlbatch", NAME)


@pytest.mark.parametrize("what", ["uid", "resourceVersion"])
def test_what_is_deleted_is_what_was_seen(namespace: Kubectl, before: Document, what: str) -> None:
    seen = {what: before["metadata"][what]}
    call(lambda cluster: cluster.delete(BATCHES, namespace.namespace, NAME, **seen))
    assert namespace.get("crawlbatch", NAME)["metadata"]["uid"] != before["metadata"]["uid"]

    now = {what: namespace.get("crawlbatch", NAME)["metadata"][what]}
    call(lambda cluster: cluster.delete(BATCHES, namespace.namespace, NAME, **now))
    assert namespace.list("crawlbatches") == []
