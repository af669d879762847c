"""What the sellers have sold: order items that follow from the config alone, and the lists the API makes of them.

The shop serves them, and a test asks `expected_items` what a crawl has to bring, without HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from functools import lru_cache
from math import ceil
from threading import Lock
from typing import Literal, NamedTuple

from crawlfleet.demo.ably.config import AblyConfig
from crawlfleet.demo.ably.traps import AblyTraps
from crawlfleet.demo.exchange import Body, Refused
from crawlfleet.demo.history import dice, order_times
from crawlfleet.demo.korea import KST, midnight
from crawlfleet.demo.parameters import Parameters

Strategy = Literal["http", "dom"]

COLUMNS = {
    "sno": "상품주문번호",
    "order_sno": "주문번호",
    "goods_sno": "상품번호",
    "goods_name": "상품명",
    "option_title": "옵션",
    "ea": "수량",
    "buyer_name": "구매자",
    "receiver_addr": "배송지",
    "checked_at": "주문확인일시",
    "ordered_at": "주문일시",
}
"""The keys that the order page draws, and their headings."""
GOODS = (
    "린넨 오버핏 셔츠",
    "하이웨스트 와이드 데님",
    "리본 블라우스 & 스커트 <SET>",
    '골지 니트 "베이직" 가디건',
    "플리츠 롱 스커트",
    "크롭 트위드 재킷",
    "코튼 트레이닝 팬츠",
    "스퀘어넥 원피스 (3color)",
)
OPTIONS = ("블랙 / FREE", "아이보리 / S", "소라 / M", "차콜 / L")
STREETS = ("왕십리로", "테헤란로", "월드컵북로", "성수이로", "동일로")
GOODS_NUMBERS = 60
MOVING_ORDER_NO = 90_000
MOVED_MAX = 20
"""So many orders come in at most, and so many vanish, while clients read."""
DAY = re.compile(r"\d{4}-\d\d-\d\d")
WORDS = {"start_date", "end_date", "page", "per_page", "date_type", "order"}


class OrderItem(NamedTuple):
    """An ordered article of a seller: `no` is unique and rises with time."""

    no: int
    checked_at: datetime


@lru_cache(maxsize=512)
def order_items_of(config: AblyConfig, seller: str, today: date) -> tuple[OrderItem, ...]:
    """The order items of a seller, newest first."""
    count = config.orders_per_seller
    times = order_times(config.seed, seller, count, config.order_days, today)
    return tuple(OrderItem(count - i, at) for i, at in enumerate(times))


def order_item_body(config: AblyConfig, seller: str, item: OrderItem) -> Body:
    """One order item as the API gives it. Times carry +09:00; nobody else's item has its `sno`."""
    lot = dice(config.seed, seller, "order_item", item.no)
    sno = _first_sno(config, seller) + item.no
    buyer_no = int.from_bytes(lot[:2], "big")
    goods_no = lot[2] % GOODS_NUMBERS
    return {
        "sno": sno,
        "order_sno": sno - lot[3] % 2,
        "goods_sno": 100_000 + goods_no,
        "goods_name": GOODS[goods_no % len(GOODS)],
        "goods_custom_code": f"G{goods_no:04d}",
        "goods_image": f"/img/{goods_no}.jpg",
        "option_title": OPTIONS[lot[4] % len(OPTIONS)],
        "option_stock_sync_code": f"G{goods_no:04d}-{lot[4] % len(OPTIONS)}",
        "ea": 1 + lot[5] % 3,
        "buyer_name": f"구매자 {buyer_no}",
        "buyer_tel": f"010-0000-{buyer_no % 10_000:04d}",
        "buyer_email": f"buyer{buyer_no}@example.com",
        "receiver_name": f"수령인 {buyer_no}",
        "receiver_addr": f"서울특별시 {STREETS[lot[6] % len(STREETS)]} {1 + lot[7]}, {1 + lot[8] % 20}층",
        "checked_at": item.checked_at.isoformat(),
        "ordered_at": (item.checked_at - timedelta(minutes=5 + lot[9])).isoformat(),
        "processing_status": 1,
        "invoice": None,
    }


