"""What is seen of a Chrome, what is told of it, and whether it has to end. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LAUNCH_S = 20.0
SILENT_S = 10.0
GRACE_S = 1.0
"""How long Chrome may take to end when it is recycled; nothing of it is kept."""
STABLE_S = 60.0
"""A Chrome that lived so long was well: what failed before it is forgotten."""
PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
FAR_ABOVE = 1.2
NEAR_THE_WALL = 0.92

EXITED, UNRESPONSIVE, RECYCLED, KILLED = "exited", "unresponsive", "recycled", "killed"


@dataclass(frozen=True)
class Seen:
    """What can be seen of a launch at one moment. `ended` tells which program ended and how, empty if none did.

    `launch_s` is how long it took until both programs had answered, None if they have not yet.
    """

    ended: str
    age_s: float
    launch_s: float | None
    silent_s: float
    memory_mb: float
    contexts: int

    @property
    def is_ready(self) -> bool:
        return self.launch_s is not None


@dataclass(frozen=True)
class Status:
    """What `GET /status` answers.

    `why` is why it is not ready; once it is, why the Chrome before this one ended (empty for the first).
    `generation` counts launches, the addresses are empty while they are not known.
    """

    ready: bool = False
    why: str = "starting"
    generation: int = 0
    cdp: str = ""
    webdriver: str = ""
    memory_mb: float = 0.0
    limit_mb: int | None = None
    contexts: int = 0
    age_s: float = 0.0
    launch_s: float = 0.0
    restarts: Mapping[str, int] = field(
        default_factory=lambda: dict.fromkeys((EXITED, UNRESPONSIVE, RECYCLED, KILLED), 0)
    )


@dataclass(frozen=True)
class Wish:
    """Somebody wants a generation ended (None: whichever runs); `how` is RECYCLED or KILLED."""

    how: str
    generation: int | None = None


@dataclass(frozen=True)
class Ending:
    """A launch has to end: the kind that is counted, and the reason in words."""

    kind: str
    why: str
    is_failure: bool = True
    patience_s: float = 0.0


def judge(seen: Seen, wish: Wish | None, kill_mb: float | None) -> Ending | None:
    """Whether a launch has to end, and how."""
    if seen.ended:
        return Ending(EXITED, seen.ended)
    if wish is not None:
        patience_s = GRACE_S if wish.how == RECYCLED else 0.0
        return Ending(wish.how, f"{wish.how} on demand", is_failure=False, patience_s=patience_s)
    if kill_mb is not None and seen.memory_mb > kill_mb:
        return Ending(KILLED, f"it took {seen.memory_mb:.0f} MB of memory, more than {kill_mb:.0f} MB")
    if not seen.is_ready and seen.age_s > LAUNCH_S:
        return Ending(UNRESPONSIVE, f"it was not ready {LAUNCH_S:.0f} s after its launch")
    if seen.is_ready and seen.silent_s > SILENT_S:
        return Ending(UNRESPONSIVE, f"it has not answered for {SILENT_S:.0f} s")
    return None


def kill_above_mb(limit_mb: int | None, container_mb: float | None) -> float | None:
    """Far above the limit, but before the kernel kills the whole container."""
    walls = [limit_mb * FAR_ABOVE] if limit_mb else []
    walls += [container_mb * NEAR_THE_WALL] if container_mb else []
    return min(walls, default=None)


def failures_after(ending: Ending, age_s: float, failures: int) -> int:
    """How many launches have failed in a row, counting this one."""
    if not ending.is_failure:
        return 0
    return 1 if age_s > STABLE_S else failures + 1


def pause_s(failures: int) -> float:
    """How long to wait after so many failures in a row: not at all after the first, then longer and longer."""
    return 0.0 if failures < 2 else min(LONGEST_PAUSE_S, PAUSE_S * 2 ** (failures - 2))
