"""Real crawls of the stand-in shop: what they bring, how they end, when they are ended, what they cost."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from fleet import Fleet, WatchedShop, until

LIVING_TOKEN = {"access_token": "a-token", "expires_at": "2099-01-01T00:00:00"}


@contextmanager
def silent_server(first_bytes: bytes) -> Iterator[str]:
    """A server that answers every connection with these bytes and then neither speaks nor hangs up: its URL."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):  # closed
                while True:
                    connection, _ = listener.accept()
                    connections.append(connection)
                    connection.recv(65_536)
                    connection.sendall(first_bytes)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()


# What a crawl brings.


def test_the_items_are_exactly_what_the_shop_has(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=30)
    fleet.plan(workers=2)
    fleet.run(workers=2)
    assert fleet.items() == shop.truth(range(1, 31))
    assert shop.violations() == {}


def test_an_account_gets_one_refresh_and_its_new_tokens_are_stored(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=1)
    fleet.plan()
    fleet.run()
    stored = fleet.credentials(1)
    assert len(shop.seen("token")) == 1
    assert stored["refresh_token"] != shop.credentials(1)["refresh_token"]
    assert stored["access_token"]


def test_the_next_batch_uses_the_stored_access_token(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=2)
    fleet.plan()
    fleet.run()
    fleet.plan("next")
    assert fleet.start(CRAWLFLEET_BATCH="next").exit_code() == 0
    assert len(shop.seen("token")) == 2
    assert set(fleet.tasks("next").values()) == {("ok", "ok")}


def test_crawling_again_writes_only_what_changed(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=1)
    fleet.plan()
    fleet.run()
    versions = fleet.scalar("select array_agg(xmin::text order by kind, external_id) from item")
    fleet.plan("next")
    assert fleet.start(CRAWLFLEET_BATCH="next").exit_code() == 0
    assert fleet.scalar("select array_agg(xmin::text order by kind, external_id) from item") == versions


def test_server_errors_are_retried_until_the_crawl_is_complete(fleet: Fleet, shop: WatchedShop) -> None:
    shop.switch(error_500=0.15)
    fleet.cafe24(shop, users=8, budgets={"retry": 50})
    fleet.plan()
    fleet.run()
    assert fleet.items() == shop.truth(range(1, 9))
    assert fleet.all_failures() == {("retry", "ServerError")}


