"""A real `crawlfleet chrome` for tests: started, asked, hurt, and what is left of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fleet import until
from processes import Watch, descendants

from crawlfleet.browser.cdp import Cdp
from crawlfleet.child import spawn

Json = dict[str, Any]


def require_chrome() -> None:
    """Skip without Chrome, but never in CI."""
    if not shutil.which("chromedriver") or not shutil.which("chromium-headless-shell"):
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("Chrome is not installed: apt-get install chromium-headless-shell chromium-driver")


class Supervised:
    """A supervisor whose control port is ours, as a local fleet holds it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.log = folder.with_suffix(".log")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._environment = environment
        self._connections = ExitStack()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        own = {k: v for k, v in os.environ.items() if not k.startswith("CRAWLFLEET_")}
        own |= {
            "CRAWLFLEET_CHROME_DIR": str(self.folder),
            "CRAWLFLEET_CHROME_FD": str(self._listener.fileno()),
        }
        with self.log.open("ab") as output:
            return spawn(
                [sys.executable, "-m", "crawlfleet", "chrome"],
                death_signal=signal.SIGTERM,
                env=own | self._environment,
                stdout=output,
                pass_fds=[self._listener.fileno()],
            )

    @property
    def url(self) -> str:
        """Its control port."""
        return f"http://127.0.0.1:{self.port}"

    def start_again(self) -> None:
        """Another supervisor in the same folder, at the same port."""
        self.process.wait()
        self.process = self._start()

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, Json]:
        """Status code and body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request(method, path, headers=headers or {})
            reply = connection.getresponse()
            return reply.status, json.load(reply)
        finally:
            connection.close()

    def status(self) -> Json:
        """Empty while nobody answers."""
        with suppress(OSError, HTTPException):
            return self.ask("GET", "/status")[1]
        return {}

    def ready(self, generation: int = 1) -> Json:
        """Its status once that generation, or a later one, is ready."""

        def is_ready() -> Json:
            assert self.process.poll() is None, self.log.read_text()
            status = self.status()
            return status if status.get("ready") and status["generation"] >= generation else {}

        return until(is_ready, f"generation {generation} to be ready")

    def pid_of(self, program: str) -> int:
        """The process that was launched as `chromium…` or `chromedriver`."""
        (pid,) = [pid for pid in _children(self.process.pid) if Path(_program(pid)).name.startswith(program)]
        return pid

    def descendants(self) -> set[int]:
        return descendants(self.process.pid)

    def watch(self) -> Watch:
        """Of everything below it at this moment."""
        return Watch(*self.descendants())

    def cdp(self) -> Devtools:
        """A connection to Chrome, closed at the end."""
        return self._connections.enter_context(closing(Devtools(self.ready()["cdp"])))

    def end(self) -> None:
        self._connections.close()
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
        self._listener.close()


class Devtools:
    """Commands to Chrome over its browser websocket."""

    def __init__(self, url: str) -> None:
        self._cdp = Cdp(url)

    def __call__(self, method: str, session: str = "", **params: object) -> Json:
        return self._cdp.call(method, params, session=session, timeout_s=20)

    def context(self) -> str:
        """A new browser context."""
        return str(self("Target.createBrowserContext")["browserContextId"])

    def page(self) -> str:
        """The session of a new page in a browser context of its own."""
        target = self("Target.createTarget", url="about:blank", browserContextId=self.context())["targetId"]
        session: str = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return session

    def evaluate(self, session: str, expression: str) -> Any:
        found = self("Runtime.evaluate", session, expression=expression, returnByValue=True)
        return found["result"].get("value")

    def close(self) -> None:
        self._cdp.close()


@contextmanager
def supervised(folder: Path, **environment: str) -> Iterator[Supervised]:
    """Running, and ended at the end."""
    chrome = Supervised(folder, **environment)
    try:
        yield chrome
    finally:
        chrome.end()


def environment_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(line.split("=", 1) for line in text.split("\0") if line)


def listening_addresses(url: str) -> set[str]:
    """The addresses on which the port of the URL listens, as the kernel writes them."""
    port = f"{urlsplit(url).port:04X}"
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()
    ]
    listening = [line[1].split(":") for line in lines if line[3] == "0A"]
    return {address for address, at in listening if at == port}


def _children(pid: int) -> set[int]:
    return {child for child in descendants(pid) if _parent(child) == pid}


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _program(pid: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/exe")
    return ""
