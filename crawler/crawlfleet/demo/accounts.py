"""The sellers of the stand-in shops: the same people at every platform."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from crawlfleet.demo.exchange import Body
from crawlfleet.demo.korea import KST


def account_lines(
    count: int, source: str, credentials: Callable[[int], Body], now: datetime
) -> Iterator[Body]:
    """Account lines of the users 1..count: 3 of 10 paid, 5 free and active in the last week, 2 inactive."""
    for user_id in range(1, count + 1):
        place = user_id % 10
        away = timedelta(days=30 + user_id % 60) if place >= 8 else timedelta(hours=user_id % 144)
        yield {
            "user_id": user_id,
            "source": source,
            "subscription": "paid" if place < 3 else "free",
            "last_login_at": (now - away).astimezone(KST).isoformat(timespec="seconds"),
            "credentials": credentials(user_id),
        }