@pytest.mark.parametrize(
    ("trap", "ending"),
    [
        ({"html_200": True}, ("bug", "UnexpectedReply")),
        ({"empty_body": True}, ("bug", "UnexpectedReply")),
        ({"error_in_200": True}, ("bug", "UnexpectedReply")),
        ({"unknown_reply": True}, ("bug", "UnexpectedReply")),
        ({"revoke_tokens": True}, ("auth", "RefreshRefused")),
        ({"scope_removed": True}, ("auth", "ScopeMissing")),
        ({"maintenance": True}, ("retry", "ServerError")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_spoiled_reply_is_never_an_account_without_orders(
    fleet: Fleet, shop: WatchedShop, trap: dict[str, Any], ending: tuple[str, str]
) -> None:
    shop.switch_account("demo1", **trap)
    fleet.cafe24(shop, users=2, budgets={"retry": 0})
    fleet.plan()
    fleet.run()
    assert fleet.tasks() == {1: ("dead", ending[0]), 2: ("ok", "ok")}
    assert fleet.failures(1) == [ending]
    assert fleet.items() == shop.truth([2])


def test_a_refused_token_parks_the_account_until_it_is_imported_anew(fleet: Fleet, shop: WatchedShop) -> None:
    shop.switch_account("demo1", revoke_tokens=True)
    fleet.cafe24(shop, users=2)
    fleet.plan()
    fleet.run()
    requests = len(shop.seen(account="demo1"))
    fleet.plan("next")
    assert fleet.start(CRAWLFLEET_BATCH="next").exit_code() == 0
    assert fleet.tasks("next") == {1: ("dead", "auth"), 2: ("ok", "ok")}
    assert len(shop.seen(account="demo1")) == requests
    assert fleet.scalar("select state::text || ' ' || reason from account where user_id = 1") == (
        "auth RefreshRefused"
    )


# When a crawl takes too long.


def expect_deadline(fleet: Fleet, user_id: int) -> None:
    """The user's task died of its deadline, and of nothing else."""
    assert fleet.tasks()[user_id] == ("dead", "retry")
    assert fleet.failures(user_id) == [("retry", "Deadline")]


def test_a_reply_that_drips_is_ended_at_the_deadline_and_others_go_on(
    fleet: Fleet, shop: WatchedShop
) -> None:
    """A byte every 0.2 s keeps every read of `requests` alive for ever. The others have a source, and time, of their own."""
    shop.switch_account("demo1", drip=True)
    fleet.cafe24(shop, users=1, jobTimeoutSeconds=2, budgets={"retry": 0})
    elsewhere = shop.base_url.replace("127.0.0.1", "localhost")
    fleet.declare("others", adapter="cafe24", baseURL=elsewhere, maxConcurrent=1)
    fleet.add_accounts("others", [(user_id, shop.credentials(user_id)) for user_id in range(2, 7)])
    fleet.plan()
    fleet.run(slots=2)
    expect_deadline(fleet, 1)
    assert fleet.items() == shop.truth(range(2, 7))


def test_a_server_that_never_answers_is_left_at_the_deadline(fleet: Fleet) -> None:
    with silent_server(b"") as url:
        fleet.declare(
            "cafe24",
            adapter="cafe24",
            baseURL=url + "/{mall_id}",
            maxConcurrent=1,
            jobTimeoutSeconds=2,
            budgets={"retry": 0},
        )
        fleet.add_accounts("cafe24", [(1, _mall() | LIVING_TOKEN)])
        fleet.plan()
        fleet.run()
    expect_deadline(fleet, 1)


def test_a_connection_that_hangs_inside_a_body_is_shut_at_the_deadline(fleet: Fleet) -> None:
    half = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"count'
    with silent_server(half) as url:
        fleet.declare(
            "cafe24",
            adapter="cafe24",
            baseURL=url + "/{mall_id}",
            maxConcurrent=1,
            jobTimeoutSeconds=2,
            budgets={"retry": 0},
        )
        fleet.add_accounts("cafe24", [(1, _mall() | LIVING_TOKEN)])
        fleet.plan()
        fleet.run()
    expect_deadline(fleet, 1)


def test_a_deadline_is_retried_within_the_budget(fleet: Fleet, shop: WatchedShop) -> None:
    shop.switch_account("demo1", drip=True)
    fleet.cafe24(shop, users=1, jobTimeoutSeconds=1, budgets={"retry": 20})
    fleet.plan()
    worker = fleet.start()
    until(lambda: fleet.failures(1), "the first deadline")
    shop.switch_account("demo1", drip=False)
    assert worker.exit_code() == 0
    assert fleet.tasks() == {1: ("ok", "ok")}
    assert fleet.items() == shop.truth([1])


def test_a_cancelled_batch_hangs_up_on_the_shop_at_once(fleet: Fleet, shop: WatchedShop) -> None:
    shop.switch(drip=True)
    fleet.cafe24(shop, users=3)
    fleet.plan()
    worker = fleet.start()
    until(lambda: len(shop.seen("orders/count")) == 3, "three crawls that drip")
    fleet.conn.execute("update batch set stop = 'cancel'")
    assert worker.exit_code(timeout_s=15) == 0
    assert fleet.count("cancelled") == 3


# What a crawl costs.


@pytest.mark.timeout(300)  # forty thousand orders: a busy machine takes its time
def test_large_results_stream_through_a_worker_of_bounded_memory(fleet: Fleet) -> None:
    """Twenty crawls of 2,000 orders at once: 67 MB before them, 93 MB streamed, 258 MB if they were collected."""
    with WatchedShop(orders_per_mall=2000, products_per_mall=1) as shop:
        fleet.cafe24(shop, users=20, maxConcurrent=20)
        fleet.plan()
        gate = shop.gate("orders/count", most=20)
        worker = fleet.start(slots=20)
        gate.wait(20)
        gate.open()
        assert worker.peak_rss_mb(timeout_s=200) < 120
        assert worker.exit_code() == 0
        assert fleet.scalar("select count(*) from item") == 20 * 2001
        assert fleet.all_failures() == set()


def test_items_are_written_ahead_while_their_crawl_goes_on(fleet: Fleet) -> None:
    with WatchedShop(orders_per_mall=1500) as shop:
        fleet.cafe24(shop, users=1)
        fleet.plan()
        gate = shop.gate("products")
        worker = fleet.start()
        gate.wait()
        assert fleet.tasks() == {1: ("leased", None)}
        assert fleet.scalar("select count(*) from item") >= 1000
        gate.open()
        assert worker.exit_code() == 0
        assert fleet.items() == shop.truth([1])


def test_logs_name_the_verdict_and_reason_of_a_failed_crawl(fleet: Fleet, shop: WatchedShop) -> None:
    shop.switch_account("demo2", scope_removed=True)
    fleet.cafe24(shop, users=2)
    fleet.plan()
    fleet.run()
    (failed,) = [e for e in fleet.workers[0].events("crawled") if e["user_id"] == 2]
    assert (failed["verdict"], failed["reason"], failed["task"]) == ("auth", "ScopeMissing", "dead")
    assert failed["ms"] > 0
    assert json.dumps(shop.credentials(2))[1:-1] not in fleet.workers[0].text()


def _mall() -> dict[str, Any]:
    """Credentials of a mall that no shop of ours serves."""
    return {
        "mall_id": "demo1",
        "client_id": "client",
        "client_secret": "client-secret",
        "refresh_token": "refresh-token",
    }
