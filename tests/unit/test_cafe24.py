"""The Cafe24 adapter against a scripted mall on a real socket."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import pytest
from direct_crawl import DirectCrawl
from requests import Response
from scripted_shop import Reply, Request, ScriptedShop, html_reply, json_reply

from crawlfleet.errors import AuthFailed, BadInput, Blocked, Bug, CrawlEnded, Retry, Throttled
from crawlfleet.sources import Item, load_adapter
from crawlfleet.sources.cafe24 import Cafe24, Days, days_back

TOKENS = "/api/v2/oauth/token"
ORDERS = "/api/v2/admin/orders"
COUNT = "/api/v2/admin/orders/count"
PRODUCTS = "/api/v2/admin/products"
ACCOUNT = {
    "mall_id": "mall-7",
    "client_id": "client",
    "client_secret": "planted-secret",
    "refresh_token": "refresh-0",
    "access_token": "access-0",
    "expires_at": "2026-03-10T14:00:00.000",
}


@dataclass
class FakeMall:
    """The contract in a few lines. `before` may answer instead, or change the mall, when a request comes."""

    orders: list[tuple[str, str]] = field(default_factory=list)  # (day, order_id), newest first
    products: list[int] = field(default_factory=list)
    access: str = "access-0"
    refreshes: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[Request], Reply | None] = lambda request: None

    def __call__(self, request: Request) -> Reply:
        reply = self.before(request)
        if reply is not None:
            return reply
        if request.path == TOKENS:
            return self._refresh(request)
        if request.headers["Authorization"] != f"Bearer {self.access}":
            return json_reply({"error": {"code": 401, "message": "access_token time expired"}}, 401)
        return json_reply(self._resource(request), headers=self.headers)

    def _refresh(self, request: Request) -> Reply:
        if request.form.get("refresh_token") != f"refresh-{self.refreshes}":
            return json_reply({"error": "invalid_grant", "error_description": "planted-reply"}, 400)
        self.refreshes += 1
        self.access = f"access-{self.refreshes}"
        return json_reply(
            {
                "access_token": self.access,
                "expires_at": "2026-03-10T16:00:00.000",
                "refresh_token": f"refresh-{self.refreshes}",
            }
        )

    def _resource(self, request: Request) -> dict[str, Any]:
        query = request.query
        if request.path == PRODUCTS:
            later = sorted(no for no in self.products if no > int(query["since_product_no"]))
            return {"products": [{"product_no": no} for no in later[: int(query["limit"])]]}
        inside = [no for day, no in self.orders if query["start_date"] <= day <= query["end_date"]]
        if request.path == COUNT:
            return {"count": len(inside)}
        assert int(query["offset"]) <= 15_000
        page = inside[int(query["offset"]) :][: int(query["limit"])]
        return {"orders": [{"order_id": no} for no in page], "links": []}


def order_ids(day: str, count: int, start: int = 0) -> list[tuple[str, str]]:
    return [(day, f"{day}-{no:07}") for no in range(start + count - 1, start - 1, -1)]


@pytest.fixture
def mall() -> FakeMall:
    return FakeMall(orders=order_ids("2026-03-09", 3), products=[4, 5])


@pytest.fixture
def shop(mall: FakeMall) -> Iterator[ScriptedShop]:
    with ScriptedShop(mall) as shop:
        yield shop


@pytest.fixture
def crawl(shop: ScriptedShop) -> Iterator[DirectCrawl]:
    crawl = DirectCrawl(shop.url, dict(ACCOUNT))
    yield crawl
    crawl.close()


def read(crawl: DirectCrawl, **options: Any) -> list[Item]:
    return list(Cafe24(options).crawl(crawl))


def ids(items: list[Item], kind: str) -> list[str]:
    return [item.external_id for item in items if item.kind == kind]


def ending(crawl: DirectCrawl) -> CrawlEnded:
    with pytest.raises(CrawlEnded) as raised:
        read(crawl)
    return raised.value


# Options and credentials.


def test_the_adapter_is_found_by_its_entry_point() -> None:
    assert load_adapter("cafe24") is Cafe24


@pytest.mark.parametrize("days", [0, -1, 1.5, "7", True, 10**9])
def test_days_must_be_a_positive_whole_number(days: object) -> None:
    with pytest.raises(BadInput, match="'days'"):
        Cafe24({"days": days})


def test_an_unknown_option_is_named_beside_the_known_ones() -> None:
    with pytest.raises(BadInput, match=r"'dayz'; known: days"):
        Cafe24({"dayz": 3})


def test_complete_and_minimal_credentials_are_accepted() -> None:
    minimal = {name: ACCOUNT[name] for name in ("mall_id", "client_id", "client_secret", "refresh_token")}
    for credentials in (ACCOUNT, minimal, minimal | {"access_token": "", "expires_at": None}):
        Cafe24({}).check_credentials(credentials)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, bad) for name in ("mall_id", "client_id", "client_secret", "refresh_token") for bad in ("", None, 7)),
        *(("mall_id", bad) for bad in ("evil.example.com/", "a.b", "-a", "a_b", "a" * 64, "몰")),
        ("client_id", "planted:secret"),
        ("access_token", "planted\r\nsecret"),
        ("refresh_token", "planted secret"),
        ("expires_at", "planted-secret"),
        ("expires_at", 1741572000),
    ],
)  # fmt: skip
def test_a_wrong_credential_is_named_and_never_shown(field: str, value: object) -> None:
    with pytest.raises(BadInput, match=f"'{field}'") as raised:
        Cafe24({}).check_credentials(ACCOUNT | {field: value})
    assert "planted" not in str(raised.value)


# What is sent and what comes back.


def test_orders_and_products_become_items(crawl: DirectCrawl) -> None:
    items = read(crawl)
    assert ids(items, "order") == [no for _, no in order_ids("2026-03-09", 3)]
    assert ids(items, "product") == ["4", "5"]
    assert items[0].body == {"order_id": "2026-03-09-0000002"}


def test_a_call_carries_token_version_window_and_our_name(crawl: DirectCrawl, shop: ScriptedShop) -> None:
    read(crawl)
    [request] = [r for r in shop.requests if r.path == ORDERS]
    assert request.headers["Authorization"] == "Bearer access-0"
    assert request.headers["X-Cafe24-Api-Version"] == "2025-12-01"
    assert request.headers["User-Agent"].startswith("crawlfleet/")
    assert request.query == {
        "date_type": "order_date",
        "start_date": "2026-03-03",
        "end_date": "2026-03-10",
        "embed": "items",
        "limit": "1000",
        "offset": "0",
    }


def test_the_base_url_may_hold_the_mall_id(shop: ScriptedShop) -> None:
    crawl = DirectCrawl(shop.url + "/{mall_id}/", dict(ACCOUNT))
    shop.answer = lambda request: json_reply({"count": 0} if "count" in request.path else {"products": []})
    assert read(crawl) == []
    assert shop.paths() == ["/mall-7" + COUNT, "/mall-7" + PRODUCTS]
    crawl.close()


def test_without_a_base_url_the_malls_official_address_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def send(method: str, url: str, **kwargs: Any) -> Response:
        called.append(url)
        raise Retry("Recorded")

    crawl = DirectCrawl(None, dict(ACCOUNT))
    monkeypatch.setattr(crawl, "request", send)
    assert ending(crawl).reason == "Recorded"
    assert called == ["https://mall-7.cafe24api.com" + COUNT]
    crawl.close()


def test_compressed_replies_are_read(crawl: DirectCrawl, mall: FakeMall) -> None:
    body = gzip.compress(json.dumps({"orders": [{"order_id": "1", "price": 1.5}]}).encode())
    mall.orders = order_ids("2026-03-09", 1)
    mall.before = lambda request: (
        Reply(200, body, {"Content-Encoding": "gzip"}) if request.path == ORDERS else None
    )
    assert read(crawl)[0].body == {"order_id": "1", "price": 1.5}


def test_items_are_handed_on_before_the_page_has_ended(crawl: DirectCrawl, mall: FakeMall) -> None:
    """Memory stays bounded only if nobody collects the page first: the broken end comes after the items."""
    body = b'{"orders":[{"order_id":"1"},{"order_id":"2"}' + b" " * 200_000
    mall.before = lambda request: Reply(200, body) if request.path == ORDERS else None
    items = Cafe24({}).crawl(crawl)
    assert [next(items).external_id, next(items).external_id] == ["1", "2"]
    with pytest.raises(Retry, match="TruncatedReply"):
        next(items)


# Windows and pages.


def test_the_window_is_counted_in_korean_days() -> None:
    utc_evening = datetime.fromisoformat("2026-03-09T15:30:00+00:00")
    assert days_back(utc_evening, 1) == [Days(date(2026, 3, 9), date(2026, 3, 10))]


@pytest.mark.parametrize("now", ["2026-03-10", "2026-11-30", "2028-02-29", "2026-05-31"])
def test_pieces_are_shorter_than_three_months_and_leave_no_gap(now: str) -> None:
    pieces = days_back(datetime.fromisoformat(f"{now}T12:00:00+09:00"), 800)
    for piece in pieces:
        month = (piece.first.month + 2) % 12 + 1
        year = piece.first.year + (piece.first.month > 9)
        assert (piece.last.year, piece.last.month, piece.last.day) < (year, month, piece.first.day)
    assert all(later.first - earlier.last == timedelta(days=1) for earlier, later in pairwise(pieces))
    assert pieces[-1].last - pieces[0].first == timedelta(days=800)


def test_a_long_window_is_asked_for_in_pieces(crawl: DirectCrawl, shop: ScriptedShop, mall: FakeMall) -> None:
    mall.orders = order_ids("2026-03-09", 1) + order_ids("2025-10-01", 1)
    items = read(crawl, days=180)
    assert sorted(ids(items, "order")) == ["2025-10-01-0000000", "2026-03-09-0000000"]
    windows = [(r.query["start_date"], r.query["end_date"]) for r in shop.requests if r.path == COUNT]
    assert windows == [("2025-09-11", "2025-12-10"), ("2025-12-11", "2026-03-10")]


def test_a_piece_beyond_the_largest_offset_is_halved(
    crawl: DirectCrawl, shop: ScriptedShop, mall: FakeMall
) -> None:
    mall.orders = order_ids("2026-03-09", 9000) + order_ids("2026-03-04", 9000)
    items = read(crawl)
    assert set(ids(items, "order")) == {no for _, no in mall.orders}
    windows = [(r.query["start_date"], r.query["end_date"]) for r in shop.requests if r.path == COUNT]
    assert windows[1:] == [("2026-03-03", "2026-03-06"), ("2026-03-07", "2026-03-10")]


def test_one_day_is_read_as_far_as_it_goes_and_then_reported(crawl: DirectCrawl, mall: FakeMall) -> None:
    mall.orders = order_ids("2026-03-09", 16_001)
    items = Cafe24({}).crawl(crawl)
    assert len({item.external_id for item in islice(items, 17 * 1000)}) == 16_000
    with pytest.raises(Bug, match="TooManyOrders"):
        next(items)


def test_one_day_that_just_fits_is_complete(crawl: DirectCrawl, mall: FakeMall) -> None:
    mall.orders = order_ids("2026-03-09", 16_000)
    assert len(set(ids(read(crawl), "order"))) == 16_000


def between_pages(mall: FakeMall, change: Callable[[], None]) -> None:
    """Change the mall once, when the second page of orders is asked for."""
    changes = [change]

    def before(request: Request) -> None:
        if request.query.get("offset", "0") != "0" and changes:
            changes.pop()()

    mall.before = before


def test_orders_that_arrive_meanwhile_hide_none(crawl: DirectCrawl, mall: FakeMall) -> None:
    """They push older ones to later offsets, past the number counted at the start."""
    mall.orders = order_ids("2026-03-09", 2500)
    wanted = {no for _, no in mall.orders}
    between_pages(mall, lambda: mall.orders.__setitem__(slice(0, 0), order_ids("2026-03-10", 900)))
    assert wanted <= set(ids(read(crawl), "order"))


@pytest.mark.parametrize("gone", [1, 9, 10, 500])
def test_orders_that_vanish_meanwhile_hide_none(crawl: DirectCrawl, mall: FakeMall, gone: int) -> None:
    """They pull others to earlier offsets, which the next page would step over."""
    mall.orders = order_ids("2026-03-09", 2500)
    between_pages(mall, lambda: mall.orders.__delitem__(slice(0, gone)))
    seen = set(ids(read(crawl), "order"))
    assert {no for _, no in mall.orders} <= seen


def test_orders_that_swap_places_meanwhile_hide_none(crawl: DirectCrawl, mall: FakeMall) -> None:
    """Far from the seam of two pages, so that the overlap cannot tell: the number of distinct orders does."""
    mall.orders = order_ids("2026-03-09", 2500)

    def swap() -> None:
        mall.orders[200], mall.orders[1500] = mall.orders[1500], mall.orders[200]

    between_pages(mall, swap)
    assert {no for _, no in mall.orders} <= set(ids(read(crawl), "order"))


def test_a_list_that_never_rests_is_read_again_later(crawl: DirectCrawl, mall: FakeMall) -> None:
    mall.orders = order_ids("2026-03-09", 2500)

    def before(request: Request) -> None:
        if request.query.get("offset", "0") != "0":
            del mall.orders[:200]

    mall.before = before
    ended = ending(crawl)
    assert (type(ended), ended.reason) == (Retry, "ListMoved")


def test_a_shop_that_cuts_pages_short_is_noticed(crawl: DirectCrawl, mall: FakeMall) -> None:
    mall.before = lambda request: (
        json_reply({"orders": [{"order_id": "1"}]}) if request.path == ORDERS else None
    )
    assert isinstance(ending(crawl), Retry)


def test_all_products_are_read_by_their_number(
    crawl: DirectCrawl, shop: ScriptedShop, mall: FakeMall
) -> None:
    mall.products = list(range(3, 6003, 20))
    assert ids(read(crawl), "product") == [str(no) for no in mall.products]
    queries = [r.query for r in shop.requests if r.path == PRODUCTS]
    assert queries[:2] == [
        {"since_product_no": "0", "limit": "100"},
        {"since_product_no": "1983", "limit": "100"},
    ]
    assert len(queries) == 4


@pytest.mark.parametrize("products", [[{"product_no": 5}, {"product_no": 4}], [{"product_no": "5"}], [{}]])
def test_products_without_a_rising_number_are_a_bug(
    crawl: DirectCrawl, mall: FakeMall, products: list[dict[str, object]]
) -> None:
    mall.before = lambda request: json_reply({"products": products}) if request.path == PRODUCTS else None
    assert isinstance(ending(crawl), Bug)


# Tokens.


@pytest.mark.parametrize(
    "change",
    [
        {"access_token": None},
        {"expires_at": None},
        {"expires_at": "2026-03-10T12:04:59"},
        {"expires_at": "2026-03-10T03:04:59Z"},
        {"expires_at": "2026-03-09T12:00:00.000"},
    ],
    ids=["no token", "age unknown", "under five minutes", "in UTC", "expired"],
)
def test_a_token_near_its_end_is_refreshed_first(
    crawl: DirectCrawl, shop: ScriptedShop, change: dict[str, Any]
) -> None:
    crawl.credentials |= change
    read(crawl)
    assert shop.paths() == [TOKENS, COUNT, ORDERS, PRODUCTS]


def test_a_fresh_token_is_left_alone(crawl: DirectCrawl, shop: ScriptedShop) -> None:
    crawl.credentials["expires_at"] = "2026-03-10T12:05:30"
    read(crawl)
    assert TOKENS not in shop.paths()


def test_a_refresh_sends_basic_auth_and_stores_the_new_tokens(crawl: DirectCrawl, shop: ScriptedShop) -> None:
    crawl.credentials["access_token"] = None
    crawl.credentials["note"] = "kept"
    read(crawl)
    request = shop.requests[0]
    assert request.headers["Authorization"] == "Basic " + b64encode(b"client:planted-secret").decode()
    assert request.form == {"grant_type": "refresh_token", "refresh_token": "refresh-0"}
    assert crawl.credentials == ACCOUNT | {
        "note": "kept",
        "access_token": "access-1",
        "refresh_token": "refresh-1",
        "expires_at": "2026-03-10T16:00:00+09:00",
    }


def test_a_401_forces_one_refresh_although_the_token_seemed_fresh(
    crawl: DirectCrawl, shop: ScriptedShop, mall: FakeMall
) -> None:
    mall.access = "another"
    assert ids(read(crawl), "product") == ["4", "5"]
    assert shop.paths() == [COUNT, TOKENS, COUNT, ORDERS, PRODUCTS]


def test_a_second_401_ends_the_crawl(crawl: DirectCrawl, shop: ScriptedShop, mall: FakeMall) -> None:
    mall.before = lambda request: json_reply({"error": {}}, 401) if request.path == COUNT else None
    ended = ending(crawl)
    assert (type(ended), ended.reason) == (AuthFailed, "AccessRefused")
    assert shop.paths() == [COUNT, TOKENS, COUNT]


def test_a_refused_refresh_ends_the_crawl_without_showing_the_reply(
    crawl: DirectCrawl, shop: ScriptedShop
) -> None:
    crawl.credentials |= {"access_token": None, "refresh_token": "planted-old"}
    ended = ending(crawl)
    assert (type(ended), ended.reason) == (AuthFailed, "RefreshRefused")
    assert "planted" not in f"{ended} {ended.snapshot}"
    assert shop.paths() == [TOKENS]


def test_a_failing_refresh_does_not_stop_a_token_that_still_lives(
    crawl: DirectCrawl, shop: ScriptedShop, mall: FakeMall
) -> None:
    crawl.credentials["expires_at"] = "2026-03-10T12:04:00"
    mall.before = lambda request: html_reply(502) if request.path == TOKENS else None
    assert ids(read(crawl), "product") == ["4", "5"]
    assert shop.paths() == [TOKENS, COUNT, ORDERS, PRODUCTS], "and it is not tried before every call"


def test_a_failing_refresh_of_a_dead_token_ends_the_crawl(crawl: DirectCrawl, mall: FakeMall) -> None:
    crawl.credentials["expires_at"] = "2026-03-10T11:59:00"
    mall.before = lambda request: html_reply(502) if request.path == TOKENS else None
    assert isinstance(ending(crawl), Retry)


def test_short_lived_tokens_are_not_refreshed_before_every_call(
    crawl: DirectCrawl, shop: ScriptedShop, mall: FakeMall
) -> None:
    tokens = {"access_token": "access-0", "refresh_token": "r", "expires_at": "2026-03-10T12:02:00"}
    crawl.credentials["access_token"] = None
    mall.before = lambda request: json_reply(tokens) if request.path == TOKENS else None
    read(crawl)
    assert shop.paths().count(TOKENS) == 1


def test_a_new_refresh_token_is_kept_even_if_no_access_token_came_with_it(
    crawl: DirectCrawl, mall: FakeMall
) -> None:
    crawl.credentials["access_token"] = None
    mall.before = lambda request: json_reply({"refresh_token": "r-9"}) if request.path == TOKENS else None
    assert isinstance(ending(crawl), Bug)
    assert crawl.credentials["refresh_token"] == "r-9"


# Refusals and strange replies.


@pytest.mark.parametrize(
    ("reply", "kind", "reason"),
    [
        (json_reply({"error": {"code": 403, "message": "insufficient_scope"}}, 403), AuthFailed, "ScopeMissing"),
        (html_reply(403), Blocked, "BanPage"),
        (json_reply({"error": {"code": 429}}, 429), Throttled, "CallLimit"),
        (html_reply(503), Retry, "ServerError"),
        (html_reply(503, {"Retry-After": "60"}), Throttled, "Maintenance"),
        (html_reply(302, {"Location": "https://shop.example.com/login"}), Retry, "Redirected"),
        (json_reply({"error": {"code": 422, "message": "planted"}}, 422), Bug, "Rejected"),
        (html_reply(200), Bug, "UnexpectedReply"),
        (Reply(200), Bug, "UnexpectedReply"),
        (Reply(204), Bug, "UnexpectedReply"),
        (json_reply([]), Bug, "UnexpectedReply"),
        (json_reply({}), Bug, "UnexpectedReply"),
        (json_reply({"error": {"code": 500, "message": "planted"}}), Bug, "UnexpectedReply"),
        (Reply(200, b'{"LIST":[', {"Content-Length": "5000"}), Retry, "ConnectionLost"),
        (Reply(200, b'{"LIST":['), Retry, "TruncatedReply"),
    ],
    ids=lambda value: f"{value.status}-{value.body[:12]!r}" if isinstance(value, Reply) else str(value),
)  # fmt: skip
@pytest.mark.parametrize("path", [ORDERS, PRODUCTS])
def test_a_bad_page_ends_the_crawl_and_is_never_an_empty_list(
    crawl: DirectCrawl, mall: FakeMall, path: str, reply: Reply, kind: type[CrawlEnded], reason: str
) -> None:
    name = path.rpartition("/")[2].encode()
    bad = replace(reply, body=reply.body.replace(b"LIST", name))
    mall.before = lambda request: bad if request.path == path else None
    ended = ending(crawl)
    assert (type(ended), ended.reason) == (kind, reason)
    assert "planted" not in f"{ended} {ended.snapshot}"
    assert (ended.snapshot is not None) == (kind is Bug)


@pytest.mark.parametrize("count", [None, True, -1, "3", [3]])
def test_a_count_that_is_no_number_is_a_bug(crawl: DirectCrawl, mall: FakeMall, count: object) -> None:
    mall.before = lambda request: json_reply({"count": count}) if request.path == COUNT else None
    assert ending(crawl).reason == "UnexpectedReply"


def test_an_order_without_its_number_is_a_bug_with_its_shape(crawl: DirectCrawl, mall: FakeMall) -> None:
    page = {"orders": [{"order_id": "", "buyer": {"name": "planted"}}]}
    mall.before = lambda request: json_reply(page) if request.path == ORDERS else None
    ended = ending(crawl)
    assert ended.snapshot == '{"order_id": "str(0)", "buyer": {"name": "str(7)"}}'


def test_a_rejected_call_is_named_with_its_parameters(crawl: DirectCrawl, mall: FakeMall) -> None:
    mall.before = lambda request: (
        json_reply({"error": {"code": 422}}, 422) if request.path == ORDERS else None
    )
    ended = ending(crawl)
    assert "start_date=2026-03-03" in ended.detail
    assert "error code 422" in ended.detail


# The call limit.


def test_calls_to_one_mall_keep_their_distance(crawl: DirectCrawl) -> None:
    read(crawl)
    assert crawl.waits == [pytest.approx(0.11)] * 2


def test_a_full_bucket_is_waited_for(crawl: DirectCrawl, mall: FakeMall) -> None:
    mall.headers = {"X-Api-Call-Limit": "39/40"}
    read(crawl)
    assert crawl.waits == [pytest.approx((39 + 1 - 32) / 2)] * 2


def test_a_suspension_ends_the_crawl_before_the_next_call(
    crawl: DirectCrawl, shop: ScriptedShop, mall: FakeMall
) -> None:
    mall.headers = {"X-Cafe24-Call-Usage": "120.04", "X-Cafe24-Call-Remain": "32"}
    ended = ending(crawl)
    assert isinstance(ended, Throttled)
    assert (ended.reason, ended.retry_after_s, ended.account_only) == ("UsageLimit", 32.0, True)
    assert shop.paths() == [COUNT], "a call meanwhile would lengthen the suspension"


def test_a_suspension_told_by_the_last_reply_spares_the_account(crawl: DirectCrawl, mall: FakeMall) -> None:
    """This crawl needs no call any more; the account's next one, perhaps of another batch, must not come too early."""

    def before(request: Request) -> None:
        if request.path == PRODUCTS:
            mall.headers = {"X-Cafe24-Call-Remain": "32"}

    mall.before = before
    assert len(read(crawl)) == 5
    assert crawl.spared_s == 32.0


def test_a_throttle_says_how_long_to_wait(crawl: DirectCrawl, mall: FakeMall) -> None:
    mall.before = lambda request: json_reply({}, 429, {"X-Cafe24-Time-Remain": "7"})
    ended = ending(crawl)
    assert isinstance(ended, Throttled)
    assert (ended.retry_after_s, ended.account_only) == (7.0, True)
