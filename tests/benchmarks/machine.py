"""The machine that a benchmark runs on, and how much of it somebody else uses meanwhile."""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

BUSY = 0.10
"""Above this share of all cores, what others do falsifies a figure."""
_LOOK_S = 2.0


def describe(postgres: str) -> str:
    """Cores, CPU, memory, kernel and versions, in one line."""
    cpu = _value("/proc/cpuinfo", "model name")
    memory_gb = int(_value("/proc/meminfo", "MemTotal").split()[0]) / 2**20
    system = f"Linux {platform.release()}, Python {platform.python_version()}, PostgreSQL {postgres}"
    return f"{os.cpu_count()} cores, {cpu}, {memory_gb:.0f} GB, {system}"


def _value(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


@dataclass(frozen=True)
class Cpu:
    """CPU time since boot, in clock ticks: of everybody (with the time lost to other guests), and of this bench."""

    all: int
    ours: int
    at_s: float

    @classmethod
    def now(cls) -> Cpu:
        """Read it."""
        fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        user, nice, system, _, _, irq, softirq, steal = fields
        return cls(user + nice + system + irq + softirq + steal, _tree_ticks(os.getpid()), time.monotonic())

    def foreign_since(self, before: Cpu) -> float:
        """The share of all cores that others used since then."""
        ticks = (self.at_s - before.at_s) * os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1)
        return max(0.0, (self.all - before.all - (self.ours - before.ours)) / ticks)

    def ours_since_s(self, before: Cpu) -> float:
        """CPU seconds that this bench and its children used since then."""
        return (self.ours - before.ours) / os.sysconf("SC_CLK_TCK")


class Others:
    """What others use while this is entered. It looks again and again: what the children of a killed browser have used is in
    nobody's sum once they are gone."""

    def __enter__(self) -> Self:
        self._shares: list[float] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def share(self) -> float:
        """The share of all cores, on the average."""
        return sum(self._shares) / max(1, len(self._shares))

    def _watch(self) -> None:
        before = Cpu.now()
        while not self._ended.wait(_LOOK_S):
            now = Cpu.now()
            self._shares.append(min(1.0, now.foreign_since(before)))
            before = now


@dataclass(frozen=True)
class Pace:
    """How fast tasks went, and the CPU time that each took of all processes: the second hardly depends on others."""

    per_s: float
    cpu_us: float

    def __str__(self) -> str:
        return f"{self.per_s:,.0f}/s at {self.cpu_us:.0f} µs of CPU a task"


def foreign_now() -> float:
    """What others use at the moment."""
    before = Cpu.now()
    time.sleep(_LOOK_S)
    return Cpu.now().foreign_since(before)


def load() -> str:
    """The load averages."""
    return " ".join(f"{n:.2f}" for n in os.getloadavg())


def _tree_ticks(root: int) -> int:
    """CPU time of a process and all below it; those that ended are in their parents' sums."""
    found: dict[int, tuple[int, int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(stat.parent.name)] = (int(after_name[1]), sum(map(int, after_name[11:15])))
    tree = {root}
    while more := {pid for pid, (parent, _) in found.items() if parent in tree} - tree:
        tree |= more
    return sum(found[pid][1] for pid in tree if pid in found)
