"""The lists of a mall: its orders, their count and its products, found and paged as the query asks.

The shop asks `answer` for what it would serve on a good day, and spoils that itself. Only two traps are sprung
here, since they change what a list holds: `poison_record` and `moving_orders`.
"""

from __future__ import annotations

import calendar
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from threading import Lock
from urllib.parse import parse_qsl, urlencode

from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.replies import api_error
from crawlfleet.demo.cafe24.traps import Cafe24Traps
from crawlfleet.demo.cafe24.truth import Order, order_body, orders_of, product_body
from crawlfleet.demo.exchange import Body, Refused, Reply, Request, Visit
from crawlfleet.demo.korea import KST
from crawlfleet.demo.parameters import Parameters

MOVING_ORDERS_MAX = 20
MOVING_ORDER_NO = 9_000_000
ORDER_DATES = {"order_date": "order_date", "pay_date": "payment_date", "cancel_date": "cancel_date"}
"""The date types that have a field here; of the others no order has a date yet."""
DATELESS = {
    f"{event}_date"
    for event in (
        *("shipbegin", "shipend", "place", "purchaseconfirmation", "cancel_request", "cancel_accept"),
        *("cancel_complete", "exchange_request", "exchange_accept", "exchange_complete"),
        *("return_request", "return_accept", "return_complete"),
    )
}
ORDER_EMBEDS = {"items", "receivers", "buyer", "return", "cancellation", "exchange"}
PRODUCT_EMBEDS = {
    "variants",
    "options",
    "benefits",
    "discountprice",
    "decorationimages",
    "additionalimages",
    "hits",
}
LIST_WORDS = {"shop_no", "fields", "embed", "limit", "offset"}
ORDER_WORDS = {"shop_no", "start_date", "end_date", "date_type"}
PRODUCT_DATES = ("created", "updated")
PRODUCT_WORDS = {"since_product_no", "product_no", "sort", "order"} | {
    f"{kind}_{end}_date" for kind in PRODUCT_DATES for end in ("start", "end")
}


