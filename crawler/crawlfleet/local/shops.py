"""The stand-in shop beside a local run: its own process, its accounts, its counters at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from crawlfleet.accounts import Account
from crawlfleet.demo.cafe24 import ShopConfig, demo_accounts
from crawlfleet.demo.violations import Agreement
from crawlfleet.errors import BadInput, CrawlfleetError
from crawlfleet.local.child import spawn
from crawlfleet.manifests import CrawlSource, Manifests

USERS = 100


def shop_config(source: CrawlSource | None) -> ShopConfig:
    """The stand-in shop, told what the source promises: it counts what breaks the promise."""
    if source is None:
        return ShopConfig()
    spec = source.spec
    return ShopConfig(
        agreement=Agreement(malls_per_egress=spec.max_concurrent, pace_per_s=spec.requests_per_second or 0)
    )


def shop_accounts(users: int) -> Iterator[Account]:
    """The accounts of the stand-in shop's sellers."""
    for line in demo_accounts(users, ShopConfig(), datetime.now(UTC)):
        yield Account(
            user_id=line["user_id"],
            source=line["source"],
            subscription=line["subscription"],
            last_login_at=datetime.fromisoformat(line["last_login_at"]),
            credentials=line["credentials"],
        )


@contextmanager
def running_shop(manifests: Manifests) -> Iterator[str]:
    """Serve the shop where the manifests' cafe24 source looks for it, until the end: yields its URL.

    Raises BadInput if no source points at a loopback port, CrawlfleetError if the port is taken.
    """
    source = _demo_source(manifests)
    port = urlsplit(source.spec.base_url or "").port
    command = [sys.executable, "-m", "crawlfleet", "shops", "--port", str(port), "--users", "0"]
    command += ["--cap", str(source.spec.max_concurrent), "--pace", str(source.spec.requests_per_second or 0)]
    shop = spawn(command, death_signal=signal.SIGKILL, stdout=subprocess.PIPE)
    try:
        ready = shop.stdout.readline().decode() if shop.stdout else ""
        if not ready.startswith("stand-in shop"):
            raise CrawlfleetError(f"the stand-in shop did not start: {ready.strip() or 'no output'}")
        yield f"http://127.0.0.1:{port}"
    finally:
        shop.terminate()
        shop.wait()
        if shop.stdout:
            shop.stdout.close()


def counters(url: str) -> dict[str, Any]:
    """What the shop saw, empty if it is gone."""
    try:
        with urlopen(f"{url}/_counters", timeout=5) as reply:  # noqa: S310  loopback, from our own manifest
            found: dict[str, Any] = json.load(reply)
    except (URLError, OSError):
        return {}
    return found


def _demo_source(manifests: Manifests) -> CrawlSource:
    for source in manifests.sources.values():
        address = urlsplit(source.spec.base_url or "")
        if source.spec.adapter == "cafe24" and address.hostname == "127.0.0.1" and address.port:
            return source
    raise BadInput(
        "--shops needs a CrawlSource with adapter cafe24 and a baseURL like http://127.0.0.1:8024/{mall_id}"
    )
