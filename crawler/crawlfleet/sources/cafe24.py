"""Cafe24's Admin API: the orders and products of one mall, by OAuth2 and `requests`.

Used by the worker through `sources.Adapter`. `Mall` sends the calls, `Cafe24` pages; what a reply means is
in `cafe24_replies`, how fast to call in `cafe24_limit`. It does not store tokens (`Crawl.refresh` does) nor
pace the egress (`Crawl.request` does).
"""

from __future__ import annotations

import logging
import re
from calendar import monthrange
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import urlencode

import requests

from crawlfleet.errors import BadInput, Bug, CrawlEnded, Retry, Throttled
from crawlfleet.sources import KST, Crawl, Credentials, Item
from crawlfleet.sources.cafe24_limit import CallLimit
from crawlfleet.sources.cafe24_replies import (
    TOKEN_PATH,
    VISIBLE_ASCII,
    classify,
    classify_refresh,
    moment,
    renewed,
    token_life_s,
)
from crawlfleet.sources.options import check_known, whole_number
from crawlfleet.sources.redaction import redact_value
from crawlfleet.sources.replies import Body, read_list, read_object

log = logging.getLogger(__name__)

API_VERSION = "2025-12-01"
OFFICIAL_URL = "https://{mall_id}.cafe24api.com"

REFRESH_BELOW_S = 300.0
REFRESH_AGAIN_S = 60.0

ORDERS_A_PAGE = 1000
PRODUCTS_A_PAGE = 100
MAX_OFFSET = 15_000
MONTHS_A_CALL = 3
OVERLAP = 10
READINGS = 3

_HOST_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")

Params = Mapping[str, str | int]


class Cafe24:
    """Option: `days` back from now whose orders are read (default 7). Kinds: `order`, `product`."""

    official_url: ClassVar[str | None] = OFFICIAL_URL
    needs_browser: ClassVar[bool] = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        check_known("cafe24", options, ("days",))
        self._days = whole_number("cafe24", options, "days", 7, least=1, most=3650)

    def check_credentials(self, credentials: Credentials) -> None:
        """Raise BadInput unless mall_id, client_id, client_secret and refresh_token are there and usable."""
        for name in ("mall_id", "client_id", "client_secret", "refresh_token"):
            _check_text(name, credentials.get(name))
        for name in ("access_token", "expires_at"):
            if credentials.get(name):  # CSV files have empty cells
                _check_text(name, credentials[name])
        if not _HOST_LABEL.fullmatch(credentials["mall_id"]):
            raise BadInput("cafe24: credential 'mall_id' must be a host label: letters, digits, hyphens")
        if ":" in credentials["client_id"]:
            raise BadInput("cafe24: credential 'client_id' must not hold a colon (RFC 7617)")
        if credentials.get("expires_at") and moment(credentials["expires_at"]) is None:
            raise BadInput("cafe24: credential 'expires_at' must be an ISO 8601 time")

    def crawl(self, crawl: Crawl) -> Iterator[Item]:
        """The orders of the window, then all products. A record may come twice."""
        mall = Mall(crawl)
        try:
            yield from _orders(mall, days_back(crawl.now(), self._days))
            yield from _products(mall)
        finally:
            crawl.spare_account(mall.suspended_s())


def _check_text(name: str, value: object) -> None:
    """Tokens go into headers, and `requests` quotes a header that it refuses: refuse it here, unquoted."""
    if not isinstance(value, str) or not value:
        raise BadInput(f"cafe24: credential {name!r} is missing; it must be text")
    if name != "expires_at" and not VISIBLE_ASCII.fullmatch(value):
        raise BadInput(f"cafe24: credential {name!r} must be visible ASCII characters without spaces")


def _orders(mall: Mall, pieces: list[Days]) -> Iterator[Item]:
    """Each piece must fit under the largest offset, so a fuller one is halved."""
    todo = pieces[::-1]
    while todo:
        days = todo.pop()
        count = mall.read_count("orders/count", _window(days))
        if count > MAX_OFFSET and days.first < days.last:
            todo += reversed(days.halves())
        elif count > 0:
            yield from _orders_of(mall, days, count)


def _orders_of(mall: Mall, days: Days, count: int) -> Iterator[Item]:
    for _ in range(READINGS):
        complete = yield from _read_orders(mall, days, count)
        if complete:
            return
    what = f"the orders from {days.first} to {days.last}"
    raise Retry("ListMoved", f"{what}: {count} counted, but {READINGS} readings each had a gap or fewer")


