"""The query of a list request, read by the rules of the API: numbers, comma lists, words, time windows."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta
from urllib.parse import parse_qsl

from crawlfleet.demo.exchange import Refused
from crawlfleet.demo.korea import KST

COMMA_VALUES_MAX = 100
MOMENT = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d([+-]\d\d:\d\d)?)?")


class Parameters:
    """The query of one request, read by the rules of the API. Every method raises Refused."""

    def __init__(self, query: str, known: set[str]) -> None:
        self._values = dict(parse_qsl(query, keep_blank_values=True))
        # The real API ignores what it does not know; here that would falsify a test's truth.
        if unknown := self._values.keys() - known:
            raise Refused(f"Parameters unknown to the stand-in shop: {', '.join(sorted(unknown))}")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str = "") -> str:
        """The value as it is."""
        return self._values.get(name, default)

    def number(self, name: str, default: int, least: int, most: float = math.inf) -> int:
        """A whole number within its limits."""
        text = self._values.get(name, str(default))
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise Refused(f"[{name}] must be a number from {least} to {most}.")
        return int(text)

    def values(self, name: str) -> list[str]:
        """The values of a comma list."""
        values = [value for value in self.text(name).split(",") if value]
        if len(values) > COMMA_VALUES_MAX:
            raise Refused(f"[{name}] takes at most {COMMA_VALUES_MAX} values.")
        return values

    def choice(self, name: str, default: str, choices: set[str]) -> str:
        """One of a fixed set of words."""
        if (value := self.text(name, default)) not in choices:
            raise Refused(f"[{name}] is not valid.")
        return value

    def embeds(self, choices: set[str]) -> list[str]:
        """The embedded resources asked for."""
        embeds = self.values("embed")
        if set(embeds) - choices:
            raise Refused("[embed] is not valid.")
        return embeds

    def window(self, start: str, end: str) -> tuple[datetime, datetime] | None:
        """The half-open time span of two parameters that come together or not at all.

        A date is a whole day in Korea; a time means itself, to the second.
        """
        if start not in self and end not in self:
            return None
        begin, last = _moment(self.text(start), start), _moment(self.text(end), end)
        until = last + (
            timedelta(days=1) if len(self.text(end)) == len("2026-11-20") else timedelta(seconds=1)
        )
        if until <= begin:
            raise Refused(f"[{end}] must not be before [{start}].")
        return begin, until


def _moment(text: str, name: str) -> datetime:
    if not MOMENT.fullmatch(text):
        raise Refused(f"[{name}] must be a date (YYYY-MM-DD).")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(f"[{name}] must be a date (YYYY-MM-DD).") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=KST)
