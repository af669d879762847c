"""Clear everything of a testbed, however its run ended: processes, mounts, network, control groups, files."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.testbed import cgroups, daemons, network
from cluster.testbed.nodes import shims
from cluster.testbed.place import CACHE, POD_LOGS, STATE

_CONTAINER_LOGS = Path("/var/log/containers")
"""A kubelet links its pods' logs from there, whatever it is told."""
_PLUGINS = Path("/var/lib/kubelet/device-plugins")
"""Every kubelet listens there."""
_CLEAR_S = 10.0


def clear() -> None:
    """Nothing of it is left afterwards, but the cache. May be repeated. Raises TestbedError if a process does not end."""
    for daemon in daemons.every():
        daemon.kill()
    daemons.end(shims(STATE))
    daemons.end(sorted(cgroups.processes()))
    for mount in mounts():
        subprocess.run(["umount", "--lazy", str(mount)], check=True)
    network.remove()
    _remove_cgroups()
    for link in _log_links():
        link.unlink()
    _remove_plugin_folder()
    if STATE.exists():
        shutil.rmtree(STATE)


def left() -> list[str]:
    """What there is of a testbed, in words; nothing after `clear`."""
    return [
        *(f"process {pid}" for pid in processes()),
        *(f"mount {mount}" for mount in mounts()),
        *(f"cgroup {group}" for group in cgroups.groups()),
        *network.left(),
        *(f"log {link}" for link in _log_links()),
        *([str(STATE)] if STATE.exists() else []),
    ]


def processes() -> list[int]:
    """All that a testbed runs, the processes of its pods among them."""
    of_daemons = [pid for daemon in daemons.every() if (pid := daemon.pid())]
    return sorted({*of_daemons, *shims(STATE), *cgroups.processes()})


def mounts() -> Iterator[Path]:
    """What is mounted below the testbed's folders, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4]) for line in lines]
    ours = [point for point in points if point.is_relative_to(STATE) or point.is_relative_to(CACHE / "nodes")]
    yield from reversed(ours)


def _remove_cgroups() -> None:
    """A group is busy for a moment after its last process has gone."""
    until_s = time.monotonic() + _CLEAR_S
    while True:
        try:
            return cgroups.remove()
        except OSError:
            if time.monotonic() > until_s:
                raise
        time.sleep(daemons.POLL_S)


def _remove_plugin_folder() -> None:
    """Unless the machine has a kubelet of its own, which has more there."""
    if _PLUGINS.exists() and [*_PLUGINS.parent.iterdir()] == [_PLUGINS]:
        shutil.rmtree(_PLUGINS.parent)


def _log_links() -> list[Path]:
    links = [link for link in _CONTAINER_LOGS.glob("*.log") if link.is_symlink()]
    return [link for link in links if link.readlink().is_relative_to(POD_LOGS)]
