"""The worker processes of a local batch, each with a Chrome if the batch needs one: started, restarted, drained, and
buried when they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crawlfleet.child import spawn
from crawlfleet.errors import CLOSED, DRAINED, BadConfiguration, CrawlfleetError
from crawlfleet.local.chrome import LocalChrome
from crawlfleet.local.restarts import Restarts, tail
from crawlfleet.store import batches
from crawlfleet.store.connection import Connection
from crawlfleet.store.fleet import Process, bury_worker

LOG_LINES = 5


@dataclass
class _Slot:
    """One WORKER_ID and the process that serves it now."""

    worker_id: int
    log: Path
    chrome: LocalChrome | None
    restarts: Restarts
    process: subprocess.Popen[bytes]

    @property
    def has_finished(self) -> bool:
        return self.process.poll() in (CLOSED, DRAINED)

    @property
    def has_died(self) -> bool:
        return self.process.poll() not in (None, CLOSED, DRAINED)


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
        chrome: bool = False,
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
        self._slots = [self._fill(i, log_dir, chrome) for i in range(workers)]

    def tend(self, conn: Connection) -> list[str]:
        """Bury and restart what died; what to tell of it. Raises CrawlfleetError if a worker or its Chrome cannot be kept alive."""
        for slot in self._slots:
            if slot.chrome is not None:
                _tend_chrome(slot.chrome, is_needed=not slot.has_finished)
        return [told for slot in self._slots if slot.has_died and (told := self._tend_dead(conn, slot))]

    def _tend_dead(self, conn: Connection, slot: _Slot) -> str:
        told = ""
        if not slot.restarts.is_waiting:
            self._bury(conn, slot)  # again at the next look, if the database is away
            slot.restarts.died()
            told = self._loss_of(slot)
        if self._draining:
            return told
        code = slot.process.returncode
        if code == BadConfiguration.exit_code or slot.restarts.are_spent:
            raise CrawlfleetError(
                f"worker {slot.worker_id} ended with {code}; its log {slot.log} ends:\n{tail(slot.log, LOG_LINES)}"
            )
        if slot.restarts.is_due():
            slot.process = self._start(slot.worker_id, slot.log, slot.chrome)
        return told

    def _loss_of(self, slot: _Slot) -> str:
        code = slot.process.returncode
        how = f"was lost (signal {-code})" if code < 0 else f"ended with {code}"
        then = "not started again, since the run drains" if self._draining else "started again"
        return f"worker {slot.worker_id} (pid {slot.process.pid}) {how}; {then}"

    def is_needed(self) -> bool:
        """Whether a worker process lives, or one that died has to be restarted."""
        return any(
            slot.process.poll() is None or (slot.has_died and not self._draining) for slot in self._slots
        )

    def has_drained(self) -> bool:
        """Whether every worker ended because it was told to drain."""
        return all(slot.process.poll() == DRAINED for slot in self._slots)

    def alive(self) -> int:
        """How many worker processes live."""
        return sum(slot.process.poll() is None for slot in self._slots)

    def drain(self) -> None:
        """Let every worker finish what it holds; none is restarted."""
        self._draining = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every worker at once, then its Chrome, and wait until they are gone."""
        self._draining = True
        self._signal(signal.SIGKILL)
        for slot in self._slots:
            slot.process.wait()
        chromes = [slot.chrome for slot in self._slots if slot.chrome is not None]
        for chrome in chromes:
            chrome.drain()  # all at the same time
        for chrome in chromes:
            chrome.end()

    def bury(self, conn: Connection) -> None:
        """After `kill`: what the workers held needs no quarantine."""
        for slot in self._slots:
            if slot.has_died:
                self._bury(conn, slot)

    def _bury(self, conn: Connection, slot: _Slot) -> None:
        bury_worker(conn, self._batch_id, Process.this().pid_space, slot.process.pid)

    def _signal(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.process.poll() is None:
                slot.process.send_signal(number)

    def _fill(self, worker_id: int, log_dir: Path, chrome: bool) -> _Slot:
        log = log_dir / f"worker-{worker_id}.log"
        beside = LocalChrome(log_dir / f"chrome-{worker_id}.log") if chrome else None
        return _Slot(worker_id, log, beside, Restarts(self._clock), self._start(worker_id, log, beside))

    def _start(self, worker_id: int, log: Path, chrome: LocalChrome | None) -> subprocess.Popen[bytes]:
        environment = self._environment | {"WORKER_ID": str(worker_id)}
        if chrome is not None:
            environment["CRAWLFLEET_CHROME_URL"] = chrome.url
        with log.open("ab") as output:
            return spawn(
                [sys.executable, "-m", "crawlfleet", "worker"],
                death_signal=signal.SIGKILL,
                env=environment,
                stdout=output,
            )


def _tend_chrome(chrome: LocalChrome, *, is_needed: bool) -> None:
    if is_needed:
        chrome.tend()
    else:
        chrome.drain()


def bury_strangers(conn: Connection, batch_id: int) -> None:
    """Bury the workers of an earlier run that are gone, for nobody was left to see them die.

    Only for a database that this machine alone uses: its workers live here, or they went with an earlier boot. Those of
    another container on it cannot be seen from here, and are left to their quarantine.
    """
    here = Process.this().pid_space
    boot = here.partition("/")[0]
    for worker in batches.workers(conn, batch_id):
        gone = (
            not _is_worker(worker.pid)
            if worker.pid_space == here
            else worker.pid_space.partition("/")[0] != boot
        )
        if gone:
            bury_worker(conn, batch_id, worker.pid_space, worker.pid)


def _is_worker(pid: int) -> bool:
    try:
        command = Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return False
    return b"crawlfleet" in command and command.endswith(b"worker\0")
