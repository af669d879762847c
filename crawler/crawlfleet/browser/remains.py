"""What a supervisor writes down of its launch, so that the next one of its folder can end what outlived it.

Chrome dies with its supervisor (`local/child.py`), and its children by themselves as soon as they notice. What hangs does
not notice. Chrome's children write over their environment, so no mark in there would tell whose they are; but they keep
the session of the program that was launched.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from crawlfleet.browser import processes

LAUNCH = "launch-"
NOTE = "launch.json"
GONE_S = 5.0
POLL_S = 0.01


def write_down(folder: Path, generation: int, sessions: Mapping[int, str]) -> None:
    """`sessions`: the program that leads each session, by the session's number."""
    fresh = folder / f"{NOTE}.new"
    fresh.write_text(json.dumps({"generation": generation, "sessions": sessions}))
    fresh.replace(folder / NOTE)


def clear(folder: Path) -> int:
    """End what is left of an earlier supervisor and remove its files; its last generation, 0 if there was none."""
    generation, sessions = _read(folder / NOTE)
    gone_by = time.monotonic() + GONE_S
    while (left := _left(sessions)) and time.monotonic() < gone_by:
        processes.kill(left)
        time.sleep(POLL_S)
    for launch in folder.glob(f"{LAUNCH}*"):
        shutil.rmtree(launch, ignore_errors=True)
    return generation


def forget(folder: Path) -> None:
    """Nothing is left."""
    (folder / NOTE).unlink(missing_ok=True)


def _read(note: Path) -> tuple[int, dict[int, str]]:
    with suppress(OSError, ValueError):
        found = json.loads(note.read_text())
        return found["generation"], {int(number): program for number, program in found["sessions"].items()}
    return 0, {}


def _left(sessions: Mapping[int, str]) -> list[int]:
    """The program is compared too: by now the session's number may be somebody else's."""
    return [
        process.pid
        for process in processes.everyone()
        if process.session in sessions and process.runs(sessions[process.session])
    ]
