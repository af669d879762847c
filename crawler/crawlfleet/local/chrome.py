"""The Chrome beside one local worker: the same `crawlfleet chrome` as in a pod, as a child of this process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from crawlfleet.browser import home
from crawlfleet.browser.chrome import Chrome
from crawlfleet.browser.health import Status
from crawlfleet.child import spawn
from crawlfleet.errors import BadConfiguration, ChromeUnusable, CrawlfleetError
from crawlfleet.local.restarts import Restarts, tail

END_S = 3.0
"""The supervisor needs less than 2 s to end Chrome."""
FINAL = (BadConfiguration.exit_code, ChromeUnusable.exit_code)
LOG_LINES = 15
TRIAL_S = 30.0
TRIAL_POLL_S = 0.05


class LocalChrome:
    """Make it from the main thread, with which it ends. `url` stays the same whoever dies meanwhile."""

    def __init__(self, log: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._folder = home.temporary()
        self._restarts = Restarts(clock)
        self._ending = False
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._process = self._start()

    def tend(self) -> None:
        """Restart a supervisor that died. Raises CrawlfleetError if that cannot help."""
        code = self._process.poll()
        if code is None or self._ending:
            return
        if code in FINAL or self._restarts.are_spent:
            raise CrawlfleetError(
                f"`crawlfleet chrome` ended with {code}; its log {self._log} ends:\n{tail(self._log, LOG_LINES)}"
            )
        if not self._restarts.is_waiting:
            self._restarts.died()
        elif self._restarts.is_due():
            self._process = self._start()

    def status(self) -> Status | None:
        """What it says of itself; None while nobody answers."""
        return Chrome(self.url).status()

    def drain(self) -> None:
        """Nobody needs it any more: it may end. It is not restarted."""
        self._ending = True
        if self._process.poll() is None:
            self._process.terminate()

    def end(self) -> None:
        """End it and wait until it is gone. Safe to repeat."""
        self.drain()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> subprocess.Popen[bytes]:
        listener = self._listener.fileno()
        with self._log.open("ab") as output:
            return spawn(
                [sys.executable, "-m", "crawlfleet", "chrome"],
                death_signal=signal.SIGTERM,
                env=self._environment(listener),
                stdout=output,
                pass_fds=[listener],
            )

    def _environment(self, listener: int) -> Mapping[str, str]:
        return {
            **os.environ,
            "CRAWLFLEET_CHROME_FD": str(listener),
            "CRAWLFLEET_CHROME_DIR": str(self._folder),
        }


def try_out() -> Status:
    """Launch one for a moment: its status when it was ready. Raises CrawlfleetError if it does not come up."""
    with tempfile.NamedTemporaryFile(prefix="crawlfleet-chrome-", suffix=".log") as log:
        chrome = LocalChrome(Path(log.name))
        try:
            return _await_ready(chrome)
        finally:
            chrome.end()


def _await_ready(chrome: LocalChrome) -> Status:
    give_up_at = time.monotonic() + TRIAL_S
    while not ((status := chrome.status()) and status.ready):
        chrome.tend()
        if time.monotonic() > give_up_at:
            why = status.why if status else "it does not answer"
            raise ChromeUnusable(f"Chrome was not ready within {TRIAL_S:.0f} s: {why}")
        time.sleep(TRIAL_POLL_S)
    return status
