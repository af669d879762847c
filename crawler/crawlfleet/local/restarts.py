"""When a child that died is started again, and what it said last. Used for local workers and their Chromes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

MOST = 20
"""A child that dies more often than that in one run is not worth another try."""
PAUSE_S = 1.0


class Restarts:
    """Of one child. Ask `died` and then `is_due` again and again for as long as it is dead."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._count = 0
        self._due_at: float | None = None

    @property
    def are_spent(self) -> bool:
        return self._count >= MOST

    def died(self) -> bool:
        """Whether this death is news."""
        if self._due_at is not None:
            return False
        self._due_at = self._clock() + PAUSE_S
        return True

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
