"""Up and down: nothing is left behind, whatever was killed, and each obstacle is told in one sentence.

These run before a testbed is up for the other tests (`conftest.py`), since there is one a machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.ability import OTHER, told_in_one_sentence
from cluster.testbed import binaries, machine, place, remains
from cluster.testbed.daemons import Daemon
from fleet import until

UP_S = 1500
"""Of an `up` on a new machine: it builds everything."""


@pytest.fixture
def bare() -> Iterator[None]:
    """A machine without a testbed, before and after."""
    if os.environ.get(OTHER):
        pytest.skip(f"{OTHER} is set: that cluster is not ours to start")
    with told_in_one_sentence():
        machine.require()
    if place.STATE.exists():
        if os.environ.get("CI") != "true":
            pytest.skip("a test cluster is running: `make cluster-down`, to test its start")
        assert command("down").returncode == 0
    before = _elsewhere()
    yield
    assert command("down").returncode == 0
    assert _elsewhere() == before


def _elsewhere() -> set[Path | str]:
    """What containers and kubelets leave outside the testbed's folders, and what they change."""
    folders = ("/run/containerd/s", "/run/containerd/runc/k8s.io", "/var/lib/cni/results", "/var/lib/kubelet")
    files = {path for folder in folders for path in Path(folder).glob("*")}
    sysctls = ("kernel/panic", "net/ipv4/ip_forward", "vm/overcommit_memory")
    return {*files, *(f"{name} {(Path('/proc/sys') / name).read_text()}" for name in sysctls)}


def start(*words: str, **environment: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "cluster.testbed", *words]
    return subprocess.Popen(
        program,
        env={**os.environ, "PYTHONPATH": str(place.HERE.parent), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = start(*words, **environment)
    out, err = process.communicate(timeout=UP_S)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def complaint(*words: str, **environment: str) -> str:
    """What a command that fails says: one sentence."""
    done = command(*words, **environment)
    assert done.returncode == 1, done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


@pytest.mark.timeout(UP_S)
def test_up_twice_is_one_cluster_and_down_twice_leaves_nothing(bare: None) -> None:
    first = command("up")
    assert first.returncode == 0, first.stderr
    api_server = Daemon("kube-apiserver").pid()
    second = command("up")
    assert second.returncode == 0, second.stderr
    assert Daemon("kube-apiserver").pid() == api_server
    assert f"kubeconfig: {place.KUBECONFIG}" in second.stdout
    assert (
        f"a test cluster with Kubernetes {binaries.VERSION} is running: `make cluster-down` first"
        in complaint("up", "--kubernetes", "v1.31.4")
    )
    assert command("down").returncode == 0
    assert remains.left() == []
    assert command("down").returncode == 0


@pytest.mark.timeout(UP_S)
@pytest.mark.parametrize("daemon", ["etcd", "node-0-containerd", "node-1-kubelet"])
def test_what_a_killed_up_left_is_cleared(bare: None, daemon: str) -> None:
    killed = start("up")
    until(Daemon(daemon).is_alive, f"{daemon} to start", UP_S)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert remains.left()
    assert command("down").returncode == 0
    assert remains.left() == []


def test_a_port_that_is_taken(bare: None) -> None:
    with socket.create_server(("0.0.0.0", 10250)):
        assert (
            "port 10250 of 10.245.0.10 cannot be used (Address already in use): end what uses it"
            in complaint("up")
        )


def test_a_version_that_is_not_pinned(bare: None) -> None:
    said = complaint("up", "--kubernetes", "v1.2.3")
    assert "Kubernetes v1.2.3 is not pinned" in said
    assert "there are v1.34.4, v1.31.4, v1.37.2" in said


def test_a_tool_that_is_missing(bare: None, tmp_path: Path) -> None:
    """A PATH with everything but runc."""
    for tool in [*machine.TOOLS, "go"]:
        found = shutil.which(tool)
        if found and tool != "runc":
            (tmp_path / tool).symlink_to(found)
    assert complaint("up", PATH=str(tmp_path)) == (
        "error: a test cluster needs runc: `make cluster-deps` installs them\n"
    )


def test_no_space_for_a_build(bare: None, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "tmpfs", str(tmp_path)], check=True)
    try:
        said = complaint("up", XDG_CACHE_HOME=str(tmp_path))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert "MB left, a build needs" in said
    assert "free some, or set XDG_CACHE_HOME" in said


def test_another_command_is_using_it(bare: None) -> None:
    with machine.claimed():
        assert "another command uses the test cluster: wait until it has ended" in complaint("up")
    assert command("down").returncode == 0


@pytest.mark.timeout(UP_S)
def test_down_finds_what_runs_without_its_notes(bare: None) -> None:
    assert command("up").returncode == 0
    shutil.rmtree(place.STATE / "daemons")
    assert command("down").returncode == 0
    assert remains.left() == []


def test_a_machine_that_is_a_node_already_keeps_its_rules(bare: None) -> None:
    subprocess.run(["nft", "add", "table", "ip", "kube-proxy"], check=True)
    try:
        assert "this machine is a node of a Kubernetes already" in complaint("up")
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
        assert "table ip kube-proxy" in tables
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "kube-proxy"], check=True)
