"""`crawlfleet run`: manifests on a local fleet, to the end, with the same planner, store and worker as the pods."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
from rich.console import Console
from rich.live import Live
from rich.table import Table

from crawlfleet import planner
from crawlfleet.apply import local_plan
from crawlfleet.errors import CrawlfleetError, DatabaseUnavailable
from crawlfleet.local.fleet import LocalFleet
from crawlfleet.local.postgres import EmbeddedPostgres
from crawlfleet.local.watch import Progress, Rate, eta, line, progress, summary, waits_for
from crawlfleet.manifests import CrawlBatch, Manifests
from crawlfleet.store import batches
from crawlfleet.store.connection import Connection, connect, transaction

LOOK_S = 0.25
PLAIN_LINE_S = 2.0
OPEN = "Open"


class Interrupt:
    """Ctrl-C as a count: the first drains, the second stops at once."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, _: int, __: FrameType | None) -> None:
        self.count += 1

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM while a batch runs."""
        before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class LocalRun:
    """What every batch of one `run` shares. `postgres` is None if the database is not ours."""

    database_url: str
    keys_file: Path
    log_dir: Path
    console: Console
    postgres: EmbeddedPostgres | None
    workers: int | None = None


def run_batches(run: LocalRun, manifests: Manifests, interrupt: Interrupt) -> list[dict[str, Any]]:
    """Run the manifests' batches one after another, until one is interrupted: their summaries."""
    told = []
    for batch in manifests.batches:
        told.append(run_batch(run, manifests, batch, interrupt))
        if interrupt.count:
            break
    return told


def exit_code(told: Sequence[dict[str, Any]]) -> int:
    """0 every task ok, 3 ended with failures, 1 a batch is still open."""
    if any(summed["state"] == OPEN for summed in told):
        return 1
    return 0 if all(summed["reason"] == "AllSucceeded" for summed in told) else 3


def run_batch(run: LocalRun, manifests: Manifests, batch: CrawlBatch, interrupt: Interrupt) -> dict[str, Any]:
    """Plan the batch and run it to its end (or a drain): the summary. A closed batch only tells its summary."""
    plan = local_plan(batch, manifests)
    with connect(run.database_url, "crawlfleet run") as conn:
        batch_id = planner.plan(conn, plan)
        found = _find(conn, plan.uid)
        if found.state == "closed":
            run.console.print(
                f"batch {found.name} is closed already; to crawl again, rename it or `crawlfleet retry {found.name}`"
            )
            return summary(conn, found)
    fleet = LocalFleet(
        database_url=run.database_url,
        keys_file=run.keys_file,
        batch_uid=plan.uid,
        batch_id=batch_id,
        workers=run.workers or batch.spec.workers,
        max_concurrent=batch.spec.max_concurrent,
        log_dir=run.log_dir / plan.name,
    )
    try:
        with _view(run.console) as view:
            _watch(run, fleet, plan.uid, interrupt, view)
    finally:
        fleet.kill()
    with connect(run.database_url, "crawlfleet run") as conn:
        return summary(conn, _find(conn, plan.uid))


def _find(conn: Connection, uid: str) -> batches.Batch:
    found = batches.find(conn, uid)
    if found is None:
        raise CrawlfleetError(f"batch {uid} is gone from the database; run it again")
    return found


def _watch(run: LocalRun, fleet: LocalFleet, uid: str, interrupt: Interrupt, view: _View) -> None:
    """Look at the batch, tend the workers and the database, until all workers have ended."""
    conn: Connection | None = None
    rate, drained = Rate(), False
    while fleet.is_needed():
        try:
            conn = conn or connect(run.database_url, "crawlfleet watch")
            fleet.tend(conn)
            _show(conn, uid, rate, view, fleet.alive())
        except (psycopg.OperationalError, DatabaseUnavailable):
            conn = None
            _revive(run)
        if interrupt.count and not drained:
            drained = True
            view.say("draining: running crawls end, nothing new begins; Ctrl-C again stops at once")
            fleet.drain()
        if interrupt.count > 1:
            return
        time.sleep(LOOK_S)
    if conn is not None:
        _show(conn, uid, rate, view, 0)
        conn.close()


