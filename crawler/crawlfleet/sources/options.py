"""Checks of a CrawlSource's `options`, shared by the adapters; every refusal names the option."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from crawlfleet.errors import BadInput


def check_known(adapter: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise BadInput for the first option that the adapter does not have, and list those it has."""
    names = sorted(known)
    for name in options:
        if name not in names:
            raise BadInput(f"{adapter}: unknown option {name!r}; known: {', '.join(names)}")


def whole_number(
    adapter: str, options: Mapping[str, Any], name: str, default: int, *, least: int, most: int
) -> int:
    """The option as a whole number between `least` and `most`; BadInput otherwise."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadInput(
            f"{adapter}: option {name!r} must be a whole number from {least} to {most}, not {value!r}"
        )
    return value
