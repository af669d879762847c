"""The stand-in shops over real sockets, directly and through a real proxy."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import requests
from http_proxy import HttpProxy

from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.shop import Cafe24Shop
from crawlfleet.demo.cafe24.tokens import CLIENT_ID, client_secret, refresh_token
from crawlfleet.demo.server import ShopServer
from crawlfleet.demo.violations import Agreement

CONFIG = Cafe24Config()
ORDERS = "api/v2/admin/orders"
TIMEOUT_S = 10


@pytest.fixture
def shops() -> Iterator[ShopServer[Cafe24Shop]]:
    with ShopServer(Cafe24Shop(CONFIG)) as server:
        yield server


@pytest.fixture
def client() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.headers["X-Cafe24-Api-Version"] = "2025-12-01"
        yield session


def refresh(
    shops: ShopServer[Cafe24Shop], client: requests.Session, mall: str = "demo1", **kwargs: Any
) -> requests.Response:
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token(CONFIG, mall)}
    auth = (CLIENT_ID, client_secret(CONFIG))
    url = f"{shops.url}/{mall}/api/v2/oauth/token"
    return client.post(url, data=form, auth=auth, timeout=TIMEOUT_S, **kwargs)


def get_orders(
    shops: ShopServer[Cafe24Shop],
    client: requests.Session,
    timeout_s: float = TIMEOUT_S,
    mall: str = "demo1",
    **kwargs: Any,
) -> requests.Response:
    """One page of orders; the first call of a client gets its token."""
    if "Authorization" not in client.headers:
        client.headers["Authorization"] = (
            "Bearer " + refresh(shops, client, mall, **kwargs).json()["access_token"]
        )
    window = {"start_date": str(shops.shop.today), "end_date": str(shops.shop.today)}
    return client.get(f"{shops.url}/{mall}/{ORDERS}", params=window, timeout=timeout_s, **kwargs)


def test_a_client_refreshes_and_reads_orders(shops: ShopServer[Cafe24Shop], client: requests.Session) -> None:
    replies = [get_orders(shops, client) for _ in range(3)]
    assert [len(reply.json()["orders"]) for reply in replies] == [1, 1, 1]
    assert replies[-1].headers["X-Api-Call-Limit"] == "3/40"


def test_a_connection_is_kept_for_the_next_request(shops: ShopServer[Cafe24Shop]) -> None:
    with contextlib.closing(
        HTTPConnection(shops.url.removeprefix("http://"), timeout=TIMEOUT_S)
    ) as connection:
        sockets = []
        for path in ("/_counters", f"/demo1/{ORDERS}", "/nowhere"):
            connection.request("GET", path)
            connection.getresponse().read()
            sockets.append(connection.sock)
    assert sockets[0] is sockets[1] is sockets[2] is not None


def test_requests_that_take_time_are_all_in_flight(shops: ShopServer[Cafe24Shop]) -> None:
    """A reply that takes no time is over before the next thread runs, so concurrency shows with a delay only."""
    shops.switch(slow_s=60)
    url = shops.url.removeprefix("http://")
    connections = [HTTPConnection(url, timeout=TIMEOUT_S) for _ in range(20)]
    for no, connection in enumerate(connections):
        connection.request("GET", f"/demo{no}/{ORDERS}")
    with contextlib.closing(HTTPConnection(url, timeout=TIMEOUT_S)) as looking:
        while shops.witness.counters().requests < 20:
            looking.request("GET", "/_counters")
            looking.getresponse().read()
    assert shops.witness.counters().peak_in_flight == 20
    for connection in connections:
        connection.close()


def test_the_counters_are_served(shops: ShopServer[Cafe24Shop], client: requests.Session) -> None:
    get_orders(shops, client)
    counters = client.get(f"{shops.url}/_counters", timeout=TIMEOUT_S).json()
    assert counters == shops.witness.counters().as_dict()
    assert (counters["requests"], counters["peak_in_flight"], counters["violations"]) == (2, 1, 0)


def test_traps_are_switched_by_http(shops: ShopServer[Cafe24Shop], client: requests.Session) -> None:
    change = {"accounts": {"demo1": {"maintenance": True}}}
    shown = client.post(f"{shops.url}/_control", json=change, timeout=TIMEOUT_S).json()
    assert shown == client.get(f"{shops.url}/_control", timeout=TIMEOUT_S).json()
    assert shown["accounts"] == change["accounts"]
    assert refresh(shops, client).status_code == 503


@pytest.mark.parametrize("body", ['{"all": {"drop": true}}', "{", "[]"])
def test_a_wrong_switch_is_refused_with_the_reason(
    shops: ShopServer[Cafe24Shop], client: requests.Session, body: str
) -> None:
    reply = client.post(f"{shops.url}/_control", data=body, timeout=TIMEOUT_S)
    assert reply.status_code == 400
    assert reply.json()["error"]


def test_a_path_of_no_mall_is_not_found(shops: ShopServer[Cafe24Shop], client: requests.Session) -> None:
    assert client.get(f"{shops.url}/", timeout=TIMEOUT_S).status_code == 404
    assert client.get(f"{shops.url}/demo1/api/v2/admin", timeout=TIMEOUT_S).status_code == 404


def test_a_truncated_reply_is_cut_short(shops: ShopServer[Cafe24Shop], client: requests.Session) -> None:
    get_orders(shops, client)
    shops.switch(truncated=True)
    with pytest.raises(requests.exceptions.ChunkedEncodingError, match="IncompleteRead"):
        get_orders(shops, client)


def test_a_dripping_reply_never_ends_but_its_client_may_leave(
    shops: ShopServer[Cafe24Shop], client: requests.Session
) -> None:
    get_orders(shops, client)
    shops.switch(drip=True)
    with get_orders(shops, client, stream=True) as reply:
        assert reply.raw.read(2) == b"  "
    shops.switch(drip=False)
    assert get_orders(shops, client).status_code == 200
    assert shops.witness.counters().violations() == 0


def test_a_slow_reply_is_given_up_without_an_overlap(
    shops: ShopServer[Cafe24Shop], client: requests.Session
) -> None:
    get_orders(shops, client)
    shops.switch(slow_s=60)
    with pytest.raises(requests.exceptions.ReadTimeout):
        get_orders(shops, client, timeout_s=0.1)
    shops.switch(slow_s=0)
    assert get_orders(shops, client).status_code == 200
    assert shops.witness.counters().violations() == 0


def test_two_requests_at_once_are_an_overlap(shops: ShopServer[Cafe24Shop], client: requests.Session) -> None:
    get_orders(shops, client)
    shops.switch(drip=True)
    with get_orders(shops, client, stream=True):
        shops.switch(drip=False)
        assert get_orders(shops, client).status_code == 200
    assert shops.witness.counters().account_overlap == 1


def test_a_lost_refresh_reply_took_effect(shops: ShopServer[Cafe24Shop], client: requests.Session) -> None:
    shops.switch(lose_refresh_reply=True)
    with pytest.raises(requests.exceptions.ConnectionError):
        refresh(shops, client)
    shops.switch(lose_refresh_reply=False)
    assert refresh(shops, client).json()["error"] == "invalid_grant"


def test_a_huge_page_arrives_whole(shops: ShopServer[Cafe24Shop], client: requests.Session) -> None:
    get_orders(shops, client)
    shops.switch_account("demo1", huge_page_bytes=3_000_000)
    reply = get_orders(shops, client)
    assert len(reply.content) == int(reply.headers["Content-Length"]) > 3_000_000
    assert len(reply.json()["orders"]) == 1


def test_a_stop_hangs_up_on_waiting_clients(shops: ShopServer[Cafe24Shop], client: requests.Session) -> None:
    get_orders(shops, client)
    shops.switch(drip=True)
    url = shops.url
    with get_orders(shops, client, stream=True) as reply:
        shops.stop()
        assert reply.raw.read().strip() == b""
    with pytest.raises(requests.exceptions.ConnectionError):
        client.get(f"{url}/_counters", timeout=TIMEOUT_S)


def test_a_hundred_clients_at_once_are_served(shops: ShopServer[Cafe24Shop]) -> None:
    def crawl(user_id: int) -> int:
        with requests.Session() as client:
            client.trust_env = False
            client.headers["X-Cafe24-Api-Version"] = "2025-12-01"
            return sum(get_orders(shops, client, mall=f"demo{user_id}").ok for _ in range(3))

    with ThreadPoolExecutor(100) as pool:
        assert sum(pool.map(crawl, range(1, 101))) == 300
    counters = shops.witness.counters()
    assert (counters.requests, counters.violations()) == (400, 0)


def test_a_proxy_is_an_egress_of_its_own(client: requests.Session) -> None:
    config = Cafe24Config(agreement=Agreement(reaction_s=0.0))
    with ShopServer(Cafe24Shop(config)) as shops, HttpProxy("exit1") as proxy:
        through = {"http": proxy.url}
        get_orders(shops, client, proxies=through)
        shops.switch(ban_s=60)
        assert get_orders(shops, client, proxies=through).status_code == 403
        shops.switch_account("demo1", ban_s=0)
        assert get_orders(shops, client).status_code == 200
        assert get_orders(shops, client, proxies=through).status_code == 403
        assert (shops.witness.counters().during_ban, proxy.requests) == (1, 4)


def test_a_proxy_can_demand_credentials(shops: ShopServer[Cafe24Shop], client: requests.Session) -> None:
    with HttpProxy("exit1", credentials=("user", "secret")) as proxy:
        assert refresh(shops, client, proxies={"http": proxy.url}).status_code == 200
        without = proxy.url.replace("user:secret@", "")
        assert refresh(shops, client, proxies={"http": without}).status_code == 407
        assert (proxy.requests, proxy.refused) == (1, 1)


def test_a_proxy_says_when_the_shop_is_not_there(client: requests.Session) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with HttpProxy("exit1") as proxy:
            assert client.get(url, proxies={"http": proxy.url}, timeout=TIMEOUT_S).status_code == 502


def test_a_client_that_leaves_the_proxy_leaves_the_shop(
    shops: ShopServer[Cafe24Shop], client: requests.Session
) -> None:
    with HttpProxy("exit1") as proxy:
        get_orders(shops, client, proxies={"http": proxy.url})
        shops.switch(drip=True)
        before = set(threading.enumerate())
        with get_orders(shops, client, proxies={"http": proxy.url}, stream=True) as reply:
            assert reply.raw.read(1) == b" "
            serving = set(threading.enumerate()) - before
        assert len(serving) == 2
        for thread in serving:
            thread.join(TIMEOUT_S)
        assert not any(thread.is_alive() for thread in serving)


def test_the_examples_of_the_documentation_switch_what_they_say(
    shops: ShopServer[Cafe24Shop], client: requests.Session
) -> None:
    doc = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
    on, off = re.findall(r"^curl \S+/_control -d '(.*)'$", doc, re.MULTILINE)

    shown = client.post(f"{shops.url}/_control", data=on, timeout=TIMEOUT_S).json()
    assert (shown["all"]["slow_s"], shown["accounts"]) == (0.5, {"demo3": {"revoke_tokens": True}})
    shown = client.post(f"{shops.url}/_control", data=off, timeout=TIMEOUT_S).json()
    assert not any(shown["all"].values())
