"""Tables for people and for `awk`: columns padded to their widest cell, never cut to a terminal's width; and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A header line, then one line a row. Nothing is `-`, times are UTC."""
    lines = [list(columns), *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def cell(value: Any) -> str:
    """One value as a table shows it."""
    if value is None:
        return "-"
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if isinstance(value, datetime) else str(value)


def number_of(count: int, thing: str) -> str:
    """1 account, 2 accounts."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
