"""A fleet as its users have it: the operator as k8s/operator installs it, sources and batches as the samples, all in one namespace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import yaml
from cluster.stage import Items, Stage, stage
from cluster.testbed.images import CHROME, CRAWLER, OPERATOR
from cluster.testbed.kubectl import Document, Kubectl
from cluster.testbed.place import REPOSITORY
from fleet import until

from crawlfleet.crds import CATEGORY, definitions
from crawlfleet.store.connection import Connection, connect
from crawlfleet.store.fleet import Clock, set_clock

BATCH = "nightly"
SAMPLES = REPOSITORY / "k8s/samples"
KINDS = REPOSITORY / "k8s/crds"
INSTALLATION = REPOSITORY / "k8s/operator/operator.yaml"
IMAGES = {"crawlfleet/crawler": CRAWLER, "crawlfleet/chrome": CHROME, "crawlfleet/operator": OPERATOR}
BRISK = Clock(tick_s=1.0, expire_ticks=12, quarantine_ticks=8)
"""A lost worker's permits are free again after 20 s; one that a busy machine stops for 10 s gives up."""
SMALL: Document = {
    "metadata": {"labels": {"app": "fleet"}},
    "spec": {
        "terminationGracePeriodSeconds": 30,
        "containers": [{"name": "crawler", "resources": {"requests": {"cpu": "50m"}}}],
        "initContainers": [{"name": "chrome", "resources": {"requests": {"cpu": "50m", "memory": "256Mi"}}}],
    },
}
"""Pods that find room on a small machine, and drain soon."""


