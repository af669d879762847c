"""The shops that tests look into: what they saw, and where they hold a client."""

from __future__ import annotations

import threading

import pytest
import requests
from fleet import WatchedAblyShop, WatchedShop

TIMEOUT_S = 10


def client() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def log_in(shop: WatchedAblyShop, credentials: dict[str, str]) -> requests.Response:
    with client() as session:
        return session.post(f"{shop.base_url}/seller/login/", json=credentials, timeout=TIMEOUT_S)


def test_a_watched_shop_logs_who_came_and_what_for() -> None:
    with WatchedAblyShop() as shop, client() as session:
        token = {"Authorization": f"JWT {shop.credentials(10)['token']}"}
        session.get(f"{shop.base_url}/login", timeout=TIMEOUT_S)
        session.get(f"{shop.base_url}/seller/order_items/", headers=token, timeout=TIMEOUT_S)
        assert [(seen.account, seen.what) for seen in shop.seen()] == [
            ("", "login page"),
            ("demo10", "order_items"),
        ]
        assert [seen.what for seen in shop.seen(account="demo10")] == ["order_items"]


def test_a_gate_holds_the_answer_until_it_is_opened() -> None:
    with WatchedAblyShop() as shop:
        gate = shop.gate("login", accounts=["demo1"], most=1)
        replies: list[requests.Response] = []
        held = threading.Thread(target=lambda: replies.append(log_in(shop, shop.credentials(1))))
        held.start()
        gate.wait()
        assert log_in(shop, shop.credentials(2)).status_code == 200
        assert not replies
        gate.open()
        held.join(TIMEOUT_S)
        assert [reply.status_code for reply in replies] == [200]


def test_a_new_password_works_where_the_old_one_did() -> None:
    with WatchedAblyShop() as shop:
        assert log_in(shop, shop.credentials(1)).status_code == 200
        assert log_in(shop, shop.new_password(1)).status_code == 200
        assert log_in(shop, shop.credentials(1)).status_code == 401
        assert shop.violations() == {}


@pytest.mark.parametrize("kind", [WatchedShop, WatchedAblyShop])
def test_a_watched_shop_knows_the_truth_of_its_sellers(kind: type[WatchedShop | WatchedAblyShop]) -> None:
    truth = kind().truth([1, 2])
    assert list(truth) == [1, 2]
    assert truth[1].keys().isdisjoint(key for key in truth[2] if key[0] == "order_item")
