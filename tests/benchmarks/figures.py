"""A benchmark's figures: what was measured, the bar it has to hold, and what it was compared with in the same run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_HEADS = ("figure", "measured", "bar", "", "compared with, in the same run")


@dataclass(frozen=True)
class Figure:
    """One line of the table. `holds` None: told for information, without a bar."""

    name: str
    measured: str
    bar: str
    holds: bool | None
    comparison: str = ""


def at_most(name: str, value: float, bar: float, unit: str, comparison: str = "") -> Figure:
    """A figure that holds if it is not above its bar."""
    return Figure(name, f"{value:.3g} {unit}", f"≤ {bar:g} {unit}", value <= bar, comparison)


def at_least(name: str, value: float, bar: float, unit: str, comparison: str = "") -> Figure:
    """A figure that holds if it is not below its bar."""
    return Figure(name, f"{value:,.0f} {unit}", f"≥ {bar:,.0f} {unit}", value >= bar, comparison)


def told(name: str, measured: str, comparison: str = "") -> Figure:
    """A figure without a bar."""
    return Figure(name, measured, "", None, comparison)


def table(figures: Iterable[Figure]) -> str:
    """The figures as a Markdown table with aligned columns."""
    rows = [[f.name, f.measured, f.bar, _word(f.holds), f.comparison] for f in figures]
    widths = [max(len(row[i]) for row in [list(_HEADS), *rows]) for i in range(len(_HEADS))]
    lines = [_line(_HEADS, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join(lines + [_line(row, widths) for row in rows])


def _word(holds: bool | None) -> str:
    return {None: "", True: "holds", False: "MISSED"}[holds]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