class Listings:
    """The lists of every mall as of the day `today` (KST). Thread-safe."""

    def __init__(self, config: Cafe24Config, today: date, now: Callable[[], datetime]) -> None:
        self._config = config
        self._today = today
        self._now = now
        self._lock = Lock()
        self._moved: dict[str, list[Order]] = {}

    def answer(self, request: Request, visit: Visit, traps: Cafe24Traps) -> Reply:
        """The list that the request names, or the refusal of its parameters."""
        try:
            body = {
                "orders": self._orders,
                "orders/count": self._orders_count,
                "products": self._products,
            }[visit.what](request, visit, traps)
        except Refused as refusal:
            return api_error(refusal.status, str(refusal))
        return Reply.of_json(200, body)

    def _orders(self, request: Request, visit: Visit, traps: Cafe24Traps) -> Body:
        parameters = Parameters(request.query, ORDER_WORDS | LIST_WORDS)
        limit = parameters.number("limit", 10, 1, 1000)
        offset = parameters.number("offset", 0, 0, 15_000)
        embeds = parameters.embeds(ORDER_EMBEDS)
        found = self._found_orders(visit.account, parameters)
        page = [self._order(visit.account, o, embeds, traps) for o in found[offset : offset + limit]]
        if traps.moving_orders:
            self._move(visit.account)
        body: Body = {"orders": _with_fields(page, parameters)}
        return body | _next_link(request, offset, limit, len(found))

    def _orders_count(self, request: Request, visit: Visit, traps: Cafe24Traps) -> Body:
        parameters = Parameters(request.query, ORDER_WORDS)
        return {"count": len(self._found_orders(visit.account, parameters))}

    def _found_orders(self, mall: str, parameters: Parameters) -> list[Order]:
        window = _order_window(parameters)
        date_type = parameters.choice("date_type", "order_date", ORDER_DATES.keys() | DATELESS)
        with self._lock:
            orders = [*reversed(self._moved.get(mall, ())), *orders_of(self._config, mall, self._today)]
        if date_type == "order_date":
            return [order for order in orders if window[0] <= order.placed_at < window[1]]
        name = ORDER_DATES.get(date_type)
        return [o for o in orders if _is_within(order_body(self._config, mall, o), name, window)]

    def _order(self, mall: str, order: Order, embeds: Sequence[str], traps: Cafe24Traps) -> Body:
        body = order_body(self._config, mall, order)
        items = body.pop("items")
        for embed in embeds:
            body[embed] = items if embed == "items" else []
        if traps.poison_record and order.no == self._config.orders_per_mall:
            body["buyer_name"] += "\0"
        return body

    def _move(self, mall: str) -> None:
        with self._lock:
            moved = self._moved.setdefault(mall, [])
            if len(moved) < MOVING_ORDERS_MAX:
                placed_at = self._now().astimezone(KST).replace(microsecond=0)
                moved.append(Order(MOVING_ORDER_NO + len(moved), placed_at))

    def _products(self, request: Request, visit: Visit, traps: Cafe24Traps) -> Body:
        parameters = Parameters(request.query, PRODUCT_WORDS | LIST_WORDS)
        limit = parameters.number("limit", 10, 1, 100)
        offset = parameters.number("offset", 0, 0, 5000)
        embeds = parameters.embeds(PRODUCT_EMBEDS)
        found = self._found_products(visit.account, parameters)
        page = [product | {embed: [] for embed in embeds} for product in found[offset : offset + limit]]
        body: Body = {"products": _with_fields(page, parameters)}
        return (
            body
            if "since_product_no" in parameters
            else body | _next_link(request, offset, limit, len(found))
        )

    def _found_products(self, mall: str, parameters: Parameters) -> list[Body]:
        since = parameters.number("since_product_no", 0, 0)
        if "since_product_no" in parameters:
            _check_cursor_alone(parameters)
        numbers = range(since + 1, self._config.products_per_mall + 1)
        products = [product_body(self._config, mall, no, self._today) for no in numbers]
        for kind in PRODUCT_DATES:
            if window := parameters.window(f"{kind}_start_date", f"{kind}_end_date"):
                products = [p for p in products if _is_within(p, f"{kind}_date", window)]
        if wanted := parameters.values("product_no"):
            products = [p for p in products if str(p["product_no"]) in wanted]
        return products if "since_product_no" in parameters else _sorted_products(products, parameters)


def _sorted_products(products: list[Body], parameters: Parameters) -> list[Body]:
    sort = parameters.choice("sort", "created_date", {"created_date", "updated_date", "product_name"})
    order = parameters.choice("order", "desc", {"asc", "desc"})
    return sorted(products, key=lambda p: (p[sort], p["product_no"]), reverse=order == "desc")


def _order_window(parameters: Parameters) -> tuple[datetime, datetime]:
    """The span of an order search: required, and three months at most."""
    window = parameters.window("start_date", "end_date")
    if window is None:
        raise Refused("[start_date] and [end_date] are required.")
    if window[1] > _months_later(window[0], 3) + timedelta(days=1):
        raise Refused("The search period must not exceed 3 months.")
    return window


def _months_later(moment: datetime, months: int) -> datetime:
    years, month = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + years, month + 1
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))


def _check_cursor_alone(parameters: Parameters) -> None:
    for name in ("product_no", "sort", "order", "offset"):
        if name in parameters:
            raise Refused(f"[{name}] cannot be used with [since_product_no].")


def _with_fields(page: list[Body], parameters: Parameters) -> list[Body]:
    wanted = parameters.values("fields")
    return [{name: row[name] for name in wanted if name in row} for row in page] if wanted else page


def _next_link(request: Request, offset: int, limit: int, total: int) -> Body:
    if offset + limit >= total:
        return {}
    query = urlencode({**dict(parse_qsl(request.query)), "offset": offset + limit})
    host = request.headers.get("host", "127.0.0.1")
    return {"links": [{"rel": "next", "href": f"http://{host}{request.path}?{query}"}]}


def _is_within(body: Body, name: str | None, window: tuple[datetime, datetime]) -> bool:
    text = body[name] if name else None
    return text is not None and window[0] <= datetime.fromisoformat(text) < window[1]
