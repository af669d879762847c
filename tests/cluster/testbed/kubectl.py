"""kubectl, as a person would use it: one call, one command."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from cluster.testbed.errors import TestbedError

Document = dict[str, Any]

_NO_IMAGE = "`make cluster-up` builds and loads those of the Dockerfiles"
_HOPELESS = {
    "ErrImageNeverPull": _NO_IMAGE,
    "ErrImagePull": _NO_IMAGE,
    "ImagePullBackOff": _NO_IMAGE,
    "InvalidImageName": "correct its name",
    "CreateContainerConfigError": "a Secret or ConfigMap that it names is missing",
}


class KubectlFailed(TestbedError):
    """The message is what kubectl said."""


@dataclass(frozen=True)
class Kubectl:
    """Commands against one cluster and, if one is set, in one namespace."""

    program: Path
    kubeconfig: Path
    namespace: str = ""

    def within(self, namespace: str) -> Kubectl:
        return replace(self, namespace=namespace)

    def __call__(self, *words: str, stdin: str | None = None) -> str:
        """What the command prints. Raises KubectlFailed with its words."""
        done = subprocess.run(self.command(*words), input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise KubectlFailed(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def command(self, *words: str) -> list[str]:
        scope = [f"--namespace={self.namespace}"] if self.namespace else []
        return [str(self.program), f"--kubeconfig={self.kubeconfig}", *scope, *words]

    def apply(self, *documents: Document) -> None:
        """Validated strictly: a field that the API server does not know is an error."""
        self("apply", "--validate=strict", "-f", "-", stdin=yaml.safe_dump_all(documents))

    def get(self, kind: str, name: str) -> Document:
        document: Document = json.loads(self("get", kind, name, "-o", "json"))
        return document

    def list(self, kind: str, *words: str) -> list[Document]:
        items: list[Document] = json.loads(self("get", kind, *words, "-o", "json"))["items"]
        return items

    def patch(self, kind: str, name: str, patch: Document, *words: str) -> None:
        self("patch", kind, name, "--type=merge", f"--patch={json.dumps(patch)}", *words)

    def wait(self, what: str, *words: str, until: str, timeout_s: float = 60) -> None:
        """`until` as in `kubectl wait --for`. Raises KubectlFailed when the time is over."""
        self("wait", what, *words, f"--for={until}", f"--timeout={timeout_s}s")

    def await_ready(self, pod: str, *, timeout_s: float = 60) -> None:
        """Raises KubectlFailed when the time is over, and at once if it can never start."""
        for status in self._statuses(f"pod/{pod}", timeout_s):
            if "Ready" in _true(status):
                return
            for container in status.get("containerStatuses", []):
                reason = container["state"].get("waiting", {}).get("reason")
                if todo := _HOPELESS.get(reason):
                    raise KubectlFailed(f"pod {pod} cannot start: {reason} {container['image']}: {todo}")
        raise KubectlFailed(
            f"pod {pod} is not ready after {timeout_s:.0f} s: `kubectl describe pod {pod}` tells why"
        )

    def await_success(self, job: str, *, timeout_s: float) -> None:
        """Until the Job's criteria are met; pods may still run. Raises KubectlFailed if it fails, or takes too long."""
        for status in self._statuses(f"job/{job}", timeout_s):
            conditions = _true(status)
            if "SuccessCriteriaMet" in conditions:
                return
            if "FailureTarget" in conditions:
                raise KubectlFailed(f"job {job} failed: {conditions['FailureTarget']}")
        raise KubectlFailed(f"job {job} has not succeeded after {timeout_s:.0f} s")

    def _statuses(self, what: str, timeout_s: float) -> Iterator[Document]:
        """Each status that it is seen in, the present one first, until the time is over. Raises KubectlFailed."""
        words = [
            "get",
            what,
            "--watch",
            f"--request-timeout={timeout_s}s",
            '--output=jsonpath={.status}{"\\n"}',
        ]
        until_s = time.monotonic() + timeout_s
        with tempfile.TemporaryFile("w+") as complaint:
            command = self.command(*words)
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaint, text=True) as watching:
                assert watching.stdout is not None
                try:
                    for line in watching.stdout:
                        yield json.loads(line)
                finally:
                    watching.kill()
            if time.monotonic() < until_s:
                complaint.seek(0)
                raise KubectlFailed(f"kubectl {' '.join(words)}: {complaint.read().strip()}")


@contextmanager
def fresh_namespace(kubectl: Kubectl, name: str) -> Iterator[Kubectl]:
    """kubectl in a new namespace, which admits only pods of the restricted standard, and goes with all that is in it."""
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    within = kubectl.within(name)
    within.wait("serviceaccount/default", until="create")
    try:
        yield within
    finally:
        within("delete", "deployments,jobs,pods", "--all", "--grace-period=1", "--wait=false")
        kubectl("delete", "namespace", name, "--wait=false")


def _true(status: Document) -> dict[str, str]:
    """The conditions that hold, with their messages."""
    return {
        condition["type"]: condition.get("message", "")
        for condition in status.get("conditions", [])
        if condition["status"] == "True"
    }
