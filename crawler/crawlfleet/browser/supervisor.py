"""`crawlfleet chrome`: keeps one Chrome and one chromedriver running and in bounds.

One loop on the main thread owns everything. A turn looks at the launch, decides whether it has to end (`health.judge`)
and publishes a `Status`. It turns when something happens (a process ended, an address was told, a wish came in) and
a few times a second. `control` serves the status and brings the wishes; how crawls use Chrome is none of its business.
"""

from __future__ import annotations

import logging
import queue
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from crawlfleet import cgroup
from crawlfleet.browser import home, preflight, processes
from crawlfleet.browser.control import Control, listen
from crawlfleet.browser.health import (
    Ending,
    Seen,
    Status,
    Wish,
    failures_after,
    judge,
    kill_above_mb,
    pause_s,
)
from crawlfleet.browser.launch import Launch
from crawlfleet.browser.preflight import Installation
from crawlfleet.errors import ChromeUnusable
from crawlfleet.settings import ChromeSettings

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""A page can fill a container's memory within a second."""
LAUNCHES = 5
"""So many failures in a row, the last of them without ever being ready, and Chrome is unusable here."""


class Supervisor:
    """Run it on the main thread. `status` may be read and `wish` called from any thread."""

    def __init__(
        self,
        settings: ChromeSettings,
        folder: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._clock = clock
        self._kill_mb = kill_above_mb(settings.memory_mb, cgroup.limit_mb())
        self._inbox: queue.SimpleQueue[Wish | None] = queue.SimpleQueue()
        self._stopping = False
        self._launch: Launch | None = None
        self._again_at = clock()
        self._failures = 0
        self._ended = ""
        self.status = Status(limit_mb=settings.memory_mb)

    def stop(self) -> None:
        """End Chrome, and `run`. Safe in a signal handler."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """Something may have changed. Safe in a signal handler."""
        self._inbox.put(None)

    def wish(self, wish: Wish) -> None:
        """Carried out at once, unless that generation has ended meanwhile."""
        self._inbox.put(wish)

    def run(self) -> None:
        """Until `stop`; nothing is left then. Raises ChromeUnusable."""
        try:
            self.status = replace(self.status, generation=home.clear(self._folder))
            installation = preflight.inspect(self._settings)
            log.info("chrome found", extra={"version": installation.version, "sandbox": installation.sandbox})
            wish = None
            while not self._stopping:
                self._turn(installation, wish)
                wish = self._await()
        finally:
            if self._launch is not None:
                self._launch.end(patience_s=0)
            home.forget(self._folder)

    def _await(self) -> Wish | None:
        """The next event, which may be a wish; or nothing for a while."""
        timeout_s = LOOK_S if self._launch else max(0.0, self._again_at - self._clock())
        with suppress(queue.Empty):
            return self._inbox.get(timeout=timeout_s)
        return None

    def _turn(self, installation: Installation, wish: Wish | None) -> None:
        if self._launch is None:
            if self._clock() >= self._again_at:
                self._begin(installation)
            return
        seen = self._launch.look()
        is_meant = wish and wish.generation in (None, self.status.generation)
        ending = judge(seen, wish if is_meant else None, self._kill_mb)
        if ending is None:
            self._publish(self._launch, seen)
        else:
            self._end(self._launch, seen, ending)

    def _begin(self, installation: Installation) -> None:
        generation = self.status.generation + 1
        self.status = replace(self.status, generation=generation)
        folder = self._folder / f"{home.LAUNCH}{generation}"
        self._launch = Launch(installation, folder, wake=self.wake, clock=self._clock)
        try:
            self._launch.start()
        except OSError as exc:
            raise ChromeUnusable(f"Chrome cannot be started in {folder}: {exc.strerror}") from exc
        home.write_down(self._folder, generation, self._launch.sessions())

    def _publish(self, launch: Launch, seen: Seen) -> None:
        cdp, webdriver = launch.addresses()
        if seen.is_ready and not self.status.ready:
            log.info("chrome ready", extra={"generation": self.status.generation, "launch_s": seen.launch_s})
        self.status = replace(
            self.status,
            ready=seen.is_ready,
            why=self._ended or ("" if seen.is_ready else "starting"),
            cdp=cdp,
            webdriver=webdriver,
            memory_mb=round(seen.memory_mb, 1),
            contexts=seen.contexts,
            age_s=round(seen.age_s, 3),
            launch_s=round(seen.launch_s or 0.0, 3),
        )

    def _end(self, launch: Launch, seen: Seen, ending: Ending) -> None:
        """Not ready from this moment on, then end it; decide when the next one begins."""
        self._ended = ending.why
        restarts = self.status.restarts
        self.status = replace(
            self.status,
            ready=False,
            why=ending.why,
            cdp="",
            webdriver="",
            contexts=0,
            restarts={**restarts, ending.kind: restarts[ending.kind] + 1},
        )
        launch.end(ending.patience_s)
        self._launch = None
        self._failures = failures_after(ending, seen.age_s, self._failures)
        self._again_at = self._clock() + pause_s(self._failures)
        log.log(
            logging.WARNING if ending.is_failure else logging.INFO,
            "chrome ended",
            extra={"generation": self.status.generation, "kind": ending.kind, "reason": ending.why},
        )
        if ending.is_failure and not seen.is_ready:
            self._did_not_come_up(ending, launch.last_words())

    def _did_not_come_up(self, ending: Ending, last_words: str) -> None:
        """Perhaps it will next time; but not for ever."""
        words = f"{ending.why}; it said last:\n{last_words or '(nothing)'}"
        if self._failures >= LAUNCHES:
            raise ChromeUnusable(
                f"Chrome failed {self._failures} times in a row, at last at its launch: {words}"
            )
        log.error("chrome did not come up: %s", words)


def run_chrome(settings: ChromeSettings) -> int:
    """What `crawlfleet chrome` does: until SIGTERM or SIGINT."""
    processes.adopt_orphans()
    with home.claimed(settings.folder or home.temporary()) as folder:
        supervisor = Supervisor(settings, folder)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: supervisor.stop())
        signal.signal(signal.SIGCHLD, lambda *_: supervisor.wake())
        control = Control(listen(settings), supervisor)
        log.info("control port served", extra={"port": control.port})
        try:
            supervisor.run()
        finally:
            control.stop()
    return 0
