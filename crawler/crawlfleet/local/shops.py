"""The stand-in shops beside a local run: a process each, their accounts, their counters at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit
from urllib.request import urlopen

from crawlfleet.accounts import Account
from crawlfleet.child import spawn
from crawlfleet.demo.stand_ins import STAND_INS
from crawlfleet.errors import BadInput, CrawlfleetError
from crawlfleet.manifests import CrawlSource, Manifests

USERS = 100
STOP_S = 5.0


class Shop:
    """The process of a running stand-in shop, which plays the platform of `source`."""

    def __init__(self, process: subprocess.Popen[bytes], source: CrawlSource, port: int) -> None:
        self.source = source.metadata.name
        self._stand_in = STAND_INS[source.spec.adapter]
        self._process = process
        self._url = f"http://127.0.0.1:{port}"

    def has_died(self) -> bool:
        """Whether somebody ended it: then no crawl of its source can succeed any more."""
        return self._process.poll() is not None

    def counters(self) -> dict[str, int] | None:
        """What it saw of its clients; None if it is gone."""
        try:
            with urlopen(f"{self._url}/_counters", timeout=5) as reply:  # noqa: S310 - our own child, on loopback
                found: dict[str, int] = json.load(reply)
        except OSError:
            return None
        return found

    def accounts(self) -> Iterator[Account]:
        """The accounts of its sellers at the source that it plays."""
        for line in self._stand_in.accounts(USERS, datetime.now(UTC)):
            yield Account(
                user_id=line["user_id"],
                source=self.source,
                subscription=line["subscription"],
                last_login_at=datetime.fromisoformat(line["last_login_at"]),
                credentials=line["credentials"],
            )


@contextmanager
def running_shops(manifests: Manifests) -> Iterator[Sequence[Shop]]:
    """Serve a shop wherever a source of the manifests looks for one on loopback, until the end.

    Each counts what breaks its source's promises. Raises BadInput if no source looks for one, CrawlfleetError if
    a port is taken.
    """
    places = [(source, port) for source in manifests.sources.values() if (port := _demo_port(source))]
    if not places:
        raise BadInput(
            "--shops needs a CrawlSource with adapter cafe24 and a baseURL like http://127.0.0.1:8024/{mall_id},"
            " or with adapter ably and one like http://127.0.0.1:8025"
        )
    with ExitStack() as started:
        yield [started.enter_context(_running_shop(source, port)) for source, port in places]


@contextmanager
def _running_shop(source: CrawlSource, port: int) -> Iterator[Shop]:
    adapter, spec = source.spec.adapter, source.spec
    command = [sys.executable, "-m", "crawlfleet", "shops", "--only", adapter, "--users", "0"]
    command += [f"--{adapter}-port", str(port)]
    command += ["--cap", str(spec.max_concurrent), "--pace", str(spec.requests_per_second or 0)]
    process = spawn(command, death_signal=signal.SIGKILL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout as output:
        try:
            said = output.readline().decode(errors="replace").strip().removeprefix("crawlfleet: ")
            if not said.startswith("stand-in shop"):
                raise CrawlfleetError(f"the stand-in shop did not start: {said or 'it said nothing'}")
            yield Shop(process, source, port)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _demo_port(source: CrawlSource) -> int | None:
    """The loopback port on which a source looks for a platform that can be played."""
    address = urlsplit(source.spec.base_url or "")
    if source.spec.adapter not in STAND_INS or address.hostname != "127.0.0.1":
        return None
    return address.port
