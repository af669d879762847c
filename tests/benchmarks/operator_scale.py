"""One operator and 300 CrawlBatches: 270 that have ended, with their Jobs, and 30 with 20 workers each, whose pods kwok lets run.

PostgreSQL and the operator are processes of this machine, the API server and its controllers are those of a testbed. No
worker ever registers, so once all pods are there nothing changes.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import MappingProxyType
from urllib.request import Request, urlopen

from figures import Figure, at_most, told
from rig import SOURCE, Bed, Rig, await_that

sys.path.append(str(Path(__file__).resolve().parents[1]))  # `cluster` is for tests, too
from cluster import audit
from cluster.operated import serve_kinds
from cluster.outside import ACCOUNT, Outside, outside, resource
from cluster.testbed import cluster, machine
from cluster.testbed.cluster import FAKE, Cluster
from cluster.testbed.kubectl import Document, Kubectl, fresh_namespace

from crawlfleet.child import spawn
from crawlfleet.manifests import API_VERSION
from crawlfleet_operator.controller import RELIST_S

ENDED, RUNNING, WORKERS, NODES = 270, 30, 20, 9
PODS_S, SETTLED_S = 600, 60
QUIET_S = RELIST_S
"""So that everything is listed afresh once meanwhile."""
ROUNDS = 4
"""Down by one worker and up again, twice."""
RSS_MB, REACTION_S, CPU_SHARE, CALLS = 150, 2, 2, 1


def measure(rig: Rig) -> list[Figure]:
    """On a testbed of its own."""
    with machine.claimed():
        if cluster.is_running():
            raise RuntimeError("a test cluster is running: `make cluster-down` first")
        try:
            return on(cluster.up(), rig)
        finally:
            cluster.down()


def on(testbed: Cluster, rig: Rig) -> list[Figure]:
    """With one that runs already."""
    serve_kinds(testbed.kubectl)
    testbed.add_fake_nodes(NODES)
    try:
        with fresh_namespace(testbed.kubectl, "bench") as kubectl, rig.bed(1) as bed:
            bed.add_accounts([{}] * 10)
            with outside(kubectl, bed.folder, bed.url, bed.keys_file) as operator:
                operator.start()
                return _Many(kubectl, bed, operator).figures()
    finally:
        testbed.remove_fake_nodes()


class _Many:
    """The CrawlBatches of the namespace, and the operator that looks after them."""

    def __init__(self, kubectl: Kubectl, bed: Bed, operator: Outside) -> None:
        self._kubectl = kubectl
        self._bed = bed
        self._operator = operator

    def figures(self) -> list[Figure]:
        self._kubectl.apply(_source())
        self._end(ENDED)
        running = self._run(RUNNING)
        time.sleep(SETTLED_S)  # events of pods and Jobs ebb away
        quiet = self._quiet()
        with proxied(self._kubectl) as url:
            one_by_one, at_once = _reactions(url, self._kubectl.namespace, running)
        usage = self._operator.usage()
        said = f"most {usage.peak_mb:.0f} MB; after that {usage.rss_mb:.0f} MB"
        worst_s, median_s = _quantile(one_by_one, 0.99), _quantile(one_by_one, 0.5)
        return [
            *quiet,
            at_most("memory (RSS) at its most", usage.peak_mb, RSS_MB, "MB", said),
            at_most(
                "from spec.workers to the Job's, p99", worst_s, REACTION_S, "s", f"median {median_s:.3f} s"
            ),
            told(
                f"the same, {RUNNING} at the same time",
                f"median {_quantile(at_once, 0.5):.2f} s, last {at_once[-1]:.2f} s",
            ),
        ]

    def _quiet(self) -> list[Figure]:
        before, began_s = self._operator.usage(), time.time()
        time.sleep(QUIET_S)
        after, ended_s = self._operator.usage(), time.time()
        share = 100 * (after.cpu_s - before.cpu_s) / (ended_s - began_s)
        calls = [
            call for call in audit.calls(self._kubectl.namespace, ACCOUNT) if began_s <= call.at_s < ended_s
        ]
        said = ", ".join(sorted({f"{call.verb} {call.resource}" for call in calls})) or "none"
        return [
            told(
                f"{ENDED} batches ended, {RUNNING} of {WORKERS} pods running, seen for",
                f"{ended_s - began_s:.0f} s",
            ),
            at_most("CPU while nothing changes", share, CPU_SHARE, "% of a core"),
            at_most("calls to the API server meanwhile", len(calls) / QUIET_S, CALLS, "a second", said),
            told("memory (RSS) then", f"{after.rss_mb:.0f} MB"),
        ]

    def _run(self, number: int) -> list[str]:
        """Until all their pods are ready; their names."""
        names = [f"running-{one}" for one in range(number)]
        self._kubectl.apply(*(_batch(name, workers=WORKERS) for name in names))
        self._await(names, lambda status: status.get("readyWorkers") == WORKERS, "pods")
        return names

    def _end(self, number: int) -> None:
        """Each has had a Job, which has ended as it should."""
        names = [f"ended-{one}" for one in range(number)]
        self._kubectl.apply(*(_batch(name, {FAKE: "succeeds"}, workers=1, stop="Cancel") for name in names))
        self._await(names, lambda status: status.get("phase") == "Complete", "the end")
        self._kubectl.wait("jobs", "--all", until="condition=Complete", timeout_s=PODS_S)

    def _await(self, names: Sequence[str], is_so: Callable[[Document], bool], what: str) -> None:
        def are_all_so() -> bool:
            time.sleep(1)
            found = self._kubectl.list("crawlbatches")
            mine = [one for one in found if one["metadata"]["name"] in set(names)]
            return sum(is_so(one.get("status", {})) for one in mine) == len(names)

        await_that(are_all_so, PODS_S, f"{what} of {len(names)} CrawlBatches")


def _source() -> Document:
    return resource("CrawlSource", SOURCE, adapter="noop", maxConcurrent=1)


def _batch(name: str, annotations: Mapping[str, str] = MappingProxyType({}), **spec: object) -> Document:
    """Its pods are for fake nodes."""
    pod = {"nodeSelector": {FAKE: "true"}, "tolerations": [{"key": FAKE, "operator": "Exists"}]}
    template = {"metadata": {"annotations": dict(annotations)}, "spec": pod}
    return resource("CrawlBatch", name, sources=[SOURCE], template=template, **spec)


# Reactions.


@contextmanager
def proxied(kubectl: Kubectl) -> Iterator[str]:
    """The API server, for who has no certificate: a kubectl takes a tenth of a second to start."""
    proxy = spawn(kubectl.command("proxy", "--port=0"), death_signal=signal.SIGKILL, stdout=subprocess.PIPE)
    try:
        assert proxy.stdout is not None
        said = proxy.stdout.readline().decode()
        found = re.search(r"127\.0\.0\.1:\d+", said)
        if found is None:
            raise RuntimeError(f"kubectl proxy: {said}")
        yield f"http://{found[0]}"
    finally:
        proxy.kill()
        proxy.communicate()


class _Sizes:
    """How many workers each Job of the namespace has, since when: a watch."""

    def __init__(self, url: str, namespace: str) -> None:
        self._watch = urlopen(f"{url}/apis/batch/v1/namespaces/{namespace}/jobs?watch=1&timeoutSeconds=3600")
        self._news = threading.Condition()
        self._since_s: dict[tuple[str, int], float] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._watch:
            job = json.loads(line)["object"]
            key = job["metadata"]["labels"]["crawlfleet.dev/batch"], job["spec"]["completions"]
            with self._news:
                self._since_s.setdefault(key, time.monotonic())
                self._news.notify_all()

    def forget(self) -> None:
        """What was seen so far."""
        with self._news:
            self._since_s.clear()

    def since_s(self, batch: str, size: int) -> float:
        """Wait until it has it."""
        with self._news:
            if not self._news.wait_for(lambda: (batch, size) in self._since_s, timeout=60):
                raise RuntimeError(f"the Job of {batch} has not got {size} workers within a minute")
            return self._since_s[batch, size]


def _reactions(url: str, namespace: str, batches: Sequence[str]) -> tuple[list[float], list[float]]:
    """One batch after the other, down and up again, and once all of them at the same time: seconds, the longest last."""
    sizes = _Sizes(url, namespace)
    one_by_one = []
    for number, batch in product(range(ROUNDS), batches):
        size = WORKERS - (number + 1) % 2
        sizes.forget()
        began_s = time.monotonic()
        _set_workers(url, namespace, batch, size)
        one_by_one.append(sizes.since_s(batch, size) - began_s)
    sizes.forget()
    began = {}
    for batch in batches:
        began[batch] = time.monotonic()
        _set_workers(url, namespace, batch, WORKERS - 1)
    at_once = [sizes.since_s(batch, WORKERS - 1) - began[batch] for batch in batches]
    return sorted(one_by_one), sorted(at_once)


def _set_workers(url: str, namespace: str, batch: str, workers: int) -> None:
    request = Request(
        f"{url}/apis/{API_VERSION}/namespaces/{namespace}/crawlbatches/{batch}",
        data=json.dumps({"spec": {"workers": workers}}).encode(),
        headers={"Content-Type": "application/merge-patch+json"},
        method="PATCH",
    )
    with urlopen(request, timeout=20):
        pass


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]
