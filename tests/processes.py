"""What tests ask the kernel about processes: who descends from whom, and when somebody has ended."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def descendants(pid: int) -> set[int]:
    """Every living process below `pid`, at this moment."""
    parents = dict(_parents())
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def _parents() -> Iterator[tuple[int, int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield int(stat.parent.name), int(after_name[1])


class Watch:
    """Handles on processes, taken while they live, so that a reused number cannot mislead."""

    def __init__(self, *pids: int) -> None:
        self._handles: dict[int, int] = {}
        for pid in pids:
            with suppress(ProcessLookupError):  # a short-lived one has ended already
                self._handles[pid] = os.pidfd_open(pid)

    def survivors(self, timeout_s: float = 30) -> set[int]:
        """Wait until all have ended; returns those that have not. Ends the watch."""
        try:
            return {
                pid
                for pid, handle in self._handles.items()
                if not select.select([handle], [], [], timeout_s)[0]
            }
        finally:
            for handle in self._handles.values():
                os.close(handle)
