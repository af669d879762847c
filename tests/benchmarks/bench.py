"""`make bench`: measure what the product promises, and exit 1 if it does not hold.

Every figure stands beside its bar and, where there is one, beside its rival in the same run. The share of the
cores that others used meanwhile is told with each case: above a tenth the figures say little.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from subprocess import CalledProcessError

import browser
import clean_clone
import even_load
import machine
import makespan
import memory
import operator_scale
import planning
import psycopg
import seed_figures
import testbed_speed
import throughput
from figures import Figure, table
from rig import Rig

from crawlfleet.errors import CrawlfleetError
from crawlfleet.local.postgres import EmbeddedPostgres

CASES: dict[str, Callable[[Rig], list[Figure]]] = {
    "throughput": throughput.measure,
    "planning": planning.measure,
    "seed": seed_figures.measure,
    "makespan": makespan.measure,
    "even-load": even_load.measure,
    "memory": memory.measure,
    "browser": browser.measure,
    "cluster": testbed_speed.measure,
    "operator": operator_scale.measure,
    "clean-clone": clean_clone.measure,
}
NOT_MEASURED = (CrawlfleetError, RuntimeError, CalledProcessError, psycopg.Error)


@dataclass(frozen=True)
class Result:
    """A case's figures, and under which load they were taken."""

    case: str
    figures: list[Figure]
    seconds: float
    load: str
    foreign: float

    def __str__(self) -> str:
        busy = " BUSY: measure again." if self.foreign > machine.BUSY else ""
        said = f"{self.seconds:.0f} s; load before it {self.load}; others used {self.foreign:.0%} of the cores.{busy}"
        return f"{self.case}: {said}\n\n{table(self.figures)}\n"


def main() -> int:
    """Run the cases that were asked for; 0 if every bar holds."""
    options = _parser().parse_args()
    results = []
    with _rig() as rig:
        on = machine.describe(rig.postgres_version())
        print(f"{on}; load {machine.load()}\n", flush=True)
        busy = machine.foreign_now()
        if busy > machine.BUSY:
            print(
                f"WARNING: others use {busy:.0%} of the cores now; the figures will say little\n", flush=True
            )
        for name in options.cases or CASES:
            results.append(_run(name, CASES[name], rig))
            print(results[-1], flush=True)
    if options.save:
        _save(options.save, on, results)
    return int(any(figure.holds is False for result in results for figure in result.figures))


def _case(name: str) -> str:
    if name not in CASES:
        raise argparse.ArgumentTypeError(f"no case {name!r}; there are {', '.join(CASES)}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description="measure crawlfleet on this machine")
    names = ", ".join(CASES)
    parser.add_argument("cases", nargs="*", metavar="CASE", type=_case, help=f"{names}; default: all")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the results there, as Markdown")
    return parser


@contextmanager
def _rig() -> Iterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="crawlfleet-bench-") as name:
        Path(name).chmod(0o711)  # PostgreSQL's account has to pass
        with EmbeddedPostgres(Path(name) / "state") as server:
            yield Rig(Path(name), server)


def _run(name: str, measure: Callable[[Rig], list[Figure]], rig: Rig) -> Result:
    load, began_s = machine.load(), time.monotonic()
    with machine.Others() as others:
        try:
            figures = measure(rig)
        except NOT_MEASURED as exc:  # the other cases still tell something
            figures = [Figure(f"{name} could not be measured", str(exc).replace("\n", " "), "", False)]
    return Result(name, figures, time.monotonic() - began_s, load, others.share())


def _save(file: Path, on: str, results: list[Result]) -> None:
    said = [f"**{result.case}**{str(result)[len(result.case) :]}" for result in results]
    file.write_text("\n\n".join([f"Measured {datetime.now(UTC):%Y-%m-%d} on {on}.", *said]))


if __name__ == "__main__":
    sys.exit(main())