def _revive(run: LocalRun) -> None:
    """The database is away. If it is ours and was killed, start it again; otherwise it will come back."""
    if run.postgres is not None and not run.postgres.poll():
        run.console.print("PostgreSQL was killed; starting it again")
        run.postgres.restart()


def _show(conn: Connection, uid: str, rate: Rate, view: _View, workers: int) -> None:
    with transaction(conn):
        batch = _find(conn, uid)
        p = progress(batches.counts(conn, batch.batch_id))
        waits = batches.waits(conn, batch.batch_id)
        next_retry_s = batches.next_retry_s(conn, batch.batch_id)
    per_s = rate.add(time.monotonic(), p.total - p.open)
    view.show(batch.name, p, per_s, waits_for(p, waits, next_retry_s, batch.stop), workers)


class _View:
    """Plain lines, one every PLAIN_LINE_S and whenever asked."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0
        self._ended = False

    def show(self, name: str, p: Progress, rate: float, waiting_for: str, workers: int) -> None:
        text = f"{name}: {line(p, rate, waiting_for)}"
        ended = p.total > 0 and p.open == 0
        if p.total > 0 and not self._ended and (ended or time.monotonic() >= self._next_s):
            self._next_s, self._ended = time.monotonic() + PLAIN_LINE_S, ended
            self.say(text)

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)


class _LiveView(_View):
    """The same on a terminal: one picture that changes."""

    def __init__(self, console: Console, live: Live) -> None:
        super().__init__(console)
        self._live = live

    def show(self, name: str, p: Progress, rate: float, waiting_for: str, workers: int) -> None:
        self._live.update(_picture(name, p, rate, waiting_for, workers, self._console.width))


def _picture(name: str, p: Progress, rate: float, waiting_for: str, workers: int, width: int) -> Table:
    columns = {
        "done": f"{p.done}/{p.total}",
        "running": str(p.running),
        "waiting": str(p.waiting),
        "retrying": str(p.retrying),
        "failed": str(p.failed),
        "rate": f"{rate:.1f}/s",
        "ETA": eta(p, rate),
        "workers": str(workers),
    }
    share = (p.total - p.open) / p.total if p.total else 0.0
    bar = "━" * round(share * min(60, width - 10))
    table = Table(title=f"[bold]{name}[/]  {bar} {share:.0%}", title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", min_width=8)
    table.add_row(*columns.values())
    table.caption = f"waits for: {waiting_for}"
    table.caption_justify = "left"
    return table


@contextmanager
def _view(console: Console) -> Iterator[_View]:
    if not console.is_terminal:
        yield _View(console)
        return
    with Live(console=console, refresh_per_second=8, transient=False) as live:
        yield _LiveView(console, live)


def print_summary(console: Console, told: dict[str, Any]) -> None:
    """The end of a run for a person: what became of it, where the results are, what to do next."""
    program = _program_name()
    console.print(
        f"\n[bold]{told['batch']}[/]: {told['state']}, {told['reason']}, {told['seconds']} s", highlight=False
    )
    for source, count in told["counts"].items():
        console.print(
            f"  {source}: {count['ok']} of {count['total']} ok, {count['dead']} dead, {count['cancelled']} cancelled",
            highlight=False,
        )
    for source, verdicts in told["failures"].items():
        words = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items())
        console.print(f"  {source} failures: {words}; `{program} why USER` tells why", highlight=False)
    if told["state"] == OPEN:
        console.print("the batch is still open: run the same command again to resume it")
        return
    console.print("results: in the database, view `items`; to export them:", highlight=False)
    console.print(
        f"  {program} results {told['batch']} --format jsonl --output {told['batch']}.jsonl", highlight=False
    )


def _program_name() -> str:
    """How this program was called, so that a printed command can be copied."""
    return sys.argv[0] if not sys.argv[0].endswith("__main__.py") else "crawlfleet"
