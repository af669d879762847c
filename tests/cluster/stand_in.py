"""A Job whose pods run nowhere: what a kubelet would say of them, a test says.

The pods are bound to a node that exists as an object alone. So the Job controller, the garbage collector and the
disruption controller do their work for real, and no scheduler and no kubelet takes part.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cluster.job import JOB
from cluster.testbed.kubectl import Document, Kubectl
from fleet import until

INDEX = "batch.kubernetes.io/job-completion-index"
LONG_AGO = timedelta(hours=1)
"""More than any back-off."""
_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True)
class StandIn:
    """The Job `fleet` in a namespace of its own, and the node of its pods, which has the namespace's name."""

    kubectl: Kubectl

    @property
    def node(self) -> str:
        return self.kubectl.namespace

    def leave(self) -> None:
        """The node is gone, and no pod waits for it any more."""
        self.kubectl("delete", "jobs,pods", "--all", "--force", "--grace-period=0", "--wait=false")
        self.kubectl("delete", "node", self.node, "--ignore-not-found", "--wait=false")

    def apply(self, job: Document) -> None:
        """Its pods are bound to the node, to which nobody schedules others."""
        job["spec"]["template"]["spec"]["nodeName"] = self.node
        taint = {"key": "crawlfleet.dev/stand-in", "effect": "NoSchedule"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node}}
        self.kubectl.apply({**node, "spec": {"taints": [taint]}}, job)

    def run(self, job: Document) -> None:
        """Until all its pods are running and ready."""
        self.apply(job)
        self.await_status("active", job["spec"]["parallelism"])
        ready = _ready(True, datetime.now(UTC))
        self._set_status(map(_name, self.pods()), {"phase": "Running", "conditions": [ready]})

    def scale(self, workers: int) -> None:
        self.patch(completions=workers, parallelism=workers)

    def patch(self, **spec: object) -> None:
        self.kubectl.patch("job", JOB, {"spec": spec})

    def pods(self, index: int | None = None) -> list[Document]:
        """Of that index, or all by index: also those that ended, for as long as they are kept."""
        selector = f"batch.kubernetes.io/job-name={JOB}" + ("" if index is None else f",{INDEX}={index}")
        return sorted(self.kubectl.list("pods", f"--selector={selector}"), key=index_of)

    def await_pod(self, index: int) -> Document:
        """The active one, which replaces all before it."""
        return until(lambda: next(filter(is_active, self.pods(index)), None), f"a pod of index {index}")

    def end(self, index: int, code: int, *, chrome: int = 143, at: datetime | None = None) -> None:
        """The crawler of the index's pod exited with that code, then its Chrome: long ago, if it is not said when.

        By then every back-off is over, so that a replacement comes at once. The pod stays, for all to see.
        """
        at = at or datetime.now(UTC) - LONG_AGO
        status = {
            "phase": "Failed" if code else "Succeeded",
            "conditions": [_ready(False, at)],
            "initContainerStatuses": [_exited("chrome", chrome, at)],
            "containerStatuses": [_exited("crawler", code, at)],
        }
        self._set_status([self._name_of(index)], status)

    def mark_not_ready(self, index: int) -> None:
        """As the controller of nodes does when a kubelet is silent: long ago, so that every back-off is over."""
        ready = _ready(False, datetime.now(UTC) - LONG_AGO)
        self._set_status([self._name_of(index)], {"conditions": [ready]})

    def mark_failed(self, index: int) -> None:
        """As the garbage collector of pods does when their node is out of service: there is no exit code."""
        self._set_status([self._name_of(index)], {"phase": "Failed"})

    def evict(self, index: int) -> None:
        """As a drain of the node does."""
        name = self._name_of(index)
        path = f"/api/v1/namespaces/{self.kubectl.namespace}/pods/{name}/eviction"
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        self.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))

    def taint(self, taint: str) -> None:
        """As `kubectl taint node` has it: `key:effect`, or `key:effect-` to remove it."""
        self.kubectl("taint", "node", self.node, taint)

    def delete_by_force(self, index: int) -> None:
        """As people do when a kubelet is silent."""
        self.kubectl("delete", "pod", self._name_of(index), "--force", "--grace-period=0", "--wait=false")

    @property
    def status(self) -> Document:
        """Of the Job."""
        status: Document = self.kubectl.get("job", JOB)["status"]
        return status

    def await_status(self, field: str, value: object) -> None:
        """A field that is zero or empty is often not there: then this waits in vain."""
        self.kubectl.wait(f"job/{JOB}", until=f"jsonpath={{.status.{field}}}={value}")

    def await_condition(self, condition: str) -> None:
        """`Complete`, or `Suspended=False`."""
        self.kubectl.wait(f"job/{JOB}", until=f"condition={condition}")

    def conditions(self) -> dict[str, str]:
        """Those that are true, and why."""
        conditions = self.status.get("conditions", [])
        return {each["type"]: each["reason"] for each in conditions if each["status"] == "True"}

    def _name_of(self, index: int) -> str:
        """Of the pod that has not ended; there is one an index."""
        return next(_name(pod) for pod in self.pods(index) if not _has_ended(pod))

    def _set_status(self, names: Iterable[str], status: Document) -> None:
        patch = json.dumps({"status": status})
        self.kubectl("patch", "pods", *names, "--subresource=status", f"--patch={patch}")


def index_of(pod: Document) -> int:
    return int(pod["metadata"]["labels"][INDEX])


def is_active(pod: Document) -> bool:
    """It neither ended nor is about to."""
    return not is_terminating(pod) and not _has_ended(pod)


def is_terminating(pod: Document) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _name(pod: Document) -> str:
    return str(pod["metadata"]["name"])


def _has_ended(pod: Document) -> bool:
    return pod["status"]["phase"] in _ENDED


def _ready(ready: bool, since: datetime) -> Document:
    return {"type": "Ready", "status": str(ready), "lastTransitionTime": _rfc3339(since)}


def _exited(name: str, code: int, at: datetime) -> Document:
    ended = {"exitCode": code, "startedAt": _rfc3339(at), "finishedAt": _rfc3339(at)}
    return {
        "name": name,
        "image": "",
        "imageID": "",
        "ready": False,
        "restartCount": 0,
        "state": {"terminated": ended},
    }


def _rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
