"""Whether this machine can run a testbed, and the lock that lets only one command at a time change it."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.testbed import network
from cluster.testbed.control_plane import CONTROLLERS_PORT, ETCD_PORT, SCHEDULER_PORT
from cluster.testbed.errors import TestbedError, Unable
from cluster.testbed.nodes import HEALTH_PORT, KUBELET_PORT
from cluster.testbed.place import API_ADDRESS, API_PORT, NodePlace

TOOLS = {
    "containerd": "containerd",
    "runc": "runc",
    "ip": "iproute2",
    "nft": "nftables",
    "conntrack": "conntrack",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
"""Each program, and the Debian package that brings it."""
_CNI_PLUGIN = Path("/usr/lib/cni/ptp")
_LOCK = Path("/run/lock/crawlfleet-testbed")


def require() -> None:
    """Raises Unable with one sentence that says what to do."""
    if sys.platform != "linux":
        raise Unable(
            f"a testbed needs Linux, this is {sys.platform}: set CRAWLFLEET_TEST_KUBECONFIG to use another cluster"
        )
    if os.geteuid() != 0:
        raise Unable(
            "a testbed needs root, for containers: run it as root, or set CRAWLFLEET_TEST_KUBECONFIG"
        )
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if not _CNI_PLUGIN.exists():
        missing.append("containernetworking-plugins")
    if missing:
        raise Unable(f"a testbed needs {' '.join(missing)}: `make cluster-deps` installs them")


def require_ports(nodes: Sequence[NodePlace]) -> None:
    """All that the components listen on. The nodes' addresses are there already."""
    local = [ETCD_PORT, ETCD_PORT + 1]
    of_first = [API_PORT, CONTROLLERS_PORT, SCHEDULER_PORT]
    of_each = [(node.address, port) for node in nodes for port in (KUBELET_PORT, HEALTH_PORT)]
    network.require_free(
        [*(("127.0.0.1", port) for port in local), *((API_ADDRESS, port) for port in of_first), *of_each]
    )


@contextmanager
def claimed() -> Iterator[None]:
    """Ours alone, for as long as a command builds, changes or uses the testbed."""
    with _LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise TestbedError(
                "another command uses the testbed: wait until it has ended (`fuser /run/lock/crawlfleet-testbed` tells which)"
            ) from exc
        yield
