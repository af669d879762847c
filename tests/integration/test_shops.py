"""`crawlfleet shops`, and the stand-in shops that `crawlfleet run --shops` starts for its sources."""

from __future__ import annotations

import json
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from terminal import Running, Seat, free_port, seat_in, source

from crawlfleet.cli import STAND_IN_PORTS
from crawlfleet.demo.stand_ins import STAND_INS
from crawlfleet.errors import BadInput, CrawlfleetError
from crawlfleet.local.shops import running_shops
from crawlfleet.manifests import CrawlSource, Manifests

LOOPBACK = "http://127.0.0.1"


@pytest.fixture
def seat(open_dir: Path) -> Iterator[Seat]:
    with seat_in(open_dir) as seat:
        yield seat


def manifests(*documents: dict[str, Any]) -> Manifests:
    sources = [CrawlSource.model_validate(document) for document in documents]
    return Manifests(sources={source.metadata.name: source for source in sources})


def at_cafe24(port: int, **spec: Any) -> dict[str, Any]:
    return source("cafe24", adapter="cafe24", baseURL=f"{LOOPBACK}:{port}/{{mall_id}}", **spec)


def at_ably(port: int, name: str = "ably", **spec: Any) -> dict[str, Any]:
    return source(name, adapter="ably", baseURL=f"{LOOPBACK}:{port}", **spec)


def status_of(url: str) -> int:
    with urlopen(url, timeout=10) as reply:
        return int(reply.status)


def counted_at_the_end(shops: Running) -> dict[str, dict[str, int]]:
    shops.signal(signal.SIGINT)
    assert shops.exit_code() == 0
    counted: dict[str, dict[str, int]] = json.loads(shops.stderr.splitlines()[-1])
    return counted


class TestCommand:
    def test_both_shops_are_served_by_one_process(self, seat: Seat) -> None:
        ports = free_port(), free_port()
        shops = seat.start("shops", "--cafe24-port", str(ports[0]), "--ably-port", str(ports[1]))
        shops.wait_for("stand-in shop ably")

        assert status_of(f"{LOOPBACK}:{ports[1]}/login") == 200
        assert f"stand-in shop cafe24: baseURL {LOOPBACK}:{ports[0]}/{{mall_id}}" in shops.stderr
        lines = [json.loads(line) for line in shops.stdout.splitlines()]
        assert Counter(line["source"] for line in lines) == {"cafe24": 100, "ably": 100}
        counted = counted_at_the_end(shops)
        assert (counted["cafe24"]["requests"], counted["ably"]["requests"]) == (0, 1)

    def test_one_may_be_served_alone(self, seat: Seat) -> None:
        port = free_port()
        shops = seat.start("shops", "--only", "ably", "--ably-port", str(port), "--users", "3")
        shops.wait_for("stand-in shop ably")

        assert len(shops.stdout.splitlines()) == 3
        assert list(counted_at_the_end(shops)) == ["ably"]

    def test_the_command_line_knows_every_shop(self) -> None:
        assert list(STAND_IN_PORTS) == list(STAND_INS)


class TestOfARun:
    def test_each_source_on_loopback_gets_its_shop(self) -> None:
        ports = free_port(), free_port()
        with running_shops(manifests(at_cafe24(ports[0]), source(), at_ably(ports[1]))) as shops:
            assert status_of(f"{LOOPBACK}:{ports[1]}/login") == 200
            counted = {shop.source: shop.counters() or {} for shop in shops}
        assert [shop.has_died() for shop in shops] == [True, True]
        assert "stale_refresh" in counted["cafe24"]
        assert counted["ably"]["requests"] == 1

    def test_a_shop_brings_its_sellers_to_the_source_that_it_plays(self) -> None:
        with running_shops(manifests(at_ably(free_port(), name="my-ably"))) as (shop,):
            accounts = list(shop.accounts())
        assert [account.user_id for account in accounts] == list(range(1, 101))
        assert {account.source for account in accounts} == {"my-ably"}
        assert [a.user_id for a in accounts if "token" in a.credentials] == list(range(10, 101, 10))

    def test_a_source_at_the_real_platform_is_left_alone(self) -> None:
        real = source("real", adapter="cafe24")
        with running_shops(manifests(real, at_ably(free_port()))) as shops:
            assert [shop.source for shop in shops] == ["ably"]

    def test_without_a_source_on_loopback_there_is_nothing_to_serve(self) -> None:
        with pytest.raises(BadInput, match="adapter ably"), running_shops(manifests(source())):
            pass

    def test_a_port_that_is_taken_ends_the_others(self) -> None:
        port = free_port()
        taken = manifests(at_cafe24(port), at_ably(port, name="second"))
        with pytest.raises(CrawlfleetError, match=f"cannot listen on port {port}"), running_shops(taken):
            pass
        socket.create_server(("127.0.0.1", port)).close()
