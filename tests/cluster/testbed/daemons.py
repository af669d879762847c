"""The testbed's processes. They outlive the command that started them, so each has a note in a file.

A note holds the command, the process's number and its start time. The start time makes the number safe to use: by
then it may be somebody else's.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.testbed.errors import TestbedError
from cluster.testbed.place import LOGS, STATE

NOTES = STATE / "daemons"
TAIL_LINES = 15
POLL_S = 0.05
END_S = 10.0
_MARK = "CRAWLFLEET_TESTBED"
"""In the environment of each."""
_STARTED_AFTER_NAME = 19
"""Which word of /proc/PID/stat after the name: proc(5), field 22."""


@dataclass(frozen=True)
class Daemon:
    """A process by its name. Any command of the testbed may ask about it, end it, start it again."""

    name: str

    def define(self, command: Sequence[str | Path]) -> None:
        """What it is, before it is started for the first time."""
        NOTES.mkdir(parents=True, exist_ok=True)
        self._write({"command": [str(word) for word in command]})

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    def start(self) -> None:
        """Unless it runs. Its output goes to the end of its log."""
        if self.is_alive():
            return
        command = self._read()["command"]
        LOGS.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd="/",
                env={**os.environ, _MARK: str(STATE)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _children.append(process)
        self._write({"command": command, "pid": process.pid, "started": start_time(process.pid)})

    def pid(self) -> int | None:
        """Of the running process."""
        note = self._read()
        with suppress(KeyError):
            if note["started"] is not None and start_time(note["pid"]) == note["started"]:
                return int(note["pid"])
        return None

    def is_alive(self) -> bool:
        return self.pid() is not None

    def kill(self) -> None:
        """As `kill -9` does; it is gone afterwards."""
        if pid := self.pid():
            end([pid])

    def forget(self) -> None:
        """It is no part of the testbed any more."""
        self.kill()
        self._note.unlink()

    def wait_until(self, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Raises TestbedError with the end of its log if it ends first, or takes too long."""
        until_s = time.monotonic() + timeout_s
        while not ready():
            ended = not self.is_alive()
            if ended or time.monotonic() > until_s:
                what = "ended" if ended else f"is not ready after {timeout_s:.0f} s"
                raise TestbedError(f"{self.name} {what}; the end of {self.log}:\n{tail(self.log)}")
            time.sleep(POLL_S)

    @property
    def _note(self) -> Path:
        return NOTES / f"{self.name}.json"

    def _read(self) -> dict[str, Any]:
        """Empty before it is defined."""
        try:
            note: dict[str, Any] = json.loads(self._note.read_text())
        except FileNotFoundError:
            return {}
        return note

    def _write(self, note: dict[str, Any]) -> None:
        fresh = self._note.with_suffix(".new")
        fresh.write_text(json.dumps(note))
        fresh.replace(self._note)


_children: list[subprocess.Popen[bytes]] = []
"""Ours to reap, if they end while we live."""


def every() -> Iterator[Daemon]:
    """All that this testbed has."""
    for note in sorted(NOTES.glob("*.json")):
        yield Daemon(note.stem)


def marked() -> list[int]:
    """All that descends from a daemon of this testbed, whatever became of its notes. Containers do not: they get another environment."""
    mark = f"{_MARK}={STATE}".encode()
    return [
        int(file.parent.name)
        for file in Path("/proc").glob("[0-9]*/environ")
        if mark in _bytes(file).split(b"\0")
    ]


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:  # it has ended
        return b""


def start_time(pid: int) -> str | None:
    """When it was started, in ticks since boot; None if it is gone or only waits to be reaped."""
    _reap()
    with suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if after_name[0] == "Z" else after_name[_STARTED_AFTER_NAME]
    return None


def end(pids: Sequence[int]) -> None:
    """Kill them, and wait until they are gone. Raises TestbedError if one is not, after some seconds."""
    handles: dict[int, int] = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            handles[pid] = os.pidfd_open(pid)
            os.kill(pid, signal.SIGKILL)
    for pid, handle in handles.items():
        has_ended, _, _ = select.select([handle], [], [], END_S)
        os.close(handle)
        if not has_ended:
            raise TestbedError(f"process {pid} does not end: `cat /proc/{pid}/stack` tells what it waits for")
    _reap()


def tail(log: Path) -> str:
    """The last lines of a log, or that there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
    except OSError as exc:
        return f"(no log: {exc.strerror})"


def _reap() -> None:
    _children[:] = [child for child in _children if child.poll() is None]
