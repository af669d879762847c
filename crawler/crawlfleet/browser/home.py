"""The folder of a supervisor: claimed, and cleared of what an earlier one left.

Chrome dies with its supervisor (`child.py`), and its children by themselves as soon as they notice. What hangs does
not notice, so a supervisor writes down its launch for the next one of its folder. Chrome's children write over their
environment: no mark in there would tell whose they are. But they keep the session of the program that was launched.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from crawlfleet.browser import processes
from crawlfleet.errors import BadConfiguration

LAUNCH = "launch-"
NOTE = "launch.json"
GONE_S = 5.0
POLL_S = 0.01
_OPEN_TO_PASS = 0o711  # for Chrome's account, whatever the umask


def temporary() -> Path:
    """A new folder."""
    folder = Path(tempfile.mkdtemp(prefix="crawlfleet-chrome-"))
    folder.chmod(_OPEN_TO_PASS)
    return folder


@contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Ours alone, since a supervisor ends what it finds of an earlier one. Removed at the end if it is empty."""
    folder = folder.absolute()
    handle = _lock(folder)
    try:
        yield folder
    finally:
        os.close(handle)
        with suppress(OSError):
            folder.rmdir()


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


def _lock(folder: Path) -> int:
    """A handle on the folder, made if it is not there; it is locked until the handle is closed."""
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(_OPEN_TO_PASS)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise BadConfiguration(
            f"CRAWLFLEET_CHROME_DIR: {folder} is used by another `crawlfleet chrome`; give each its own"
        ) from exc
    except OSError as exc:
        raise BadConfiguration(f"CRAWLFLEET_CHROME_DIR: {folder} cannot be used: {exc.strerror}") from exc
    return handle
