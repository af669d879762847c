"""One Chrome and its chromedriver, from their start to their end."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from crawlfleet import cgroup
from crawlfleet.browser import processes
from crawlfleet.browser.cdp import Cdp, CdpFailed
from crawlfleet.browser.health import Seen
from crawlfleet.browser.preflight import Installation
from crawlfleet.child import spawn

log = logging.getLogger(__name__)

RENDERER_HEAP_MB = 512
TAIL_LINES = 12
ASK_S = 1.0
FIRST_ASK_S = 0.05
ANSWER_S = 5.0
WEIGH_S = 2.0
NO_ANSWER = (OSError, ValueError, LookupError, http.client.HTTPException, CdpFailed)
"""Nobody there, or nonsense."""
END_POLL_S = 0.01
LAST_WORDS_S = 0.5
GONE_S = 5.0
"""A killed process that is not gone by then is stuck in the kernel."""

_CHROME_AT = re.compile(r"DevTools listening on (ws://127\.0\.0\.1:\d+/\S+)")
_CHROMEDRIVER_AT = re.compile(r"started successfully on port (\d+)")


def chrome_command(chrome: str, profile: Path, *, sandbox: bool) -> list[str]:
    """Quiet and bounded, without images and fonts of pages; nothing here hides from a page that it is automated."""
    command = [
        chrome,
        "--headless",
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--no-default-browser-check",
        "--no-pings",
        "--disable-background-networking",
        "--disable-breakpad",
        "--disable-component-update",
        "--disable-default-apps",
        "--disable-domain-reliability",
        "--disable-extensions",
        "--disable-gpu",
        "--disable-sync",
        "--mute-audio",
        "--password-store=basic",
        "--lang=ko-KR",
        "--accept-lang=ko-KR,ko",
        "--blink-settings=imagesEnabled=false,downloadableBinaryFontsEnabled=false",
        # What makes going back and the next page of a site pleasant for a person costs a crawl 8 % of its time (measured).
        "--disable-features=BackForwardCache,PaintHolding,RenderDocument",
        f"--js-flags=--max-old-space-size={RENDERER_HEAP_MB}",
    ]
    # The sandbox is made of user namespaces. Where containers forbid them Chrome refuses to start with it; there
    # the container and the unprivileged account are the walls.
    return command if sandbox else [*command, "--no-sandbox"]


class Launch:
    """Start it from the main thread: its processes die with the thread that started them."""

    def __init__(
        self,
        installation: Installation,
        folder: Path,
        *,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wake` is called whenever something may have changed, from any thread."""
        self._installation = installation
        self._folder = folder
        self._wake = wake
        self._clock = clock
        self._began_at = clock()
        self._launch_s: float | None = None
        self._weigh_at = 0.0
        self._memory_mb = 0.0
        self._programs: list[_Program] = []
        self._ended: list[_Program] = []
        self._pulses: list[_Pulse] = []

    def start(self) -> None:
        """Start both programs. Raises OSError if the kernel refuses; `end` is to be called even then."""
        installation, folder = self._installation, self._folder
        folder.mkdir(mode=0o700)
        if installation.account:
            shutil.chown(folder, installation.account)
        chrome = chrome_command(installation.chrome, folder / "profile", sandbox=installation.sandbox)
        driver = [installation.chromedriver, f"--port={_free_port()}"]
        for name, command, address in (
            ("Chrome", chrome, _CHROME_AT),
            ("chromedriver", driver, _CHROMEDRIVER_AT),
        ):
            environment = _environment(folder)
            self._programs.append(
                _Program(name, command, address, environment, installation.account, self._wake)
            )

    def sessions(self) -> dict[int, str]:
        """Each program leads a session of its own, in which its children stay: the program by the session."""
        return {program.pid: program.path for program in self._programs}

    def addresses(self) -> tuple[str, str]:
        """Of Chrome's browser websocket and of chromedriver; empty until it is known."""
        chrome, driver = (program.address for program in self._programs)
        return chrome, driver and f"http://127.0.0.1:{driver}"

    def look(self) -> Seen:
        """Asks nobody and waits for nothing: processes, and what the pulses heard."""
        now = self._clock()
        self._reap()
        self._begin_to_ask()
        self._ended = [program for program in self._programs if program.ended()]
        heard_at = [pulse.heard_at for pulse in self._pulses if pulse.heard_at is not None]
        if self._launch_s is None and len(heard_at) == len(self._programs):
            self._launch_s = now - self._began_at
            self._weigh_at = now
        return Seen(
            ended=" and ".join(program.ended() for program in self._ended),
            age_s=now - self._began_at,
            launch_s=self._launch_s,
            silent_s=now - min(heard_at, default=self._began_at),
            memory_mb=self._weigh(now),
            contexts=self._pulses[0].answer if self._pulses else 0,
        )

    def _weigh(self, now: float) -> float:
        """What Chrome takes. In a container with a limit all that counts against it, for the kernel kills by that."""
        if now >= self._weigh_at:  # not at each look: the kernel walks through every page
            self._memory_mb = processes.memory_mb(processes.descendants(os.getpid()))
            self._weigh_at = now + WEIGH_S
        return max(self._memory_mb, cgroup.used_mb() or 0.0)

    def _begin_to_ask(self) -> None:
        cdp, webdriver = self.addresses()
        if cdp and webdriver and not self._pulses:
            self._pulses = [
                _Pulse("chrome", _Contexts(cdp), self._wake, self._clock),
                _Pulse("chromedriver", _Readiness(webdriver), self._wake, self._clock),
            ]

    def end(self, patience_s: float) -> None:
        """End every process below us: asked first if there is patience, then killed. Removes the folder."""
        for pulse in self._pulses:
            pulse.stop()
        for program in self._programs:
            program.ask_to_end()
        self._await_end(self._clock() + patience_s)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _await_end(self, kill_at: float) -> None:
        """Look again until nobody is left, since Chrome may fork meanwhile; from `kill_at` on kill whoever is."""
        while self._clock() < kill_at + GONE_S:
            self._reap()
            left = processes.descendants(os.getpid())
            if not left:
                return
            if self._clock() >= kill_at:
                processes.kill(left)
            time.sleep(END_POLL_S)
        log.error("processes do not end", extra={"pids": sorted(processes.descendants(os.getpid()))})

    def last_words(self) -> str:
        """What the programs said last that ended by themselves, or all if none did. Ask after `end`."""
        said = (program.last_words() for program in self._ended or self._programs)
        return "\n".join(filter(None, said))

    def _reap(self) -> None:
        for program in self._programs:
            program.ended()
        processes.reap(but=[program.pid for program in self._programs])


