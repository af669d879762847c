"""What the malls hold: orders and products that follow from the config alone.

The shop serves them, and a test asks `expected_items` what a crawl has to bring, without HTTP.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.exchange import Body
from crawlfleet.demo.history import dice, order_times
from crawlfleet.demo.korea import midnight


class Order(NamedTuple):
    """An order of a mall: `no` is unique and rises with time."""

    no: int
    placed_at: datetime

    @property
    def order_id(self) -> str:
        """As Cafe24 writes it: the day and a number."""
        return f"{self.placed_at.date().isoformat().replace('-', '')}-{self.no:07d}"


@lru_cache(maxsize=512)
def orders_of(config: Cafe24Config, mall_id: str, today: date) -> tuple[Order, ...]:
    """The orders of a mall, newest first."""
    count = config.orders_per_mall
    times = order_times(config.seed, mall_id, count, config.order_days, today)
    return tuple(Order(count - i, at) for i, at in enumerate(times))


def order_body(config: Cafe24Config, mall_id: str, order: Order) -> Body:
    """One order with its items, as `embed=items` gives it. Money is text, times carry +09:00."""
    lot = dice(config.seed, mall_id, "order", order.no)
    order_id = order.order_id
    items = [_order_item(config, order_id, no, lot) for no in range(1, 2 + lot[0] % 3)]
    paid_at = order.placed_at + timedelta(minutes=1 + lot[1] % 5)
    buyer_no = int.from_bytes(lot[2:4], "big")
    return {
        "shop_no": 1,
        "currency": "KRW",
        "order_id": order_id,
        "member_id": f"member{buyer_no}",
        "billing_name": f"결제자 {buyer_no}",
        "buyer_name": f"주문자 {buyer_no}",
        "buyer_email": f"buyer{buyer_no}@example.com",
        "payment_method": ["card"],
        "paid": "T",
        "canceled": "F",
        "order_date": order.placed_at.isoformat(),
        "payment_date": paid_at.isoformat(),
        "payment_amount": f"{sum(_price(item['product_no']) * item['quantity'] for item in items)}.00",
        "cancel_date": None,
        "shipping_status": "F",
        "items": items,
    }


def _order_item(config: Cafe24Config, order_id: str, no: int, lot: bytes) -> Body:
    product_no = 1 + lot[3 + no] % max(config.products_per_mall, 1)
    return {
        "item_no": no,
        "order_item_code": f"{order_id}-{no:02d}",
        "product_no": product_no,
        "product_name": f"상품 {product_no}",
        "product_price": f"{_price(product_no)}.00",
        "quantity": 1 + lot[7 + no] % 3,
        "order_status": "N10",
    }


def product_body(config: Cafe24Config, mall_id: str, product_no: int, today: date) -> Body:
    """One product. A higher number was created later; all were changed within the last five days."""
    age_h = (config.products_per_mall - product_no + 1) * 24 + 24 * config.order_days
    changed_h = dice(config.seed, mall_id, "changed", product_no)[0] % 120
    return {
        "shop_no": 1,
        "product_no": product_no,
        "product_code": f"P{product_no:07d}",
        "product_name": f"상품 {product_no}",
        "price": f"{_price(product_no)}.00",
        "display": "T",
        "selling": "T",
        "sold_out": "F",
        "created_date": (midnight(today) - timedelta(hours=age_h)).isoformat(),
        "updated_date": (midnight(today) - timedelta(hours=changed_h)).isoformat(),
    }


def _price(product_no: int) -> int:
    return 1000 + product_no * 700 % 49_000


def expected_items(config: Cafe24Config, mall_id: str, days: int, today: date) -> dict[tuple[str, str], Body]:
    """The truth: what a crawl of the last `days` days has to bring, by (kind, external_id).

    `today` is the day (KST) on which the shop started. Orders count from `today - days` on and hold
    their items; products are always all. Orders that a trap adds are not in it.
    """
    since = midnight(today - timedelta(days=days))
    expected = {
        ("order", order.order_id): order_body(config, mall_id, order)
        for order in orders_of(config, mall_id, today)
        if order.placed_at >= since
    }
    for no in range(1, config.products_per_mall + 1):
        expected["product", str(no)] = product_body(config, mall_id, no, today)
    return expected
