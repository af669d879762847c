"""One cluster a test run, one namespace a test; what pods and components said is shown when a test fails.

`CRAWLFLEET_TEST_KUBECONFIG` names any other cluster to test on (with the images `localhost/crawlfleet/…:test` loaded): then
the tests that stop parts of a cluster are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Iterator
from itertools import count
from pathlib import Path

import pytest
from cluster.testbed import cluster as testbeds
from cluster.testbed import daemons, machine
from cluster.testbed.binaries import VERSION
from cluster.testbed.cluster import Cluster
from cluster.testbed.errors import TestbedError, Unable
from cluster.testbed.kubectl import Kubectl, KubectlFailed, fresh_namespace
from cluster.testbed.place import CACHE, LOGS, POD_LOGS, STATE

_OTHER = "CRAWLFLEET_TEST_KUBECONFIG"
_numbers = count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kubernetes",
        default=VERSION,
        metavar="VERSION",
        help=f"version to test on; nodes only with {VERSION}",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of up and down come first: while the others run there is a testbed."""
    items.sort(key=lambda item: item.path.name != "test_lifecycle.py")


@pytest.fixture(scope="session")
def testbed(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster that is ours to break. One that ran before goes on running."""
    if os.environ.get(_OTHER):
        pytest.skip(f"{_OTHER} is set: that cluster is not ours to break")
    version = request.config.getoption("--kubernetes")
    nodes = testbeds.NODES if version == VERSION else 0
    try:
        machine.require()
        with machine.claimed():
            was_there = testbeds.is_running(version, nodes)
            yield testbeds.up(version, nodes=nodes)
            if not was_there:
                testbeds.down()
    except Unable as exc:
        if os.environ.get("CI") != "true":
            pytest.skip(str(exc))
        pytest.fail(str(exc), pytrace=False)
    except TestbedError as exc:
        pytest.fail(str(exc), pytrace=False)


@pytest.fixture(scope="session")
def kubectl(request: pytest.FixtureRequest) -> Kubectl:
    """For the cluster under test, whichever it is."""
    if kubeconfig := os.environ.get(_OTHER):
        other = Kubectl(Path(shutil.which("kubectl") or "kubectl"), Path(kubeconfig))
        try:
            other.require()
        except KubectlFailed as exc:
            pytest.fail(str(exc), pytrace=False)
        return other
    testbed: Cluster = request.getfixturevalue("testbed")
    return testbed.kubectl


@pytest.fixture
def namespace(kubectl: Kubectl, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """kubectl in a namespace of this test alone, which admits only pods of the restricted standard."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    name = f"{words[:40].strip('-')}-{os.getpid()}-{next(_numbers)}"
    with fresh_namespace(kubectl, name) as within:
        yield within


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        report.sections += _last_words(item.funcargs)
        if STATE.exists():
            report.sections.append(("all logs are kept in", str(_keep_logs(item.name))))
    return report


def _last_words(used: dict[str, object]) -> Iterator[tuple[str, str]]:
    """What the test's pods and the cluster's components said last."""
    if isinstance(namespace := used.get("namespace"), Kubectl):
        yield "pods and events", _ask(namespace, "get", "all,events", "-o", "wide")
        for pod in _ask(namespace, "get", "pods", "-o", "name").split():
            yield f"log of {pod}", _ask(namespace, "logs", pod, "--all-containers", "--prefix", "--tail=20")
    if used.keys() & {"testbed", "bare"}:
        for log in sorted(LOGS.glob("*.log")):
            yield f"end of {log}", daemons.tail(log)


def _keep_logs(test: str) -> Path:
    """They go with the testbed."""
    folder = CACHE / "failed" / re.sub(r"[^\w-]+", "-", test)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(LOGS, folder / "components")
    if POD_LOGS.exists():
        shutil.copytree(POD_LOGS, folder / "pods")
    return folder


def _ask(namespace: Kubectl, *words: str) -> str:
    try:
        return namespace(*words)
    except KubectlFailed as exc:
        return str(exc)
