"""The source that crawls nothing: it waits and yields made-up items, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from crawlfleet.errors import BadInput
from crawlfleet.sources import Crawl, Credentials, Item
from crawlfleet.sources.options import check_known, whole_number

_LONGEST_S = 86_400.0


class Noop:
    """Options: `duration_s` and `items` of each task, `body_bytes` of each item; all 0 by default.

    An account's credentials may hold `duration_s`, which then counts for that account.
    """

    official_url: ClassVar[str | None] = None
    needs_browser: ClassVar[bool] = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        check_known("noop", options, ("duration_s", "items", "body_bytes"))
        self._duration_s = _seconds("option", options.get("duration_s", 0))
        self._items = whole_number("noop", options, "items", 0, least=0, most=10_000_000)
        body_bytes = whole_number("noop", options, "body_bytes", 0, least=0, most=10_000_000)
        self._filler = "x" * body_bytes

    def check_credentials(self, credentials: Credentials) -> None:
        """Nothing but `duration_s` may be there; it may be text, since it may come from a CSV file."""
        for name in credentials:
            if name != "duration_s":
                raise BadInput(f"noop: unknown credential {name!r}; known: duration_s")
        _seconds("credential", credentials.get("duration_s", 0))

    def crawl(self, crawl: Crawl) -> Iterator[Item]:
        """Wait for the duration, then yield the items."""
        duration_s = _seconds("credential", crawl.credentials.get("duration_s", self._duration_s))
        if duration_s > 0:
            crawl.wait(duration_s)
        for no in range(self._items):
            yield Item("item", str(no), {"no": no, "filler": self._filler})


def _seconds(place: str, value: object) -> float:
    try:
        if (
            isinstance(value, int | float | str)
            and not isinstance(value, bool)
            and 0 <= float(value) <= _LONGEST_S
        ):
            return float(value)
    except ValueError:  # text that is no number
        pass
    raise BadInput(f"noop: {place} 'duration_s' must be a number of seconds from 0 to {_LONGEST_S:.0f}")
