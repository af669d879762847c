"""Whether this machine can run a testbed, and the lock that lets only one command at a time change it."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.testbed.errors import TestbedError, Unable

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
_LOCK = Path("/run/crawlfleet-testbed.lock")


def require() -> None:
    """Raises Unable with one sentence that says what to do."""
    _require_root()
    missing = [package for tool, package in TOOLS.items() if not shutil.which(tool)]
    if not _CNI_PLUGIN.exists():
        missing.append("containernetworking-plugins")
    if missing:
        raise Unable(f"a test cluster needs {' '.join(missing)}: `make cluster-deps` installs them")


@contextmanager
def claimed() -> Iterator[None]:
    """Ours alone, for as long as a command builds, changes or uses the testbed. Raises Unable, and TestbedError."""
    _require_root()
    handle = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TestbedError(
                f"another command uses the test cluster: wait until it has ended (`fuser {_LOCK}` tells which)"
            ) from None
        yield


def _require_root() -> None:
    if sys.platform != "linux":
        raise Unable(
            f"a test cluster needs Linux, this is {sys.platform}: set CRAWLFLEET_TEST_KUBECONFIG to another cluster"
        )
    if os.geteuid() != 0:
        raise Unable("a test cluster needs root, for containers: be root, or set CRAWLFLEET_TEST_KUBECONFIG")