def _read_orders(mall: Mall, days: Days, count: int) -> Generator[Item, None, bool]:
    """Read all pages of the days once; False if an order may have slipped between two pages.

    The list moves while it is read. An order added at its head shifts the rest to later offsets: we see some
    twice, and read on until a page is not full, whatever `count` was. An order that leaves shifts the rest to
    earlier offsets, where the next page would skip some. So pages overlap by a few rows, and the last order
    of a page must be seen again on the next one. At the end at least `count` orders must have been seen, or what
    is counted now: a shop that cuts pages shorter than asked, or swaps orders between two pages, is noticed.
    """
    offset, anchor = 0, None
    seen: set[str] = set()
    while True:
        rows, last = 0, None
        anchored = anchor is None
        page: Params = {"embed": "items", "limit": ORDERS_A_PAGE, "offset": offset}
        for order in mall.read_page("orders", {**_window(days), **page}):
            item = _order(order)
            rows, last = rows + 1, item.external_id
            seen.add(last)
            anchored = anchored or last == anchor
            yield item
        if not anchored:
            return False
        if rows < ORDERS_A_PAGE:
            return len(seen) >= count or len(seen) >= mall.read_count("orders/count", _window(days))
        if offset == MAX_OFFSET:
            if len(seen) >= mall.read_count("orders/count", _window(days)):
                return True
            raise _too_many(days)
        anchor, offset = last, min(offset + ORDERS_A_PAGE - OVERLAP, MAX_OFFSET)


def _too_many(days: Days) -> CrawlEnded:
    reach = MAX_OFFSET + ORDERS_A_PAGE
    if days.first == days.last:
        return Bug("TooManyOrders", f"{days.first} has more than the {reach} orders the API hands out a day")
    return Retry(
        "ListMoved", f"{days.first} to {days.last} grew past {reach} orders: read it again in halves"
    )


def _window(days: Days) -> Params:
    return {"date_type": "order_date", "start_date": str(days.first), "end_date": str(days.last)}


def _order(order: dict[str, Any]) -> Item:
    order_id = order.get("order_id")
    if not isinstance(order_id, str) or not order_id:
        raise Bug("UnexpectedReply", "an order has no order_id", snapshot=redact_value(order))
    return Item("order", order_id, order)


def _products(mall: Mall) -> Iterator[Item]:
    """By rising number: an offset ends at 5000, and a product deleted meanwhile would shift the rest."""
    since, rows = 0, PRODUCTS_A_PAGE
    while rows >= PRODUCTS_A_PAGE:
        rows = 0
        for product in mall.read_page("products", {"since_product_no": since, "limit": PRODUCTS_A_PAGE}):
            since, rows = _next_number(product, since), rows + 1
            yield Item("product", str(since), product)


def _next_number(product: dict[str, Any], since: int) -> int:
    number = product.get("product_no")
    if isinstance(number, bool) or not isinstance(number, int) or number <= since:
        detail = "a product has no product_no, or it does not rise: some would be skipped"
        raise Bug("UnexpectedReply", detail, snapshot=redact_value(product))
    return number


@dataclass(frozen=True)
class Days:
    """Whole days in KST, both ends included."""

    first: date
    last: date

    def halves(self) -> tuple[Days, Days]:
        """Two parts without a gap; only for more than one day."""
        middle = self.first + (self.last - self.first) // 2
        return Days(self.first, middle), Days(middle + timedelta(days=1), self.last)


def days_back(now: datetime, days: int) -> list[Days]:
    """From `days` ago to today, oldest first, in pieces of less than three calendar months."""
    last = now.astimezone(KST).date()
    first = last - timedelta(days=days)
    pieces = []
    while first <= last:
        end = min(last, _months_later(first, MONTHS_A_CALL) - timedelta(days=1))
        pieces.append(Days(first, end))
        first = end + timedelta(days=1)
    return pieces


def _months_later(day: date, months: int) -> date:
    years, month = divmod(day.month - 1 + months, 12)
    year = day.year + years
    return date(year, month + 1, min(day.day, monthrange(year, month + 1)[1]))


