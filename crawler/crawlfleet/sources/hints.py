"""How long a shop's reply asks to wait. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_S = 86_400.0
"""A longer hint is taken for this one."""


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """`Retry-After` in seconds, from seconds or an HTTP date (RFC 9110, 10.2.3); None if there is none that makes sense."""
    value = headers.get("Retry-After")
    hint_s = seconds(value)
    if hint_s is not None or value is None:
        return hint_s
    try:
        then = parsedate_to_datetime(value)
        then = then if then.tzinfo else then.replace(tzinfo=UTC)
        return min(LONGEST_S, max(0.0, (then - now).total_seconds()))
    except (ValueError, OverflowError):
        return None


def seconds(value: str | None) -> float | None:
    """A header's number as a time to wait; None if it makes no sense."""
    read = number(value)
    return None if read is None else min(LONGEST_S, read)


def number(value: str | None) -> float | None:
    """A header's number, if it is one that makes sense."""
    try:
        read = float(value or "")
    except ValueError:
        return None
    return read if 0.0 <= read < float("inf") else None
