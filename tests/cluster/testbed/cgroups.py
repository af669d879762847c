"""The control groups of the nodes' pods: made before a kubelet starts, and cleared after everything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cluster.testbed.place import CGROUP

ROOT = Path("/sys/fs/cgroup")
_CONTROLLERS = "+cpu +cpuset +memory +pids"


def make(name: str) -> None:
    """The group NAME (a path) in every hierarchy, usable for a kubelet."""
    for hierarchy in hierarchies():
        folder = hierarchy
        for part in Path(name).parts:
            folder /= part
            folder.mkdir(exist_ok=True)
            _allow(folder)


def processes(name: str = CGROUP) -> set[int]:
    """All that run in the group or below it."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for procs in (hierarchy / name).rglob("cgroup.procs"):
            with suppress(OSError):
                found.update(map(int, procs.read_text().split()))
    return found


def remove(name: str = CGROUP) -> None:
    """The group and all below it; nothing may run in them."""
    for top in groups(name):
        below = [path for path in top.rglob("*") if path.is_dir()]
        for folder in sorted([*below, top], key=lambda path: len(path.parts), reverse=True):
            folder.rmdir()


def groups(name: str = CGROUP) -> list[Path]:
    """Where the group exists."""
    return [folder for hierarchy in hierarchies() if (folder := hierarchy / name).exists()]


def hierarchies() -> Iterator[Path]:
    """One for each mounted controller (cgroup v1), or the only one (v2)."""
    if (ROOT / "cgroup.controllers").exists():
        yield ROOT
        return
    seen = set()
    for folder in sorted(ROOT.glob("*/")):
        if (folder / "cgroup.procs").exists() and folder.resolve() not in seen:
            seen.add(folder.resolve())
            yield folder.resolve()


def _allow(folder: Path) -> None:
    """A new v1 cpuset is empty, and a new v2 group passes no controllers on."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        path = folder / file
        if path.exists() and not path.read_text().strip():
            with suppress(OSError):  # v2: empty means inherited
                path.write_text((folder.parent / file).read_text())
    if (folder / "cgroup.subtree_control").exists():
        with suppress(OSError):  # the unified hierarchy beside v1 has none of them
            (folder.parent / "cgroup.subtree_control").write_text(_CONTROLLERS)
            (folder / "cgroup.subtree_control").write_text(_CONTROLLERS)
