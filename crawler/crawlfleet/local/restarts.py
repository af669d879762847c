"""When a child that died is started again, and what it said last. Used for local workers and their Chromes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

MOST = 20
"""A child that dies more often than that in one run is not worth another try."""
PAUSE_S = 1.0


class Restarts:
    """Of one child. Say `died` once of each death, then ask `is_due` again and again."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._count = 0
        self._due_at: float | None = None

    @property
    def are_spent(self) -> bool:
        return self._count >= MOST

    @property
    def is_waiting(self) -> bool:
        """Whether it is known to be dead."""
        return self._due_at is not None

    def died(self) -> None:
        self._due_at = self._clock() + PAUSE_S

    def is_due(self) -> bool:
        """Whether to start it again now; counted as done if so."""
        if self._due_at is None or self._clock() < self._due_at:
            return False
        self._due_at = None
        self._count += 1
        return True


def tail(log: Path, lines: int) -> str:
    """The last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
