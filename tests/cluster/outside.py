"""The operator as a process of this machine: what it uses is in /proc, and it can be killed. To the cluster it is the service
account of k8s/operator, with its Role in one namespace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import yaml
from cluster.operated import installation
from cluster.testbed.kubectl import Document, Kubectl
from fleet import until

from crawlfleet.child import spawn
from crawlfleet.manifests import API_VERSION

ACCOUNT = "crawlfleet-operator"
PROGRAM = Path(sys.executable).with_name("crawlfleet-operator")
NO_IMAGES = {"CRAWLFLEET_CRAWLER_IMAGE": "nowhere/crawler", "CRAWLFLEET_CHROME_IMAGE": "nowhere/chrome"}
TOKEN_FOR = "10h"


@dataclass(frozen=True)
class Usage:
    """Of a process until now."""

    rss_mb: float
    peak_mb: float
    cpu_s: float


class Outside:
    """One such process after the other, with the same environment; they log JSON to one file."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Until it is about to watch."""
        starts = len(self._starts())
        with self.log.open("ab") as log:
            process = spawn([str(PROGRAM)], death_signal=signal.SIGKILL, env=self._environment, stdout=log)
        self._process = process

        def has_started() -> bool:
            assert process.poll() is None, self.log.read_text()
            return len(self._starts()) > starts

        until(has_started, "the operator's start")

    def said(self) -> list[Document]:
        """Its log so far, an event each."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def _starts(self) -> list[Document]:
        return [event for event in self.said() if event["event"] == "operator starts"]

    def kill(self) -> None:
        """kill -9; it is gone afterwards. Harmless when repeated."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def usage(self) -> Usage:
        assert self._process is not None
        folder = Path("/proc") / str(self._process.pid)
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        user, system = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        return Usage(
            rss_mb=int(status["VmRSS"].split()[0]) / 1024,
            peak_mb=int(status["VmHWM"].split()[0]) / 1024,
            cpu_s=(int(user) + int(system)) / os.sysconf("SC_CLK_TCK"),
        )


@contextmanager
def outside(
    kubectl: Kubectl,
    folder: Path,
    database_url: str,
    keys_file: Path,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Outside]:
    """It has all that it needs, and is not started. `more` goes into its environment."""
    documents = installation(kubectl.namespace, {})
    kubectl.apply(*(document for document in documents if document["kind"] != "Deployment"))
    secret = f"--from-literal=database-url={database_url}", f"--from-file=keys={keys_file}"
    kubectl("create", "secret", "generic", "crawlfleet", *secret)
    environment = {
        **os.environ,
        **NO_IMAGES,
        "KUBECONFIG": str(_kubeconfig(kubectl, folder / "kubeconfig")),
        "CRAWLFLEET_NAMESPACES": kubectl.namespace,
        "CRAWLFLEET_DATABASE_URL": database_url,
        "CRAWLFLEET_KEYS_FILE": str(keys_file),
        "CRAWLFLEET_METRICS_PORT": "0",
        "CRAWLFLEET_LOG_FORMAT": "json",
        **more,
    }
    operator = Outside(environment, folder / "operator.log")
    try:
        yield operator
    finally:
        operator.kill()


def resource(kind: str, name: str, **spec: object) -> Document:
    """A CrawlSource or CrawlBatch with that spec."""
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _kubeconfig(kubectl: Kubectl, path: Path) -> Path:
    """kubectl's own, with the service account's token for its user."""
    config = yaml.safe_load(kubectl.kubeconfig.read_text())
    token = kubectl("create", "token", ACCOUNT, f"--duration={TOKEN_FOR}").strip()
    for user in config["users"]:
        user["user"] = {"token": token}
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    return path
