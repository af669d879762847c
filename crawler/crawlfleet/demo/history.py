"""The past of a stand-in platform: it follows from the seed alone, so that a truth needs no HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import date, datetime, timedelta

from crawlfleet.demo.korea import midnight


def dice(seed: str, *what: object) -> bytes:
    """Sixteen bytes that look random and are always the same for the same thing."""
    text = "/".join(map(str, (seed, *what)))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def order_times(seed: str, account: str, count: int, days: int, today: date) -> Iterator[datetime]:
    """When an account's orders came, newest first: spread over the `days` before the midnight that began `today`.

    The newest lies exactly on that midnight, where a wrong time zone or a wrong end of a window shows.
    """
    for i in range(count):
        jitter = dice(seed, account, "placed", i)[0] / 256 if i else 0.0
        yield midnight(today) - timedelta(seconds=int((i + jitter) / count * days * 86_400))
