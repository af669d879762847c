"""How `crawlfleet run` looks: one living picture on a terminal, plain lines elsewhere, a summary at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from crawlfleet.local.watch import ATTENTION, CANCELLED, OPEN, failure_words, line, speak_of_logs
from crawlfleet.progress import Progress, duration, eta
from crawlfleet.store.batches import Failure

PLAIN_LINE_S = 2.0
BAR_WIDTH = 40
LEFT_OUT = ("workers", "cancelled", "retrying", "rate", "waiting", "running", "failed")
"""What a narrow terminal does not get, in this order."""


@dataclass(frozen=True)
class Look:
    """One look at a running batch: `rate` in tasks a second, `seconds` since its plan."""

    batch: str
    progress: Progress
    sources: Mapping[str, Progress]
    rate: float
    waits_for: str
    workers: int
    seconds: float


class PlainView:
    """For a log or a pipe: a line every PLAIN_LINE_S, one at the end, and whatever is said."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0
        self._ended = False

    def show(self, look: Look) -> None:
        """Show how the batch stands now."""
        p = look.progress
        ended = p.total > 0 and p.open == 0
        if p.total > 0 and not self._ended and (ended or time.monotonic() >= self._next_s):
            self._next_s, self._ended = time.monotonic() + PLAIN_LINE_S, ended
            self.say(f"{look.batch}: {line(p, look.rate, look.waits_for, look.sources)}")

    def say(self, text: str) -> None:
        """Tell an event."""
        say(self._console, text)


class LiveView(PlainView):
    """For a terminal: a picture that changes; what is said scrolls away above it."""

    def __init__(self, console: Console, live: Live) -> None:
        super().__init__(console)
        self._live = live

    def show(self, look: Look) -> None:
        self._live.update(Picture(look))


@contextmanager
def view(console: Console) -> Iterator[PlainView]:
    """The view that fits the console, until the batch ends."""
    if not console.is_terminal:
        yield PlainView(console)
        return
    with Live(console=console, refresh_per_second=8) as live:
        yield LiveView(console, live)


def say(console: Console, text: str) -> None:
    """One line as it is: not wrapped (it may hold a command to copy), not coloured."""
    console.print(Text(text), soft_wrap=True)


@dataclass(frozen=True)
class Picture:
    """The batch at one glance, as wide as the terminal is: what does not fit is left out, not cut."""

    look: Look

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _head(self.look, options.max_width)
        cells = _numbers(self.look)
        for name in LEFT_OUT:
            if _width(console, cells) > options.max_width:
                cells.pop(name, None)
        yield _table(cells)
        yield Text(f"waits for: {self.look.waits_for}", style="dim")


def _head(look: Look, width: int) -> Table:
    p = look.progress
    ended = f"{p.ended / p.total:.0%}" if p.total else "planned"
    took = duration(look.seconds)
    bar_width = min(BAR_WIDTH, width - len(look.batch) - len(ended) - len(took) - 6)
    bar = [ProgressBar(total=max(p.total, 1), completed=p.ended, width=bar_width)] if bar_width > 0 else []
    head = Table.grid(padding=(0, 2))
    head.add_row(Text(look.batch, style="bold", overflow="ellipsis", no_wrap=True), *bar, ended, took)
    return head


def _numbers(look: Look) -> dict[str, list[Text]]:
    """Column → the batch's cell, and below it those of each source, if there are several."""
    sources = look.sources if len(look.sources) > 1 else {}
    rows = [look.progress, *sources.values()]
    cells = {
        "": [Text(name, style="dim") for name in ("", *sources)],
        "done": [Text(f"{p.done}/{p.total}", style="green" if p.done else "") for p in rows],
        "running": [Text(str(p.running)) for p in rows],
        "waiting": [Text(str(p.waiting)) for p in rows],
        "retrying": [Text(str(p.retrying), style="yellow" if p.retrying else "") for p in rows],
        "failed": [Text(str(p.failed), style="bold red" if p.failed else "") for p in rows],
        "cancelled": [Text(str(p.cancelled)) for p in rows],
        "rate": [Text(f"{look.rate:.1f}/s")],
        "ETA": [Text(eta(look.progress, look.rate))],
        "workers": [Text(str(look.workers))],
    }
    if not sources:
        del cells[""]
    if not look.progress.cancelled:
        del cells["cancelled"]
    return cells


def _width(console: Console, cells: Mapping[str, Sequence[Text]]) -> int:
    """How wide the numbers would be with room for all."""
    return console.measure(_table(cells), options=console.options.update(max_width=1000)).maximum


def _table(cells: Mapping[str, Sequence[Text]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in cells:
        table.add_column(name, justify="right" if name else "left", min_width=6)
    for row in zip_longest(*cells.values(), fillvalue=Text("")):
        table.add_row(*row)
    return table


def tell(
    console: Console,
    summed: Mapping[str, Any],
    failures: Sequence[Failure],
    command: Callable[..., str],
    again: str,
    logs: Path,
) -> None:
    """The end of a batch: what became of it, where the results are, what to do next.

    `command` builds a command line for this place, `again` is the one that runs the batch again, `logs` is the
    folder of its workers' logs.
    """
    name = summed["batch"]
    no_reason = summed["state"] == OPEN or (summed["state"] == CANCELLED and not summed["failures"])
    reason = "" if no_reason else f", {summed['reason']}"
    say(console, f"\n{name}: {summed['state']}{reason}, {summed['seconds']} s")
    for source, n in summed["counts"].items():
        say(
            console, f"  {source}: {n['ok']} of {n['total']} ok, {n['dead']} dead, {n['cancelled']} cancelled"
        )
    if not any(count["total"] for count in summed["counts"].values()):
        say(console, "no account is selected: import accounts of these sources, or look at spec.users")
    for failure in failures:
        say(console, f"  {failure_words(failure)}")
    if speak_of_logs(failure.detail for failure in failures):
        say(console, f"logs: {logs}")
    if failures:
        say(console, f"why: {command('why', str(failures[0].user_id))}")
    if summed["state"] == OPEN:
        say(console, f"the batch is still open; to resume it: {again}")
    elif any(set(verdicts) - {"auth"} for verdicts in summed["failures"].values()):
        say(console, f"to try again: {command('retry', name)} && {again}")
    if any("auth" in verdicts for verdicts in summed["failures"].values()):
        say(console, f"accounts that ended auth need a person: {ATTENTION}")
    say(console, "results: in the database, view `items`; to export them:")
    say(console, f"  {command('results', name, '--format', 'jsonl', '--output', name + '.jsonl')}")
