"""What the kernel tells of processes: who descends from us, who carries our mark, what they take. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")


def adopt_orphans() -> None:
    """From now on whoever loses its parent below us becomes our child, and so stays a descendant."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(pid: int) -> set[int]:
    """Every process below `pid` at this moment, also those that ended and were not waited for."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found: set[int] = set()
    ahead = [pid]
    while ahead:
        below = children.get(ahead.pop(), [])
        found.update(below)
        ahead += below
    return found


def reap(but: Collection[int]) -> None:
    """Wait for the adopted that have ended; `but` are children that somebody else waits for."""
    me = os.getpid()
    for pid, parent in _parents():
        if parent == me and pid not in but:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def kill(pids: Collection[int]) -> None:
    """SIGKILL, to those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> set[int]:
    """Who was started with this `NAME=value` in its environment, as far as we may look."""
    found = set()
    for proc in _processes():
        with suppress(OSError):
            if mark.encode() in (proc / "environ").read_bytes().split(b"\0"):
                found.add(int(proc.name))
    return found


def memory_mb(pids: Collection[int]) -> float:
    """What they take together: a page that several share counts once (PSS)."""
    return sum(map(_memory_kb, pids)) / 1024


def _memory_kb(pid: int) -> int:
    """Its share of all its pages; where we may not look so closely, the pages that are its own."""
    for file, name in (("smaps_rollup", "Pss:"), ("status", "RssAnon:")):
        with suppress(OSError):
            for line in (_PROC / str(pid) / file).read_text().splitlines():
                if line.startswith(name):
                    return int(line.split()[1])
    return 0


def _parents() -> Iterator[tuple[int, int]]:
    for proc in _processes():
        with suppress(OSError):
            after_name = (proc / "stat").read_text().rpartition(")")[2].split()
            yield int(proc.name), int(after_name[1])


def _processes() -> Iterator[Path]:
    return (entry for entry in _PROC.iterdir() if entry.name.isdigit())
