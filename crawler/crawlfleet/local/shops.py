"""The stand-in shop beside a local run: its own process, its accounts, its counters at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit
from urllib.request import urlopen

from crawlfleet.accounts import Account
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.tokens import demo_accounts
from crawlfleet.errors import BadInput, CrawlfleetError
from crawlfleet.local.child import spawn
from crawlfleet.manifests import CrawlSource, Manifests

USERS = 100
STOP_S = 5.0


class Shop:
    """The process of a running stand-in shop, which plays the platform of `source`."""

    def __init__(self, process: subprocess.Popen[bytes], source: str, port: int) -> None:
        self.source = source
        self._process = process
        self._url = f"http://127.0.0.1:{port}"

    def has_died(self) -> bool:
        """Whether somebody ended it: then no crawl can succeed any more."""
        return self._process.poll() is not None

    def counters(self) -> dict[str, int] | None:
        """What it saw of its clients; None if it is gone."""
        try:
            with urlopen(f"{self._url}/_counters", timeout=5) as reply:  # noqa: S310 - our own child, on loopback
                found: dict[str, int] = json.load(reply)
        except OSError:
            return None
        return found


def shop_accounts(source: str) -> Iterator[Account]:
    """The accounts of the stand-in shop's sellers at the source that it plays."""
    for line in demo_accounts(USERS, Cafe24Config(), datetime.now(UTC)):
        yield Account(
            user_id=line["user_id"],
            source=source,
            subscription=line["subscription"],
            last_login_at=datetime.fromisoformat(line["last_login_at"]),
            credentials=line["credentials"],
        )


@contextmanager
def running_shop(manifests: Manifests) -> Iterator[Shop]:
    """Serve the shop where the manifests' cafe24 source looks for it, until the end.

    It counts what breaks the source's promises. Raises BadInput if no source points at a loopback port,
    CrawlfleetError if the port is taken.
    """
    source = _demo_source(manifests)
    port = urlsplit(source.spec.base_url or "").port or 0
    command = [sys.executable, "-m", "crawlfleet", "shops", "--port", str(port), "--users", "0"]
    command += ["--cap", str(source.spec.max_concurrent), "--pace", str(source.spec.requests_per_second or 0)]
    process = spawn(command, death_signal=signal.SIGKILL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        try:
            said = output.readline().decode(errors="replace").strip().removeprefix("crawlfleet: ")
            if not said.startswith("stand-in shop"):
                raise CrawlfleetError(f"the stand-in shop did not start: {said or 'it said nothing'}")
            yield Shop(process, source.metadata.name, port)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _demo_source(manifests: Manifests) -> CrawlSource:
    for source in manifests.sources.values():
        address = urlsplit(source.spec.base_url or "")
        if source.spec.adapter == "cafe24" and address.hostname == "127.0.0.1" and address.port:
            return source
    raise BadInput(
        "--shops needs a CrawlSource with adapter cafe24 and a baseURL like http://127.0.0.1:8024/{mall_id}"
    )
