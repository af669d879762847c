"""Clear everything of a testbed, however its run ended: processes, mounts, network, control groups, files."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from cluster.testbed import cgroups, daemons, network, sysctls
from cluster.testbed.errors import TestbedError
from cluster.testbed.place import CACHE, POD_LOGS, STATE

_CONTAINER_LOGS = Path("/var/log/containers")
"""A kubelet links its pods' logs from there, whatever it is told."""
_PLUGINS = Path("/var/lib/kubelet/device-plugins")
"""Every kubelet listens there."""
_CLEAR_S = 10.0


def clear() -> None:
    """Nothing of it is left afterwards, but the cache. May be repeated. Raises TestbedError if something stays."""
    _until(_end_processes, "its processes do not end")
    _until(_unmount, "what is mounted there cannot be unmounted")
    network.remove()
    sysctls.put_back()
    _until(_remove_cgroups, "its control groups are still busy")
    for link in _log_links():
        link.unlink()
    _remove_plugin_folder()
    _remove_files_of_containers()
    _until(_end_processes, "its processes do not end")
    if STATE.exists():
        shutil.rmtree(STATE)
    if remain := left():
        raise TestbedError(
            f"this is still left of the test cluster: {', '.join(remain)}; end or remove it, then try again"
        )


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
    return sorted({*daemons.marked(), *cgroups.processes()})


def mounts() -> Iterator[Path]:
    """What is mounted below the testbed's folders, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4].replace(r"\040", " ")) for line in lines]
    ours = [point for point in points if STATE in point.parents or CACHE in point.parents]
    yield from reversed(ours)


def _until(done: Callable[[], bool], problem: str) -> None:
    """Some things are busy for a moment after the last process has gone."""
    until_s = time.monotonic() + _CLEAR_S
    while not done():
        if time.monotonic() > until_s:
            raise TestbedError(f"{problem}; `make cluster-down` once more, or restart the machine")
        time.sleep(daemons.POLL_S)


def _end_processes() -> bool:
    """One that was just being started when it was looked for, as a container's shim, is found the next time."""
    daemons.end(daemons.marked())
    daemons.end(sorted(cgroups.processes()))
    return not processes()


def _unmount() -> bool:
    for mount in mounts():
        subprocess.run(["umount", "--lazy", str(mount)], capture_output=True)
    return not list(mounts())


def _remove_cgroups() -> bool:
    with suppress(OSError):
        cgroups.remove()
    return not cgroups.groups()


def _remove_files_of_containers() -> None:
    """What containerd keeps outside its folders, wherever those are: its shims' sockets, and CNI's notes on loopback."""
    for bundle in STATE.glob("node-*/containerd/io.containerd.runtime.v2.task/*/*"):
        with suppress(OSError):
            Path((bundle / "address").read_text().removeprefix("unix://")).unlink()
        for note in network.RESULTS.glob(f"*-{bundle.name}-*"):
            note.unlink(missing_ok=True)


def _remove_plugin_folder() -> None:
    """Unless the machine has a kubelet of its own, which has more there."""
    if _PLUGINS.exists() and [*_PLUGINS.parent.iterdir()] == [_PLUGINS]:
        shutil.rmtree(_PLUGINS.parent)


def _log_links() -> list[Path]:
    links = [link for link in _CONTAINER_LOGS.glob("*.log") if link.is_symlink()]
    return [link for link in links if link.readlink().is_relative_to(POD_LOGS)]
