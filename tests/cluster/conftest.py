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
from cluster.ability import OTHER, told_in_one_sentence
from cluster.operated import serve_kinds
from cluster.testbed import cluster as testbeds
from cluster.testbed import daemons, machine
from cluster.testbed.binaries import VERSION
from cluster.testbed.cluster import Cluster
from cluster.testbed.errors import TestbedError
from cluster.testbed.kubectl import Kubectl, KubectlFailed, fresh_namespace
from cluster.testbed.place import CACHE, LOGS, POD_LOGS

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
def claim() -> Iterator[None]:
    """No other command builds or changes anything meanwhile."""
    with told_in_one_sentence(), machine.claimed():
        yield


@pytest.fixture(scope="session")
def testbed(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The cluster that is ours to break. One that ran before goes on running."""
    if os.environ.get(OTHER):
        pytest.skip(f"{OTHER} is set: that cluster is not ours to break")
    version = request.config.getoption("--kubernetes")
    request.getfixturevalue("claim")
    with told_in_one_sentence():
        was_there = testbeds.is_there()
        yield testbeds.up(version)
        if not was_there:
            testbeds.down()


@pytest.fixture(scope="session")
def kubectl(request: pytest.FixtureRequest) -> Kubectl:
    """For the cluster under test, whichever it is."""
    if kubeconfig := os.environ.get(OTHER):
        with told_in_one_sentence():
            return _other(Path(kubeconfig))
    testbed: Cluster = request.getfixturevalue("testbed")
    return testbed.kubectl


def _other(kubeconfig: Path) -> Kubectl:
    """Raises TestbedError with one sentence if nobody could use this cluster."""
    if not (program := shutil.which("kubectl")):
        raise TestbedError(f"{OTHER} is set, and kubectl is not installed: install it")
    if not os.access(kubeconfig, os.R_OK):
        raise TestbedError(f"the kubeconfig {kubeconfig} cannot be read: set {OTHER} to one")
    kubectl = Kubectl(Path(program), kubeconfig)
    try:
        kubectl("get", "--raw=/readyz", "--request-timeout=5s")
    except KubectlFailed as exc:
        last = str(exc).splitlines()[-1]
        raise TestbedError(
            f"the cluster of {kubeconfig} does not answer: {last}; start it, or name another"
        ) from exc
    return kubectl


@pytest.fixture(scope="session")
def crds(kubectl: Kubectl) -> None:
    """The cluster knows CrawlSource and CrawlBatch. It goes on knowing them: documents of others would go with them."""
    serve_kinds(kubectl)


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
        if LOGS.exists() and not os.environ.get(OTHER):
            report.sections += [(f"end of {log}", daemons.tail(log)) for log in sorted(LOGS.glob("*.log"))]
            report.sections.append(("all logs are kept in", str(_keep_logs(item.name))))
    return report


def _last_words(used: dict[str, object]) -> Iterator[tuple[str, str]]:
    """What the test's pods said last."""
    if isinstance(namespace := used.get("namespace"), Kubectl):
        yield "pods and events", _ask(namespace, "get", "all,events", "-o", "wide")
        for pod in _ask(namespace, "get", "pods", "-o", "name").split():
            yield f"log of {pod}", _ask(namespace, "logs", pod, "--all-containers", "--prefix", "--tail=20")


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
