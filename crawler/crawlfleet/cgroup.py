"""The memory of the container we run in, as the kernel accounts it (cgroup v2 or v1).

A container sees its own group at the root of the mount. On a host the root has no limit, and nothing is told.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_NO_LIMIT = 2**50


def limit_mb(root: Path = ROOT) -> float | None:
    """Above it the kernel kills; None without a limit."""
    limit = _number(root / "memory.max") or _number(root / "memory/memory.limit_in_bytes")
    return limit / 2**20 if limit and limit < _NO_LIMIT else None


def used_mb(root: Path = ROOT) -> float | None:
    """What counts against the limit and cannot simply be dropped, as the kubelet counts it; None without a limit."""
    if limit_mb(root) is None:
        return None
    used = _number(root / "memory.current") or _number(root / "memory/memory.usage_in_bytes") or 0
    droppable = _stat(root / "memory.stat", "inactive_file") or _stat(
        root / "memory/memory.stat", "total_inactive_file"
    )
    return max(0, used - (droppable or 0)) / 2**20


def _number(file: Path) -> int | None:
    with suppress(OSError, ValueError):  # `max` is no number
        return int(file.read_text())
    return None


def _stat(file: Path, name: str) -> int | None:
    with suppress(OSError):
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return None
