"""The time zone the stand-in shops live in."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone

KST = timezone(timedelta(hours=9))


def korean_now() -> datetime:
    """The time in Korea."""
    return datetime.now(KST)


def midnight(day: date) -> datetime:
    """The moment a day begins in Korea."""
    return datetime(day.year, day.month, day.day, tzinfo=KST)
