"""The memory of a worker that reads 20 malls at once, in pages of 1,000 orders."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from figures import Figure, at_most
from rig import Rig, await_that

from crawlfleet.accounts import Account
from crawlfleet.apply import import_accounts
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.shop import Cafe24Shop
from crawlfleet.demo.cafe24.tokens import demo_accounts
from crawlfleet.demo.server import ShopServer
from crawlfleet.planner import BatchPlan, Selector, plan
from crawlfleet.store.sources import EgressSpec, Settings, put_source

CRAWLS, MALLS, ORDERS = 20, 40, 3000
BAR_MB = 120


def measure(rig: Rig) -> list[Figure]:
    """VmHWM of one worker process: 40 malls with 3,000 orders, 20 at a time, from the stand-in shop."""
    config = Cafe24Config(orders_per_mall=ORDERS)
    with rig.bed(1) as bed, ShopServer(Cafe24Shop(config)) as shop:
        put_source(bed.conn, "cafe24", [EgressSpec("direct", "shop/direct", None, CRAWLS, 0, 60, 3600)])
        import_accounts(
            bed.conn, bed.keys, [_account(line) for line in demo_accounts(MALLS, config, datetime.now(UTC))]
        )
        settings = Settings(
            "cafe24", shop.url + "/{mall_id}", {"days": 7}, 600, retry=4, crashed=5, throttled_s=3600
        )
        plan(bed.conn, BatchPlan("memory", "memory", 1, Selector(), {"cafe24": settings}))
        most_mb, at_once = 0.0, 0
        with bed.workers("memory", [0], slots=CRAWLS) as (worker,):

            def has_ended() -> bool:
                nonlocal most_mb, at_once
                most_mb = max(most_mb, _peak_mb(worker.process.pid))
                at_once = max(at_once, bed.number("select count(lease_id) from permit"))
                return worker.process.poll() is not None

            worker.worker_id()
            await_that(has_ended, 180, "the end of the batch")
        items = bed.number("select count(*) from item where kind = 'order'")
    if items != MALLS * ORDERS or at_once != CRAWLS:
        raise RuntimeError(
            f"{items} orders instead of {MALLS * ORDERS}, {at_once} crawls at once; log {worker.log}"
        )
    said = f"{items:,} orders stored, {at_once} crawls at once"
    return [at_most("worker memory, 20 crawls of 1,000-order pages", most_mb, BAR_MB, "MB", said)]


def _account(line: dict[str, object]) -> Account:
    return Account(int(str(line["user_id"])), "cafe24", "free", None, line["credentials"])  # type: ignore[arg-type]


def _peak_mb(pid: int) -> float:
    """The high-water mark of its resident memory; 0 once it has ended."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except FileNotFoundError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0
