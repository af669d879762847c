"""What the kernel tells of processes: who descends from us, whose session they are in, what they take. Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")


def adopt_orphans() -> None:
    """From now on whoever loses its parent below us becomes our child, and so stays a descendant."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclass(frozen=True)
class Process:
    """A process at one moment; perhaps it has ended by now."""

    pid: int
    parent: int
    session: int

    def runs(self, program: str) -> bool:
        """Whether that is its program; where we may not look so closely, whether it says so."""
        proc = _PROC / str(self.pid)
        with suppress(OSError):
            return os.readlink(proc / "exe").startswith(program)  # an upgrade appends ` (deleted)`
        with suppress(OSError):
            return (proc / "cmdline").read_bytes().startswith(program.encode())
        return False


def everyone() -> Iterator[Process]:
    """All processes, also those that ended and were not waited for."""
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                _, parent, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                yield Process(int(entry.name), int(parent), int(session))


def descendants(pid: int) -> set[int]:
    """Every process below `pid` at this moment, also those that ended and were not waited for."""
    children: dict[int, list[int]] = {}
    for process in everyone():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    ahead = [pid]
    while ahead:
        below = children.get(ahead.pop(), [])
        found.update(below)
        ahead += below
    return found


def reap(but: Collection[int]) -> None:
    """Wait for the adopted that have ended; `but` are children that somebody else waits for, and does so soon."""
    with suppress(ChildProcessError):
        while (ended := _first_ended()) and ended not in but:
            os.waitpid(ended, 0)


def _first_ended() -> int:
    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found.si_pid if found else 0


def kill(pids: Collection[int]) -> None:
    """SIGKILL, to those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


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
