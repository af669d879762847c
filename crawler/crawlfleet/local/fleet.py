"""The worker processes of a local batch: started, restarted, drained, and buried when they die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from crawlfleet.errors import CrawlfleetError
from crawlfleet.local.child import spawn
from crawlfleet.store.connection import Connection
from crawlfleet.store.fleet import bury_worker

RESTARTS = 20
"""A worker that dies more often than that in one run is not worth another try."""
RESTART_PAUSE_S = 1.0
_FINAL = frozenset({0, 75})


@dataclass
class _Slot:
    """One WORKER_ID and the process that serves it now."""

    worker_id: int
    process: subprocess.Popen[bytes]
    restarts: int = 0
    again_at: float = 0.0
    log: Path = field(default_factory=Path)


class LocalFleet:
    """`workers` processes for one batch. Make and start it from the main thread: they die with it."""

    def __init__(
        self,
        *,
        database_url: str,
        keys_file: Path,
        batch_uid: str,
        batch_id: int,
        workers: int,
        max_concurrent: int,
        log_dir: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._batch_id = batch_id
        self._clock = clock
        self._draining = False
        self._environment = {
            **os.environ,
            "CRAWLFLEET_DATABASE_URL": database_url,
            "CRAWLFLEET_KEYS_FILE": str(keys_file),
            "CRAWLFLEET_BATCH": batch_uid,
            "CRAWLFLEET_METRICS_PORT": "0",
            "MAX_CONCURRENT": str(max_concurrent),
        }
        log_dir.mkdir(parents=True, exist_ok=True)
        self._slots = [self._start(i, log_dir / f"worker-{i}.log") for i in range(workers)]

    def tend(self, conn: Connection) -> None:
        """Bury and restart what died. Raises CrawlfleetError if a worker cannot be kept alive."""
        for slot in self._slots:
            code = slot.process.poll()
            if code is None or code in _FINAL:
                continue
            if slot.again_at == 0.0:
                bury_worker(conn, self._batch_id, socket.gethostname(), slot.process.pid)
                slot.again_at = self._clock() + RESTART_PAUSE_S
            if code == 78 or slot.restarts >= RESTARTS:
                raise CrawlfleetError(
                    f"worker {slot.worker_id} ended with {code}; its log {slot.log} ends:\n{_tail(slot.log)}"
                )
            if self._clock() >= slot.again_at and not self._draining:
                fresh = self._start(slot.worker_id, slot.log)
                slot.process, slot.again_at, slot.restarts = fresh.process, 0.0, slot.restarts + 1

    def is_needed(self) -> bool:
        """Whether a worker process lives, or one that died has to be restarted."""
        codes = [slot.process.poll() for slot in self._slots]
        return any(code is None or not (code in _FINAL or self._draining) for code in codes)

    def alive(self) -> int:
        """How many worker processes live."""
        return sum(slot.process.poll() is None for slot in self._slots)

    def drain(self) -> None:
        """Let every worker finish what it holds; none is restarted."""
        self._draining = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every worker at once and wait until it is gone."""
        self._draining = True
        self._signal(signal.SIGKILL)
        for slot in self._slots:
            slot.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.process.poll() is None:
                slot.process.send_signal(number)

    def _start(self, worker_id: int, log: Path) -> _Slot:
        command = [sys.executable, "-m", "crawlfleet", "worker"]
        with log.open("ab") as output:
            process = spawn(
                command,
                death_signal=signal.SIGKILL,
                env=self._environment | {"WORKER_ID": str(worker_id)},
                stdout=output,
            )
        return _Slot(worker_id, process, log=log)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-5:])
