"""k8s/operator and the sample pod for commands: of this version, with settings that the programs take, and least rights."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfiles import ROOT

from crawlfleet_operator.settings import OperatorSettings

Document = dict[str, Any]
FILES = [ROOT / "k8s/operator/operator.yaml", ROOT / "k8s/samples/command.yaml"]
DOCUMENTS = [one for file in FILES for one in yaml.safe_load_all(file.read_text())]


def pods() -> list[Document]:
    """The specs of all pods."""
    found = [document["spec"] for document in DOCUMENTS if document["kind"] == "Pod"]
    return found + [one["spec"]["template"]["spec"] for one in DOCUMENTS if one["kind"] == "Deployment"]


CONTAINERS: dict[str, Document] = {
    container["name"]: container
    for pod in pods()
    for container in (*pod.get("initContainers", ()), *pod["containers"])
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_image_is_of_this_version(file: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert set(re.findall(r"crawlfleet/(?:operator|crawler|chrome):([\w.]+)", file.read_text())) == {version}


def test_the_operator_takes_what_it_is_given() -> None:
    environment = {one["name"]: one["value"] for one in CONTAINERS["operator"]["env"]}
    environment["CRAWLFLEET_DATABASE_URL_FILE"] = ""

    settings = OperatorSettings.from_environment(environment | {"CRAWLFLEET_DATABASE_URL": "postgresql://"})

    assert (settings.namespaces, settings.log_json, settings.metrics_port) == ((), True, 9090)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_may_do_nothing_special(name: str) -> None:
    assert CONTAINERS[name]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_no_pod_runs_as_root() -> None:
    assert all(pod["securityContext"]["runAsNonRoot"] for pod in pods())


def test_no_rule_is_a_wildcard() -> None:
    (role,) = (document for document in DOCUMENTS if document["kind"] == "ClusterRole")

    assert not [
        rule for rule in role["rules"] if "*" in (*rule["verbs"], *rule["resources"], *rule["apiGroups"])
    ]
