"""One crawl alone, between a real egress and a real shop, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext

import pytest
from builders import (
    SETTINGS,
    add_accounts,
    declare_source,
    egress,
    plan_batch,
    register_worker,
    session_keys,
    take,
)
from scripted_shop import ScriptedShop, json_reply

from crawlfleet.crawl import Exit, LiveCrawl, Source
from crawlfleet.sources.noop import Noop
from crawlfleet.store.connection import Connection
from crawlfleet.tokens import PendingStores, Tokens

GAP_S = 0.1


@pytest.fixture
def shop() -> Iterator[ScriptedShop]:
    with ScriptedShop(lambda _: json_reply({})) as shop:
        yield shop


class Turns:
    """A crawl's database and its clock: after so many of its reservations the crawl's thread stands for seconds."""

    def __init__(self, conn: Connection, late: int) -> None:
        self._conn = conn
        self._late = late
        self._now_s = 0.0
        self.reserved = 0

    def database(self) -> AbstractContextManager[Connection]:
        self.reserved += 1
        return nullcontext(self._conn)

    def clock(self) -> float:
        """The time between two readings is what the thread stands for."""
        if 0 < self.reserved <= self._late:
            self._now_s += 2
        return self._now_s


@pytest.mark.parametrize(("late", "reserved"), [(0, 1), (1, 2), (3, 4)])
def test_a_thread_that_wakes_late_reserves_its_turn_again(
    conn: Connection, shop: ScriptedShop, late: int, reserved: int
) -> None:
    """Late requests of several crawls would otherwise leave at once, whatever the pace."""
    declare_source(conn, egress(gap_us=round(GAP_S * 1e6)))
    add_accounts(conn, [1])
    [lease] = take(conn, register_worker(conn, plan_batch(conn)))
    turns = Turns(conn, late)
    source = Source(lease.source_id, "shop", SETTINGS, Noop({}))
    tokens = Tokens(turns.database, session_keys(), PendingStores(), "shop", lease)
    way_out = Exit(lease.egress_id, lease.source_id, None)
    crawl = LiveCrawl(lease, source, tokens, way_out, turns.database, None, stop_at=50, clock=turns.clock)

    with closing(crawl), crawl.request("GET", shop.url):
        pass

    assert turns.reserved == reserved
    assert len(shop.requests) == 1
