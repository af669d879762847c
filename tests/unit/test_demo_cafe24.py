"""The stand-in shop keeps the public contract of the Cafe24 Admin API, and its traps spoil it as said."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.shop import Cafe24Shop
from crawlfleet.demo.cafe24.tokens import CLIENT_ID, client_secret, demo_accounts, refresh_token
from crawlfleet.demo.cafe24.traps import Cafe24Traps
from crawlfleet.demo.cafe24.truth import expected_items
from crawlfleet.demo.cafe24.witness import Cafe24Counters
from crawlfleet.demo.exchange import Delivery, Reply, Request
from crawlfleet.demo.korea import KST
from crawlfleet.demo.traps import Switchboard
from crawlfleet.demo.violations import Agreement, Flight

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=KST)
WEEK = {"start_date": "2026-11-13", "end_date": "2026-11-20"}


class Bench:
    """A shop with a clock that a test moves, and one polite way to call it."""

    def __init__(self, traps: Cafe24Traps | None = None, **config: Any) -> None:
        self.config = Cafe24Config(traps=traps or Cafe24Traps(), **config)
        self.elapsed_s = 0.0
        self.shop = Cafe24Shop(self.config, now=self.now, clock=self.clock)
        self.access_token = ""

    def clock(self) -> float:
        return self.elapsed_s

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.elapsed_s)

    @property
    def counters(self) -> Cafe24Counters:
        return self.shop.witness.counters()

    def refresh(self, token: str, mall: str = "demo1", secret: str | None = None) -> Reply:
        client = f"{CLIENT_ID}:{secret or client_secret(self.config)}"
        return self.shop.answer(
            Request(
                method="POST",
                path=f"/{mall}/api/v2/oauth/token",
                headers={"authorization": "Basic " + base64.b64encode(client.encode()).decode()},
                body=urlencode({"grant_type": "refresh_token", "refresh_token": token}).encode(),
            )
        )

    def get(self, resource: str, mall: str = "demo1", version: str = "2025-12-01", **query: Any) -> Reply:
        """One API request, with an access token of demo1 that was got without any trap."""
        if not self.access_token:
            self.access_token = read(
                Bench(seed=self.config.seed).refresh(refresh_token(self.config, "demo1"))
            )["access_token"]
        return self.shop.answer(
            Request(
                method="GET",
                path=f"/{mall}/api/v2/admin/{resource}",
                query=urlencode(query),
                headers={"authorization": f"Bearer {self.access_token}", "x-cafe24-api-version": version},
            )
        )


def read(reply: Reply, status: int = 200) -> Any:
    assert reply.status == status, reply.body
    return json.loads(reply.body)


def order_ids(reply: Reply) -> list[str]:
    return [order["order_id"] for order in read(reply)["orders"]]


# --- Truth --------------------------------------------------------------------------------------------


def test_paging_brings_exactly_the_expected_items() -> None:
    bench = Bench(orders_per_mall=25, products_per_mall=7)
    got: dict[tuple[str, str], Any] = {}
    for offset in range(0, 30, 10):
        page = read(bench.get("orders", **WEEK, embed="items", offset=offset))["orders"]
        got |= {("order", order["order_id"]): order for order in page}
    for product in read(bench.get("products"))["products"]:
        got["product", str(product["product_no"])] = product
    assert got == bench.shop.expected_items("demo1", days=7)
    assert len(got) == 32


def test_the_truth_is_the_same_for_the_same_seed_and_day_only() -> None:
    config = Cafe24Config()
    truth = expected_items(config, "demo1", 7, NOON.date())
    assert truth == expected_items(Cafe24Config(), "demo1", 7, NOON.date())
    assert truth != expected_items(replace(config, seed="other"), "demo1", 7, NOON.date())
    assert truth != expected_items(config, "demo2", 7, NOON.date())


def test_the_truth_of_fewer_days_holds_fewer_orders() -> None:
    sizes = [len(expected_items(Cafe24Config(), "demo1", days, NOON.date())) for days in (0, 3, 6, 7)]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]


def test_an_order_speaks_korean_and_writes_money_as_text() -> None:
    order = read(Bench().get("orders", **WEEK))["orders"][0]
    assert order["buyer_name"].startswith("주문자")
    assert float(order["payment_amount"]) > 0
    assert order["order_date"] == "2026-11-20T00:00:00+09:00"


# --- Paging and filters -------------------------------------------------------------------------------


def test_orders_come_newest_first_ten_by_default_with_a_link_to_the_next_page() -> None:
    reply = Bench(orders_per_mall=11).get("orders", **WEEK)
    dates = [order["order_date"] for order in read(reply)["orders"]]
    assert len(dates) == 10
    assert dates == sorted(dates, reverse=True)
    assert "offset=10" in read(reply)["links"][0]["href"]


def test_the_last_page_has_no_link() -> None:
    assert "links" not in read(Bench().get("orders", **WEEK, limit=1000))


@pytest.mark.parametrize(
    ("resource", "query", "status"),
    [
        pytest.param("orders", {"limit": 1000}, 200, id="orders-limit-max"),
        pytest.param("orders", {"limit": 1001}, 422, id="orders-limit-above"),
        pytest.param("orders", {"limit": 0}, 422, id="orders-limit-zero"),
        pytest.param("orders", {"offset": 15000}, 200, id="orders-offset-max"),
        pytest.param("orders", {"offset": 15001}, 422, id="orders-offset-above"),
        pytest.param("orders", {"offset": -1}, 422, id="orders-offset-negative"),
        pytest.param("orders", {"embed": "items,buyer"}, 200, id="orders-embed"),
        pytest.param("orders", {"embed": "nothing"}, 422, id="orders-embed-unknown"),
        pytest.param("orders", {"date_type": "paid_date"}, 422, id="orders-date-type-unknown"),
        pytest.param("orders", {"page": 2}, 422, id="orders-parameter-unknown"),
        pytest.param("orders/count", {}, 200, id="count"),
        pytest.param("products", {"limit": 100, "offset": 5000}, 200, id="products-max"),
        pytest.param("products", {"limit": 101}, 422, id="products-limit-above"),
        pytest.param("products", {"offset": 5001}, 422, id="products-offset-above"),
        pytest.param("products", {"since_product_no": 0, "limit": 100}, 200, id="products-since"),
        pytest.param("products", {"since_product_no": 0, "offset": 0}, 422, id="products-since-offset"),
        pytest.param(
            "products", {"since_product_no": 0, "sort": "created_date"}, 422, id="products-since-sort"
        ),
        pytest.param("customers", {}, 404, id="not-served"),
    ],
)
def test_parameters_have_limits(resource: str, query: dict[str, Any], status: int) -> None:
    window = WEEK if resource.startswith("orders") else {}
    reply = Bench().get(resource, **window, **query)
    assert reply.status == status
    assert status == 200 or read(reply, status)["error"]["code"] == status


@pytest.mark.parametrize(
    ("start", "end", "status"),
    [
        ("2026-08-20", "2026-11-20", 200),
        ("2026-08-20", "2026-11-21", 422),
        ("2026-11-30", "2027-02-28", 200),
        ("2017-01-01", "2017-12-31", 422),
        ("2026-11-20", "2026-11-19", 422),
        ("20261101", "20261120", 422),
        ("2026-11-31", "2026-12-01", 422),
        ("2026-11-20", None, 422),
        (None, None, 422),
    ],
)
def test_an_order_search_needs_a_window_of_three_months_at_most(
    start: str | None, end: str | None, status: int
) -> None:
    query = {"start_date": start, "end_date": end}
    for resource in ("orders", "orders/count"):
        reply = Bench().get(resource, **{name: value for name, value in query.items() if value})
        assert reply.status == status


def test_windows_are_whole_days_in_korea() -> None:
    """Cutting a week at any day loses no order and doubles none."""
    bench = Bench(orders_per_mall=200)
    early = order_ids(bench.get("orders", start_date="2026-11-13", end_date="2026-11-16", limit=1000))
    late = order_ids(bench.get("orders", start_date="2026-11-17", end_date="2026-11-20", limit=1000))
    assert late + early == order_ids(bench.get("orders", **WEEK, limit=1000))
    assert all(order_id >= "20261117" for order_id in late)
    assert early


def test_the_count_is_the_length_of_the_list() -> None:
    bench = Bench(orders_per_mall=40)
    window = {"start_date": "2026-11-16", "end_date": "2026-11-17"}
    listed = len(order_ids(bench.get("orders", **window, limit=1000)))
    assert 0 < listed < 40
    assert read(bench.get("orders/count", **window)) == {"count": listed}


@pytest.mark.parametrize(
    ("date_type", "count"), [("order_date", 1), ("pay_date", 1), ("cancel_date", 0), ("place_date", 0)]
)
def test_the_date_type_chooses_the_date(date_type: str, count: int) -> None:
    bench = Bench(orders_per_mall=1)
    assert read(bench.get("orders/count", **WEEK, date_type=date_type)) == {"count": count}


def test_items_come_only_when_embedded() -> None:
    bench = Bench()
    assert "items" not in read(bench.get("orders", **WEEK))["orders"][0]
    assert read(bench.get("orders", **WEEK, embed="items"))["orders"][0]["items"][0]["quantity"] >= 1


def test_fields_choose_what_is_sent() -> None:
    order = read(Bench().get("orders", **WEEK, fields="order_id,order_date"))["orders"][0]
    assert set(order) == {"order_id", "order_date"}


def test_products_come_newest_first_but_rising_after_a_product() -> None:
    bench = Bench(products_per_mall=5)
    listed = read(bench.get("products"))["products"]
    after = read(bench.get("products", since_product_no=2, limit=2))["products"]
    assert [p["product_no"] for p in listed] == [5, 4, 3, 2, 1]
    assert [p["product_no"] for p in after] == [3, 4]


def test_products_can_be_searched_by_the_day_they_were_created() -> None:
    product = read(Bench().get("products", since_product_no=3, limit=1))["products"][0]
    day = product["created_date"][:10]
    found = read(Bench().get("products", created_start_date=day, created_end_date=day))["products"]
    assert [p["product_no"] for p in found] == [4]


@pytest.mark.parametrize("version", ["", "latest", "2025-13-01"])
def test_the_version_header_has_to_be_a_date(version: str) -> None:
    assert Bench().get("orders", version=version, **WEEK).status == 400


# --- Tokens -------------------------------------------------------------------------------------------


def test_a_refresh_replies_with_korean_times_that_have_no_zone() -> None:
    bench = Bench()
    tokens = read(bench.refresh(refresh_token(bench.config, "demo1")))
    assert tokens["expires_at"] == "2026-11-20T14:00:00.000"
    assert tokens["refresh_token_expires_at"] == "2026-12-04T12:00:00.000"
    assert "expires_in" not in tokens
    assert tokens["mall_id"] == "demo1"


def test_a_refresh_token_works_once() -> None:
    bench = Bench()
    old = refresh_token(bench.config, "demo1")
    new = read(bench.refresh(old))["refresh_token"]
    assert new != old
    assert read(bench.refresh(old), 400)["error"] == "invalid_grant"
    assert (bench.counters.stale_refresh, bench.counters.refresh_after_refusal) == (1, 0)
    assert read(bench.refresh(new))["refresh_token"] != new


def test_a_refused_token_that_comes_again_is_counted() -> None:
    bench = Bench()
    for _ in range(3):
        assert bench.refresh("made.up.token").status == 400
    assert (bench.counters.refresh_after_refusal, bench.counters.stale_refresh) == (2, 0)


def test_a_new_shop_adopts_the_generation_it_is_shown() -> None:
    first, second = Bench(), Bench()
    token = read(first.refresh(refresh_token(first.config, "demo1")))["refresh_token"]
    assert read(second.refresh(token))["refresh_token"] == refresh_token(second.config, "demo1", 2)


def test_a_new_consent_outlives_the_refused_token() -> None:
    bench = Bench(Cafe24Traps(revoke_tokens=True))
    assert bench.refresh(refresh_token(bench.config, "demo1")).status == 400
    bench.shop.switches.switch({"all": None})
    assert bench.refresh(refresh_token(bench.config, "demo1")).status == 400
    assert bench.refresh(refresh_token(bench.config, "demo1", 1)).status == 200


@pytest.mark.parametrize("mall", ["demo2", "demo11"])
def test_a_refresh_token_is_good_for_its_own_mall_only(mall: str) -> None:
    bench = Bench()
    assert bench.refresh(refresh_token(bench.config, "demo1"), mall=mall).status == 400


def test_a_wrong_client_is_refused_without_harm_to_the_token() -> None:
    bench = Bench()
    token = refresh_token(bench.config, "demo1")
    assert read(bench.refresh(token, secret="wrong"), 401)["error"] == "invalid_client"
    assert bench.refresh(token).status == 200


def test_an_access_token_lives_two_hours() -> None:
    bench = Bench()
    assert bench.get("orders", **WEEK).status == 200
    bench.elapsed_s = 7199
    assert bench.get("orders", **WEEK).status == 200
    bench.elapsed_s = 7200
    assert read(bench.get("orders", **WEEK), 401)["error"]["message"] == "access_token time expired"


@pytest.mark.parametrize("token", ["nonsense", "refresh.demo1.0", ""])
def test_a_foreign_access_token_is_refused(token: str) -> None:
    bench = Bench()
    bench.access_token = token or refresh_token(bench.config, "demo1")
    assert read(bench.get("orders", **WEEK), 401)["error"]["message"] == "Invalid access_token"


def test_an_access_token_is_good_for_its_own_mall_only() -> None:
    assert Bench().get("orders", mall="demo2", **WEEK).status == 401


# --- Rates --------------------------------------------------------------------------------------------


def test_the_bucket_overflows_at_forty_and_drains_two_a_second() -> None:
    bench = Bench()
    limits = [bench.get("orders", **WEEK).headers["X-Api-Call-Limit"] for _ in range(40)]
    assert limits[0] == "1/40"
    assert limits[-1] == "40/40"
    assert read(bench.get("orders", **WEEK), 429)["error"]["code"] == 429
    bench.elapsed_s += 1.0
    assert [bench.get("orders", **WEEK).status for _ in range(3)] == [200, 200, 429]


def test_each_api_has_a_bucket_of_its_own() -> None:
    bench = Bench(bucket_size=1)
    statuses = [bench.get(r, **WEEK).status for r in ("orders", "orders", "orders/count")]
    assert statuses == [200, 429, 200]


def test_the_usage_tells_the_wait_only_when_it_is_full() -> None:
    bench = Bench(usage_calls=4)
    usages = [bench.get("orders", **WEEK).headers for _ in range(4)]
    assert [headers["X-Cafe24-Call-Usage"] for headers in usages] == ["25.00", "50.00", "75.00", "100.00"]
    assert [headers.get("X-Cafe24-Call-Remain") for headers in usages] == [None, None, None, "1"]


def test_calling_while_blocked_lengthens_the_block() -> None:
    bench = Bench(usage_calls=4)
    for _ in range(4):
        bench.get("orders", **WEEK)
    blocked = [bench.get("products") for _ in range(2)]
    assert [reply.status for reply in blocked] == [429, 429]
    assert [reply.headers["X-Cafe24-Call-Remain"] for reply in blocked] == ["40", "80"]
    bench.elapsed_s += 80
    assert bench.get("products").status == 200


def test_slow_processing_fills_the_time_usage() -> None:
    bench = Bench(Cafe24Traps(slow_s=10), usage_processing_s=20)
    headers = [bench.get("orders", **WEEK).headers for _ in range(2)][1]
    assert float(headers["X-Cafe24-Time-Usage"]) > 100
    assert int(headers["X-Cafe24-Time-Remain"]) >= 1
    assert "X-Cafe24-Call-Remain" not in headers


# --- Traps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traps", "status", "start"),
    [
        pytest.param(Cafe24Traps(always_429=True), 429, b'{"error": {"code": 429', id="always_429"),
        pytest.param(Cafe24Traps(throttle_once=True), 429, b'{"error": {"code": 429', id="throttle_once"),
        pytest.param(Cafe24Traps(ban_s=5), 403, b"<!DOCTYPE html>", id="ban"),
        pytest.param(Cafe24Traps(error_500=1), 500, b'{"error": {"code": 500', id="error_500"),
        pytest.param(Cafe24Traps(revoke_tokens=True), 401, b'{"error": {"code": 401', id="revoke_tokens"),
        pytest.param(Cafe24Traps(scope_removed=True), 403, b'{"error": {"code": 403', id="scope_removed"),
        pytest.param(Cafe24Traps(maintenance=True), 503, b"<!DOCTYPE html>", id="maintenance"),
        pytest.param(Cafe24Traps(html_200=True), 200, b"<!DOCTYPE html>", id="html_200"),
        pytest.param(Cafe24Traps(empty_body=True), 200, b"", id="empty_body"),
        pytest.param(Cafe24Traps(error_in_200=True), 200, b'{"error": {"code": 500', id="error_in_200"),
        pytest.param(Cafe24Traps(unknown_reply=True), 200, b'{"result"', id="unknown_reply"),
    ],
)
def test_a_trap_spoils_the_reply(traps: Cafe24Traps, status: int, start: bytes) -> None:
    reply = Bench(traps).get("orders", **WEEK)
    assert reply.status == status
    assert reply.body.startswith(start)
    assert bool(reply.body) == bool(start)


def test_throttle_once_tells_each_mall_once_to_wait() -> None:
    bench = Bench(Cafe24Traps(throttle_once=True))
    first, second = bench.get("orders", **WEEK), bench.get("orders", **WEEK)
    assert (first.status, first.headers["Retry-After"], second.status) == (429, "1", 200)


def test_a_ban_hits_one_egress_once_and_ends() -> None:
    bench = Bench(Cafe24Traps(ban_s=30))
    request = Request("GET", "/demo1/api/v2/admin/products", egress="a")
    assert bench.shop.answer(request).status == 403
    bench.elapsed_s = 29
    assert bench.shop.answer(request).status == 403
    bench.elapsed_s = 30
    assert bench.shop.answer(request).status == 401
    assert bench.shop.answer(replace(request, egress="b")).status == 403


def test_a_ban_of_one_malls_client_is_a_ban_of_its_egress() -> None:
    bench = Bench()
    bench.shop.switches.switch({"accounts": {"demo7": {"ban_s": 30}}})
    statuses = [bench.get("orders", mall=mall, **WEEK).status for mall in ("demo1", "demo7", "demo1")]
    assert statuses == [200, 403, 403]


def test_errors_come_at_their_rate_and_repeat_with_the_seed() -> None:
    benches = [Bench(Cafe24Traps(error_500=0.5), bucket_size=100) for _ in range(2)]
    runs = [[bench.get("orders", **WEEK).status for _ in range(60)] for bench in benches]
    assert runs[0] == runs[1]
    assert 10 < runs[0].count(500) < 50


def test_a_lost_refresh_counts_and_its_old_token_may_be_tried_once() -> None:
    bench = Bench(Cafe24Traps(lose_refresh_reply=True))
    token = refresh_token(bench.config, "demo1")
    assert bench.refresh(token).delivery is Delivery.LOST
    assert bench.refresh(token).status == 400
    assert bench.counters.violations() == 0
    assert bench.refresh(token).status == 400
    assert bench.counters.refresh_after_refusal == 1


def test_the_poisoned_record_is_one_order() -> None:
    reply = Bench(Cafe24Traps(poison_record=True)).get("orders", **WEEK, limit=1000)
    assert rb"\u0000" in reply.body
    assert ["\0" in order["buyer_name"] for order in read(reply)["orders"]].count(True) == 1


def test_a_huge_page_is_a_valid_page() -> None:
    reply = Bench(Cafe24Traps(huge_page_bytes=100_000)).get("orders", **WEEK)
    assert len(reply.body) > 100_000
    assert len(order_ids(reply)) == 10


def test_a_moving_order_pushes_the_list_by_one() -> None:
    bench = Bench(Cafe24Traps(moving_orders=True))
    first = order_ids(bench.get("orders", **WEEK))
    second = order_ids(bench.get("orders", **WEEK, offset=10))
    assert first[-1] == second[0]
    assert set(first + second) == {i for kind, i in bench.shop.expected_items("demo1", 7) if kind == "order"}
    assert order_ids(bench.get("orders", **WEEK))[2:] == first[:8]


@pytest.mark.parametrize(("trap", "delivery"), [("drip", Delivery.DRIP), ("truncated", Delivery.TRUNCATED)])
def test_a_trap_of_delivery_leaves_the_page_as_it_is(trap: str, delivery: Delivery) -> None:
    reply = Bench(Cafe24Traps(**{trap: True})).get("orders", **WEEK)
    assert reply.delivery is delivery
    assert len(order_ids(reply)) == 10


def test_a_switch_for_one_mall_wins_over_that_for_all() -> None:
    switches = Switchboard(Cafe24Traps(slow_s=1, drip=True))
    switches.switch({"all": {"slow_s": 2}, "accounts": {"demo1": {"drip": False}}})
    assert switches.traps("demo1") == Cafe24Traps(slow_s=2)
    assert switches.traps("demo2") == Cafe24Traps(slow_s=2, drip=True)
    switches.switch({"all": None, "accounts": {"demo1": None}})
    assert switches.traps("demo1") == Cafe24Traps()


def test_switching_a_trap_arms_it_again() -> None:
    switches = Switchboard(Cafe24Traps())
    sprung = [switches.spring_once("throttle_once", "demo1") for _ in range(2)]
    switches.switch({"all": {"throttle_once": True}})
    assert [*sprung, switches.spring_once("throttle_once", "demo1")] == [True, False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"all": {"drop": True}},
        {"all": {"drip": 1}},
        {"all": {"slow_s": True}},
        {"all": {"slow_s": -1}},
        {"all": {"slow_s": "1"}},
        {"accounts": {"demo1": {"drop": True}}},
        {"accounts": []},
        {"shop1": {}},
        [],
    ],
)
def test_a_wrong_switch_changes_nothing(change: Any) -> None:
    switches = Switchboard(Cafe24Traps(drip=True))
    with pytest.raises(ValueError, match=r"trap|change|accounts"):
        switches.switch(change)
    assert switches.as_dict()["all"]["drip"] is True


# --- Accounts and politeness --------------------------------------------------------------------------


def test_demo_accounts_are_a_mix_and_their_tokens_work() -> None:
    bench = Bench()
    accounts = list(demo_accounts(10, bench.config, datetime(2026, 11, 20, tzinfo=UTC)))
    assert [a["user_id"] for a in accounts] == list(range(1, 11))
    assert [a["subscription"] for a in accounts].count("paid") == 3
    recent = [datetime.fromisoformat(a["last_login_at"]) > NOON - timedelta(days=7) for a in accounts]
    assert recent.count(False) == 2
    credentials = accounts[4]["credentials"]
    assert (
        bench.refresh(
            credentials["refresh_token"], credentials["mall_id"], credentials["client_secret"]
        ).status
        == 200
    )


@pytest.mark.parametrize(
    ("bench", "counter"),
    [
        pytest.param(Bench(Cafe24Traps(throttle_once=True)), "before_retry_after", id="retry-after"),
        pytest.param(Bench(usage_calls=1), "before_retry_after", id="usage"),
        pytest.param(Bench(Cafe24Traps(ban_s=5), agreement=Agreement(reaction_s=0)), "during_ban", id="ban"),
    ],
)
def test_what_the_shop_tells_a_client_it_tells_the_witness(bench: Bench, counter: str) -> None:
    bench.get("orders", **WEEK)
    bench.elapsed_s = 0.5
    bench.shop.witness.arrived(Flight("demo1", "direct", alive=lambda: True), is_api=True)
    assert bench.counters.as_dict()[counter] == bench.counters.violations() == 1