def _first_sno(config: AblyConfig, seller: str) -> int:
    return int.from_bytes(dice(config.seed, seller, "sno")[:3], "big") * 100_000


def drawn(body: Body) -> Body:
    """An order item as the order page shows it: every column as text."""
    return {key: str(body[key]) for key in COLUMNS}


def expected_items(
    config: AblyConfig, seller: str, days: int, today: date, strategy: Strategy = "http"
) -> dict[tuple[str, str], Body]:
    """The truth: what a crawl of the last `days` days has to bring, by (kind, external_id).

    `today` is the day (KST) on which the shop started; orders count from `today - days` on. With `http` a
    body is the API's, with `dom` it is what the order page shows. Orders that a trap adds are not in it.
    """
    since = midnight(today - timedelta(days=days))
    items = [item for item in order_items_of(config, seller, today) if item.checked_at >= since]
    bodies = [order_item_body(config, seller, item) for item in items]
    return {("order_item", str(body["sno"])): drawn(body) if strategy == "dom" else body for body in bodies}


class OrderLists:
    """The order lists of every seller as of the day `today` (KST). Thread-safe."""

    def __init__(self, config: AblyConfig, today: date, now: Callable[[], datetime]) -> None:
        self._config = config
        self._today = today
        self._now = now
        self._lock = Lock()
        self._added: dict[str, list[OrderItem]] = {}
        self._vanished: dict[str, int] = {}

    def page(self, seller: str, query: str, traps: AblyTraps) -> Body:
        """The page that the query asks for; raises Refused."""
        parameters = Parameters(query, WORDS)
        parameters.choice("date_type", "checked_at", {"checked_at"})
        parameters.choice("order", "-checked_at", {"-checked_at"})
        page, per_page = parameters.number("page", 1, 1), parameters.number("per_page", 50, 1, 100)
        begin, until = _days(parameters)
        found = [item for item in self.items(seller) if begin <= item.checked_at < until]
        chosen = found[(page - 1) * per_page : page * per_page]
        bodies = [order_item_body(self._config, seller, item) for item in chosen]
        self._move(seller, traps)
        return {"order_items": bodies, "max_page_number": max(1, ceil(len(found) / per_page))}

    def items(self, seller: str) -> list[OrderItem]:
        """The order items of a seller as they are now, newest first."""
        with self._lock:
            added, vanished = self._added.get(seller, []), self._vanished.get(seller, 0)
            return [*reversed(added), *order_items_of(self._config, seller, self._today)[vanished:]]

    def vanished(self, seller: str) -> set[str]:
        """The `sno` of the orders that a trap has taken away."""
        with self._lock:
            gone = order_items_of(self._config, seller, self._today)[: self._vanished.get(seller, 0)]
        return {str(_first_sno(self._config, seller) + item.no) for item in gone}

    def _move(self, seller: str, traps: AblyTraps) -> None:
        """What happens to the list while a client reads on."""
        with self._lock:
            added = self._added.setdefault(seller, [])
            if traps.moving_orders and len(added) < MOVED_MAX:
                at = self._now().astimezone(KST).replace(microsecond=0)
                added.append(OrderItem(MOVING_ORDER_NO + len(added), at))
            if traps.vanishing_orders:
                self._vanished[seller] = min(self._vanished.get(seller, 0) + 1, MOVED_MAX)


def _days(parameters: Parameters) -> tuple[datetime, datetime]:
    for name in ("start_date", "end_date"):
        if not DAY.fullmatch(parameters.text(name)):
            raise Refused(f"[{name}] must be a date (YYYY-MM-DD).")
    window = parameters.window("start_date", "end_date")
    assert window is not None, "both dates are there"
    return window