class Operated:
    """The operator at work in one namespace, on a stage of its own."""

    def __init__(self, staged: Stage) -> None:
        self.stage = staged
        self.kubectl = staged.kubectl
        self._conn: Connection | None = None
        self._reached_by = ""

    def install(self, **environment: str) -> None:
        """Until it is ready."""
        self.kubectl.apply(*installation(self.kubectl.namespace, environment))
        self.kubectl("rollout", "status", "deployment/crawlfleet-operator", "--timeout=60s")

    def apply_sources(self, **spec: object) -> None:
        self.kubectl.apply(*(changed(document, spec) for document in sample("sources.yaml")))

    def apply_batch(self, name: str = BATCH, **spec: object) -> None:
        """The sample, with these fields replaced, and the name."""
        (document,) = sample("batch.yaml")
        document["metadata"]["name"] = name
        self.kubectl.apply(changed(document, {"template": SMALL, **spec}))

    def patch(self, name: str = BATCH, **spec: object) -> None:
        self.kubectl.patch("crawlbatch", name, {"spec": spec})

    def status(self, name: str = BATCH, kind: str = "crawlbatch") -> Document:
        status: Document = self.kubectl.get(kind, name).get("status", {})
        return status

    def condition(self, type_: str, name: str = BATCH, kind: str = "crawlbatch") -> tuple[str, str, str]:
        """Status, reason and message; of one that is not there "Unknown"."""
        for one in self.status(name, kind).get("conditions", ()):
            if one["type"] == type_:
                return one["status"], one["reason"], one.get("message", "")
        return "Unknown", "", ""

    def await_reason(self, type_: str, reason: str, name: str = BATCH, kind: str = "crawlbatch") -> str:
        """Until the condition has that reason; its message."""
        said: list[tuple[str, str, str]] = []

        def has_come() -> bool:
            said[:] = [self.condition(type_, name, kind)]
            return said[0][1] == reason

        until(has_come, f"{type_} {reason} of {name}")
        return said[0][2]

    def await_done(self, tasks: int, name: str = BATCH) -> None:
        """Until so many tasks are crawled, as the database counts them."""
        until(lambda: self.counted("ok", name) >= tasks, f"{tasks} tasks of {name}", 120)

    def await_workers(self, number: int, name: str = BATCH) -> None:
        """Until so many of its pods are ready, and no other is there."""

        def are_there() -> bool:
            found = self.workers(name)
            return len(found) == number and all(_is_ready(pod) for pod in found)

        until(are_there, f"{number} workers of {name}", 120)

    def await_complete(self, name: str = BATCH, timeout_s: float = 240) -> None:
        self.kubectl.wait(f"crawlbatch/{name}", until="condition=Complete", timeout_s=timeout_s)

    def workers(self, name: str = BATCH) -> list[Document]:
        """Its pods that have not ended, by their place in the Job."""
        pods = self.kubectl.list("pods", f"--selector=crawlfleet.dev/batch={name}")
        return sorted((pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")), key=_index)

    def counted(self, state: str, name: str = BATCH) -> int:
        query = "select count(*) from task join batch using (batch_id) where name = %s and task.state = %s::task_state"
        number: int = self.ask(query, name, state)[0][0]
        return number

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._database().execute(query, values).fetchall()
        except psycopg.OperationalError:  # the database, or the way there, went away meanwhile
            return self._database().execute(query, values).fetchall()

    def _database(self) -> Connection:
        """One connection for all questions: each one of its own would be a burden."""
        if self._conn is None or self._conn.closed or self._reached_by != self.stage.database_url:
            self.close()
            self._reached_by = self.stage.database_url
            self._conn = connect(self._reached_by)
        return self._conn

    def items(self, name: str = BATCH) -> Items:
        return self.stage.items(name)

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    def set_clock(self, clock: Clock) -> None:
        set_clock(self._database(), clock)

    def log(self) -> list[Document]:
        """What the operator said, an event each."""
        said = self.kubectl("logs", "deployment/crawlfleet-operator", "--container=operator")
        return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


@contextmanager
def operated(kubectl: Kubectl, folder: Path, *, clock: Clock = BRISK, users: int = 40) -> Iterator[Operated]:
    """Installed, with the accounts of so many users and the sample's sources; nothing is crawled yet."""
    with stage(kubectl, folder) as staged:
        fleet = Operated(staged)
        staged.prepare_for_operator(users)
        with closing(fleet):
            fleet.set_clock(clock)
            fleet.install()
            fleet.apply_sources()
            yield fleet


def serve_kinds(kubectl: Kubectl) -> None:
    """The cluster knows CrawlSource and CrawlBatch."""
    kubectl("apply", "--validate=strict", "-f", str(KINDS))
    names = {definition["metadata"]["name"] for definition in definitions()}
    kubectl.wait("crd", *sorted(names), until="condition=Established")
    # kubectl goes by a list of what is served; this one it makes anew.
    listed = ("api-resources", f"--categories={CATEGORY}", "--output=name")
    until(lambda: names == set(kubectl(*listed).split()), "both kinds are served")


def installation(namespace: str, environment: Mapping[str, str]) -> list[Document]:
    """k8s/operator for one namespace: a Role instead of the ClusterRole, the images of the testbed."""
    made = [_in(namespace, document) for document in installed_for_all()]
    documents = [document for document in made if document["kind"] != "Namespace"]
    _set(documents, {"CRAWLFLEET_NAMESPACES": namespace, **environment})
    return documents


def installed_for_all() -> list[Document]:
    """k8s/operator as it stands, with the images of the testbed."""
    documents = list(yaml.safe_load_all(INSTALLATION.read_text()))
    _set(documents, {"CRAWLFLEET_PULL_POLICY": "Never"})
    return documents


def _set(documents: list[Document], own: Mapping[str, str]) -> None:
    """The operator's images, and what is its own of its environment."""
    (deployment,) = (document for document in documents if document["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    for container in (*pod["initContainers"], *pod["containers"]):
        container |= {"image": _local(container["image"]), "imagePullPolicy": "Never"}
    env = {entry["name"]: _local(entry["value"]) for entry in pod["containers"][0]["env"]} | dict(own)
    pod["containers"][0]["env"] = [{"name": key, "value": value} for key, value in env.items()]


def _in(namespace: str, document: Document) -> Document:
    kind = document["kind"].removeprefix("Cluster")
    made = {**document, "kind": kind, "metadata": {**document["metadata"], "namespace": namespace}}
    if kind == "RoleBinding":
        made["roleRef"] = {**document["roleRef"], "kind": "Role"}
        made["subjects"] = [{**subject, "namespace": namespace} for subject in document["subjects"]]
    return made


def _local(image: str) -> str:
    return IMAGES.get(image.rpartition(":")[0], image)


def sample(file: str) -> list[Document]:
    return list(yaml.safe_load_all((SAMPLES / file).read_text()))


def changed(document: Document, spec: Mapping[str, object]) -> Document:
    return {**document, "spec": {**document["spec"], **spec}}


def _index(pod: Document) -> int:
    return int(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])


def _is_ready(pod: Document) -> bool:
    conditions = pod["status"].get("conditions", ())
    ready = any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]