def _free_port() -> int:
    """With `--port=0` chromedriver takes any port of IPv6 and ends if that is taken in IPv4, where most are used."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _environment(folder: Path) -> Mapping[str, str]:
    """Nothing of ours: no secret can leak, no proxy of the machine is used, nothing is written elsewhere."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "LANG": "C.UTF-8",
        "TZ": "Asia/Seoul",
        "HOME": str(folder),
        "TMPDIR": str(folder),
    }


class _Program:
    """A child whose output is read by a thread: the address that it tells, and the last lines for people."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        address: re.Pattern[str],
        environment: Mapping[str, str],
        account: str | None,
        wake: Callable[[], None],
    ) -> None:
        self._name = name
        self.path = command[0]
        self._pattern = address
        self._wake = wake
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.address = ""
        self._process = spawn(
            command, death_signal=signal.SIGKILL, user=account, env=environment, stdout=subprocess.PIPE
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"{name} output", daemon=True)
        self._reader.start()

    def ended(self) -> str:
        """How it ended; empty while it lives."""
        code = self._process.poll()
        if code is None:
            return ""
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{self._name} {how}"

    def last_words(self) -> str:
        """The last lines it said; complete once all its processes have ended."""
        self._reader.join(LAST_WORDS_S)
        return "\n".join(self._tail)

    def ask_to_end(self) -> None:
        self._process.terminate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                text = line.decode(errors="replace").rstrip()
                self._tail.append(text)
                if not self.address and (found := self._pattern.search(text)):
                    self.address = found[1]
                    self._wake()
        self._wake()


class _Pulse:
    """Asks one program again and again, in a thread of its own: when it answered last, and what."""

    def __init__(
        self, name: str, ask: Callable[[], int], wake: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._ask = ask
        self._wake = wake
        self._clock = clock
        self._done = threading.Event()
        self.heard_at: float | None = None
        self.answer = 0
        threading.Thread(target=self._run, name=f"{name} pulse", daemon=True).start()

    def stop(self) -> None:
        """It may hang in a last question until that times out."""
        self._done.set()

    def _run(self) -> None:
        while not self._done.is_set():
            with suppress(*NO_ANSWER):
                self.answer = self._ask()
                is_first, self.heard_at = self.heard_at is None, self._clock()
                if is_first:
                    self._wake()
            self._done.wait(ASK_S if self.heard_at else FIRST_ASK_S)


class _Contexts:
    """Asks Chrome how many browser contexts it has, over one connection for as long as that lasts."""

    def __init__(self, cdp: str) -> None:
        self._url = cdp
        self._cdp: Cdp | None = None

    def __call__(self) -> int:
        if self._cdp is None or self._cdp.is_lost:
            self._cdp = Cdp(self._url, timeout_s=ANSWER_S)
        return len(self._cdp.call("Target.getBrowserContexts", timeout_s=ANSWER_S)["browserContextIds"])


class _Readiness:
    """Asks chromedriver whether it is ready; there is nothing to count."""

    def __init__(self, webdriver: str) -> None:
        self._address = urlsplit(webdriver).netloc

    def __call__(self) -> int:
        connection = http.client.HTTPConnection(self._address, timeout=ANSWER_S)
        try:
            connection.request("GET", "/status")
            if not json.loads(connection.getresponse().read())["value"]["ready"]:
                raise ValueError("chromedriver is not ready")
        finally:
            connection.close()
        return 0
