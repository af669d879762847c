"""The command line as its users have it: real processes in a state folder of their own, and what they leave behind.

`Seat` is that folder. Its processes carry a mark in their environment, so that `leftovers` finds every one of
them, PostgreSQL by its folder; the run itself leads a process group, as in a terminal.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from fleet import API, PATIENCE_S, until

COMMAND = [sys.executable, "-m", "crawlfleet"]
MARK = "CRAWLFLEET_TEST_SEAT"


class Running:
    """A command that runs; its output goes to files."""

    def __init__(self, process: subprocess.Popen[bytes], stdout: Path, stderr: Path) -> None:
        self.process = process
        self._stdout, self._stderr = stdout, stderr

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    @property
    def said(self) -> str:
        return self.stdout + self.stderr

    def signal(self, number: signal.Signals) -> None:
        """To the whole process group, as a terminal sends it."""
        os.killpg(self.process.pid, number)

    def wait_for(self, text: str) -> None:
        """Wait until it has said this."""

        def has_said() -> bool:
            if self.process.poll() is not None and text not in self.said:
                pytest.fail(f"ended with {self.process.returncode} without {text!r}:\n{self.said}")
            return text in self.said

        until(has_said, f"{text!r} in the output")

    def exit_code(self, timeout_s: float = PATIENCE_S) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"did not end within {timeout_s:.0f} s:\n{self.said}")


class Seat:
    """A state folder, the files beside it, and commands that work there."""

    def __init__(self, folder: Path, database_url: str | None = None) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self._started: list[Running] = []
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("CRAWLFLEET_")}
        self.environment |= {MARK: str(folder), "COLUMNS": "80"}
        if database_url:
            self.environment["CRAWLFLEET_DATABASE_URL"] = database_url

    def arguments(self, *words: str | Path) -> list[str]:
        """The words, at this seat if the command knows places."""
        placeless = words[0] in ("worker", "shops", "crds") or words[:2] == ("keys", "new")
        place = [] if placeless else ["--state-dir", str(self.state_dir)]
        return [*COMMAND, *map(str, words), *place]

    def do(self, *words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run a command to its end. No command may show a traceback."""
        done = subprocess.run(
            self.arguments(*words), input=stdin, capture_output=True, env=self.environment, timeout=100
        )
        stdout, stderr = done.stdout.decode(), done.stderr.decode()
        assert "Traceback" not in stdout + stderr, stdout + stderr
        return subprocess.CompletedProcess(done.args, done.returncode, stdout, stderr)

    def ok(self, *words: str | Path) -> str:
        """Run a command that must succeed; what it says."""
        done = self.do(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def popen(self, *words: str | Path) -> subprocess.Popen[bytes]:
        """A command whose stdout the caller reads as it comes."""
        return subprocess.Popen(self.arguments(*words), stdout=subprocess.PIPE, env=self.environment)

    def start(self, *words: str | Path) -> Running:
        """Start a command in a process group of its own; it is ended with the seat."""
        number = len(self._started)
        stdout, stderr = (self.folder / f"{number}.{name}" for name in ("stdout", "stderr"))
        with stdout.open("wb") as out, stderr.open("wb") as err:
            process = subprocess.Popen(
                self.arguments(*words),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=self.environment,
                start_new_session=True,
            )
        self._started.append(Running(process, stdout, stderr))
        return self._started[-1]

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """No batch takes anything meanwhile: however slowly a command starts, there is work left after it."""
        with psycopg.connect(self.environment["CRAWLFLEET_DATABASE_URL"], autocommit=True) as conn:
            conn.execute("update batch set suspended = true")
            yield
            conn.execute("update batch set suspended = false")

    def crawled(self, batch: str) -> int:
        """How many crawls the workers of a batch have told of."""
        logs = self.state_dir.glob(f"logs/{batch}/worker-*.log")
        return sum(log.read_text(errors="replace").count(" crawled ") for log in logs)

    def items(self, batch: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ok("results", batch).splitlines()]

    def processes(self) -> dict[int, str]:
        """Every living process of this seat: its command line by its number."""
        return {pid: text for pid, text in map(self._look_at, _pids()) if text}

    def _look_at(self, pid: int) -> tuple[int, str]:
        proc = Path("/proc", str(pid))
        with suppress(OSError):
            command = (proc / "cmdline").read_bytes()
            marks = (
                command + b"\0" + (proc / "environ").read_bytes() + b"\0" + os.readlink(proc / "cwd").encode()
            )
            if command and str(self.folder).encode() in marks:
                return pid, command.replace(b"\0", b" ").decode(errors="replace")
        return pid, ""

    def worker(self, worker_id: int, of: Running) -> int:
        """The process number of a worker of that run, once it lives."""

        def living() -> int:
            return next((pid for pid, text in self.processes().items() if self._is(pid, text, worker_id)), 0)

        return until(living, f"worker {worker_id} of {of.process.pid}")

    @staticmethod
    def _is(pid: int, text: str, worker_id: int) -> bool:
        with suppress(OSError):
            environment = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
            return text.endswith("worker ") and b"WORKER_ID=%d" % worker_id in environment
        return False

    def postmaster(self) -> int:
        """The process number of the embedded server."""
        return int((self.state_dir / "postgres" / "postmaster.pid").read_text().split()[0])

    def assert_nothing_is_left(self) -> None:
        """No process of this seat lives any more, or it ends within moments."""
        until(lambda: not self.processes(), "the end of every process", 30)

    def close(self) -> None:
        """End what was started, whatever state it is in."""
        for running in self._started:
            if running.process.poll() is None:
                running.process.kill()
                running.process.wait()
        with suppress(pytest.fail.Exception):
            self.assert_nothing_is_left()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _pids() -> Iterator[int]:
    own = os.getpid()
    return (pid for name in os.listdir("/proc") if name.isdigit() and (pid := int(name)) != own)


@contextmanager
def seat_in(folder: Path, database_url: str | None = None) -> Iterator[Seat]:
    seat = Seat(folder, database_url)
    try:
        yield seat
    finally:
        seat.close()


def source(name: str = "noop", *, cap: int = 4, **spec: Any) -> dict[str, Any]:
    """A CrawlSource document; the adapter is `noop` unless `spec` says otherwise."""
    spec = {"adapter": "noop", "maxConcurrent": cap, **spec}
    return {"apiVersion": API, "kind": "CrawlSource", "metadata": {"name": name}, "spec": spec}


def batch(name: str = "nightly", sources: Sequence[str] = ("noop",), **spec: Any) -> dict[str, Any]:
    """A CrawlBatch document, for one worker unless `spec` says otherwise."""
    spec = {"sources": list(sources), "workers": 1, **spec}
    return {"apiVersion": API, "kind": "CrawlBatch", "metadata": {"name": name}, "spec": spec}


def manifest(seat: Seat, *documents: Mapping[str, Any], name: str = "manifest.yaml") -> Path:
    """A file of these documents."""
    path = seat.folder / name
    path.write_text(yaml.safe_dump_all([dict(document) for document in documents]))
    return path


def account_line(user_id: int, *, source: str = "noop", **credentials: Any) -> dict[str, Any]:
    return {"user_id": user_id, "source": source, "subscription": "paid", "credentials": credentials}


def accounts_file(seat: Seat, *lines: Mapping[str, Any], name: str = "accounts.jsonl") -> Path:
    path = seat.folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def noop_run(
    seat: Seat,
    *,
    users: int,
    duration_s: float = 0.0,
    cap: int = 4,
    name: str = "nightly",
    selected: Mapping[str, Any] | None = None,
    items: int = 2,
    item_bytes: int = 0,
    workers: int = 1,
) -> list[str | Path]:
    """The words of a run of `users` accounts that take so long and bring that many items each."""
    file = manifest(
        seat,
        source(cap=cap, options={"duration_s": duration_s, "items": items, "body_bytes": item_bytes}),
        batch(name, users=dict(selected or {"all": True}), workers=workers),
        name=f"{name}.yaml",
    )
    accounts = accounts_file(seat, *map(account_line, range(1, users + 1)))
    return ["run", "-f", file, "--accounts", accounts]


def two_items_each(users: int) -> list[tuple[int, str]]:
    """What `results` must bring of such a run: (user, external id), sorted, each once."""
    return [(user, str(no)) for user in range(1, users + 1) for no in range(2)]


def keys_of(items: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    return sorted((item["user_id"], item["external_id"]) for item in items)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def on_a_terminal(seat: Seat, *words: str | Path, timeout_s: float = PATIENCE_S) -> tuple[int, str]:
    """Run a command on a pseudo-terminal: its exit code and all that it drew."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        seat.arguments(*words),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=seat.environment | {"TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(theirs)
    drawn = bytearray()
    deadline_s = time.monotonic() + timeout_s
    try:
        with suppress(OSError):  # EIO: nobody has the other end any more
            while time.monotonic() < deadline_s:
                if select.select([ours], [], [], 0.2)[0]:
                    drawn += os.read(ours, 65_536)
        return process.wait(timeout_s), drawn.decode(errors="replace")
    finally:
        process.kill()
        process.wait()
        os.close(ours)