class Mall:
    """Sends one crawl's calls to its mall: with a living token, within the call limit, judged by status."""

    def __init__(self, crawl: Crawl) -> None:
        self._crawl = crawl
        base_url = crawl.base_url or OFFICIAL_URL
        self._base_url = base_url.replace("{mall_id}", crawl.credentials["mall_id"]).rstrip("/")
        self._limit = CallLimit()
        self._no_refresh_before = datetime.min.replace(tzinfo=UTC)

    def suspended_s(self) -> float:
        """How long the mall wants no calls, as its last reply said."""
        return max(0.0, self._limit.suspended_until - self._crawl.now().timestamp())

    def read_count(self, resource: str, params: Params) -> int:
        """The number of records; Bug unless the reply is a whole number under `count`."""
        with self._get(resource, params) as response:
            reply = read_object(Body(response))
        count = reply.get("count")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise Bug("UnexpectedReply", f"GET {resource} has no count", snapshot=redact_value(reply))
        return count

    def read_page(self, resource: str, params: Params) -> Iterator[dict[str, Any]]:
        """The records of one page, one by one as they arrive."""
        with self._get(resource, params) as response:
            yield from read_list(Body(response), resource)

    def _get(self, resource: str, params: Params) -> requests.Response:
        self._keep_token_fresh()
        response = self._send(resource, params)
        if response.status_code == 401:  # whatever we believe of its age: the stored expiry may be wrong
            response.close()
            self._refresh()
            response = self._send(resource, params)
        if response.status_code == 200:
            return response
        with response:
            raise self._refusal(f"GET {resource}?{urlencode(params)}", response)

    def _send(self, resource: str, params: Params) -> requests.Response:
        access_token = self._crawl.credentials.get("access_token")
        if not access_token:
            raise Bug("UnexpectedReply", f"POST {TOKEN_PATH} was answered without a usable access token")
        self._wait_turn()
        url = f"{self._base_url}/api/v2/admin/{resource}"
        headers = {
            "Authorization": f"Bearer {access_token}",
            "Content-Type": "application/json",
            "X-Cafe24-Api-Version": API_VERSION,
        }
        response = self._crawl.request("GET", url, params=params, headers=headers)
        self._limit.learn(response.headers, self._crawl.now().timestamp())
        return response

    def _wait_turn(self) -> None:
        """Wait as the call limit asks; a suspension is too long to hold a permit for: it ends the crawl."""
        if (left_s := self.suspended_s()) > 0:
            detail = f"the mall's usage limit is reached; calls resume in {left_s:.0f} s"
            raise Throttled("UsageLimit", detail, retry_after_s=max(1.0, left_s), account_only=True)
        delay_s = self._limit.delay_s(self._crawl.now().timestamp())
        if delay_s > 0:
            self._crawl.wait(delay_s)

    def _refusal(self, call: str, response: requests.Response) -> CrawlEnded:
        body = Body(response)
        with suppress(Retry):  # the status says enough, even if its body breaks off
            body.read_head()
        ending = classify(call, response.status_code, response.headers, body.head, self._crawl.now())
        assert ending is not None
        return ending

    def _keep_token_fresh(self) -> None:
        now = self._crawl.now()
        life_s = token_life_s(self._crawl.credentials, now)
        if life_s >= REFRESH_BELOW_S or now < self._no_refresh_before:
            return
        try:
            self._refresh()
        except Retry as failed:
            if life_s <= 0:
                raise
            log.info("refresh put off", extra={"user_id": self._crawl.user_id, "reason": failed.reason})

    def _refresh(self) -> None:
        self._wait_turn()  # here, not in `_post`: what ends the crawl must not end a refresh that has begun
        # A shop that gives out tokens of four minutes must not be asked for one before every call.
        self._no_refresh_before = self._crawl.now() + timedelta(seconds=REFRESH_AGAIN_S)
        self._crawl.refresh(self._post)

    def _post(self, credentials: Credentials) -> Credentials:
        with self._crawl.request(
            "POST",
            self._base_url + TOKEN_PATH,
            auth=(credentials["client_id"], credentials["client_secret"]),
            data={"grant_type": "refresh_token", "refresh_token": credentials["refresh_token"]},
        ) as response:
            now = self._crawl.now()
            self._limit.learn(response.headers, now.timestamp())
            body = Body(response).read_head()
        ending = classify_refresh(response.status_code, response.headers, body, now)
        if ending is not None:
            raise ending
        return renewed(credentials, body, now)
