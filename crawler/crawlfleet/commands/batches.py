"""What people ask of batches (status, why, results) and the levers they have (retry, cancel, drain)."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from crawlfleet.commands.place import Arguments, command_line, connection
from crawlfleet.commands.tables import cell, number_of, print_table
from crawlfleet.errors import BadInput, CrawlfleetError
from crawlfleet.local.watch import ATTENTION, failure_words, line, speak_of_logs, waits_for
from crawlfleet.progress import by_source, duration, progress
from crawlfleet.store import accounts, batches, fleet
from crawlfleet.store.batches import Batch, Counts
from crawlfleet.store.connection import Connection

RECENT = ("BATCH", "STATE", "ROUND", "TASKS", "STARTED", "UID")
ITEM = ("user_id", "source", "kind", "external_id", "fetched_at", "body")
CANCEL_S = 10.0
"""A batch whose workers live is closed within a second or two; one that nobody works on, at once."""


def status(arguments: Arguments) -> int:
    with connection(arguments) as conn:
        if arguments.batch:
            batch = _find(conn, arguments.batch)
            _print_status(arguments, conn, batch)
            return 0
        rows = [(b.name, b.state, b.round, b.total, b.started_at, b.short_uid) for b in batches.recent(conn)]
    print_table(RECENT, rows)
    return 0


def _find(conn: Connection, name: str) -> Batch:
    found = batches.find(conn, name)
    if found is None:
        known = ", ".join(sorted({b.name for b in batches.recent(conn)})) or "none"
        raise BadInput(f"there is no batch {name!r} in this database; recent batches: {known}")
    return found


def _print_status(arguments: Arguments, conn: Connection, batch: Batch) -> None:
    others = batches.namesakes(conn, batch.name, batch.uid)
    which = f" (uid {batch.short_uid}; `crawlfleet status` lists the others of this name)" if others else ""
    print(f"{batch.name}: {batch.state}, round {batch.round}{which}")
    print(f"  {_closed_line(conn, batch) if batch.state == 'closed' else _open_line(conn, batch)}")
    for worker in [] if batch.state == "closed" else batches.workers(conn, batch.batch_id):
        silent = ", does not answer" if worker.silent else ", draining" if worker.draining else ""
        print(
            f"  worker {worker.worker_id}: WORKER_ID {worker.ordinal} on {worker.host}, pid {worker.pid},"
            f" {worker.held} of {worker.slots} slots busy{silent}"
        )
    failures = batches.failures(conn, batch.batch_id)
    for failure in failures:
        print(f"  {failure_words(failure)}")
    _print_logs(arguments, batch, [failure.detail for failure in failures])


def _print_logs(arguments: Arguments, batch: Batch, details: Iterable[str]) -> None:
    """Where they are, if they are here and the details of failures speak of them."""
    logs = arguments.state_dir / "logs" / batch.name
    if speak_of_logs(details) and logs.exists():
        print(f"  logs: {logs}")


def _open_line(conn: Connection, batch: Batch) -> str:
    counts = batches.counts(conn, batch.batch_id)
    p = progress(counts)
    rate = p.crawled / batch.seconds if batch.seconds and p.running else 0.0
    return line(p, rate, _waits_for(conn, batch, counts), by_source(counts))


def _waits_for(conn: Connection, batch: Batch, counts: Counts) -> str:
    next_retry_s = batches.next_retry_s(conn, batch.batch_id)
    return waits_for(counts, batches.waits(conn, batch.batch_id), next_retry_s, batch.stop)


def _closed_line(conn: Connection, batch: Batch) -> str:
    p = progress(batches.counts(conn, batch.batch_id))
    took = duration(batch.seconds or 0.0)
    return f"{p.done}/{p.total} done, {p.failed} failed, {p.cancelled} cancelled, took {took}"


def why(arguments: Arguments) -> int:
    with connection(arguments) as conn:
        attempts = batches.why(conn, arguments.user)
        states = accounts.show_account(conn, arguments.user)
        if not attempts and not states:
            raise BadInput(f"user {arguments.user} has neither an account nor a task in this database")
        _print_accounts(states, accounts.count_items(conn, arguments.user))
        known = {batch.batch_id: batch for batch in batches.recent(conn)}
        for (batch_id, source), rows in groupby(attempts, key=lambda row: row[:2]):
            if batch_id in known:
                _print_task(arguments, conn, known[batch_id], source, list(rows))
    return 0


def _print_accounts(states: Iterable[tuple[Any, ...]], items: Mapping[str, int]) -> None:
    for _, source, state, _, _, reason, *_, cost_ms in states:
        why_so = f" ({reason})" if reason else ""
        cost = f", a crawl takes about {cost_ms / 1000:.1f} s" if cost_ms is not None else ""
        print(f"account at {source}: {state}{why_so}, {number_of(items.get(source, 0), 'item')} stored{cost}")


def _print_task(
    arguments: Arguments, conn: Connection, batch: Batch, source: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    """One task: its state and what it waits for, then each attempt that did not end ok (others leave no trace)."""
    _, _, state, verdict, run_after, *_ = rows[0]
    ended = f" ({verdict})" if verdict not in (None, state) else ""
    waits = f", not before {cell(run_after)}" if run_after else ""
    if state == "ready":
        waits = f", waits for: {_waits_for(conn, batch, batches.counts(conn, batch.batch_id))}"
    print(f"{batch.name} of {cell(batch.started_at)}, {source}: {state}{ended}{waits}")
    for at, failed, reason, detail, failure_id, snapshot, picture in (row[5:] for row in rows):
        if at:
            print(f"  {cell(at)} {failed}: {reason}" + (f": {detail}" if detail else ""))
        if picture and arguments.save:
            print("    page: " + ", ".join(_saved(arguments.save, failure_id, snapshot, picture)))
        elif picture:
            again = command_line(arguments, "why", str(arguments.user), "--save", "DIR")
            print(f"    page: kept with its words made unreadable; to look at it: {again}")
        elif snapshot:
            print("    snapshot: " + snapshot.replace("\n", "\n    "))
    _print_logs(arguments, batch, [row[8] or "" for row in rows])


def _saved(folder: Path, failure_id: int, html: str, picture: bytes) -> list[str]:
    """Write a page's HTML and picture into the folder; where they are now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"failure-{failure_id}.html", folder / f"failure-{failure_id}.jpg"]
        files[0].write_text(html, encoding="utf-8")
        files[1].write_bytes(picture)
    except OSError as exc:
        raise CrawlfleetError(f"cannot write to {folder}: {exc.strerror}; give another folder") from exc
    return [str(file) for file in files]


def results(arguments: Arguments) -> int:
    with connection(arguments) as conn:
        batch = _find(conn, arguments.batch)
        sources = batches.source_names(conn, batch.batch_id)
        if arguments.source and arguments.source not in sources:
            raise BadInput(
                f"batch {batch.name} has no source {arguments.source!r}; it has: {', '.join(sources)}"
            )
        if batch.state != "closed":
            _note(f"batch {batch.name} is open: these are the items of the accounts that ended ok so far")
        rows = batches.results(conn, batch.batch_id, arguments.source, arguments.kind)
        with _output(arguments.output) as file:
            written = (_write_csv if arguments.format == "csv" else _write_jsonl)(file, rows)
    if not written:
        _note("no item matches" + (f" --kind {arguments.kind}" if arguments.kind else ""))
    return 0


def _note(text: str) -> None:
    """For the person; stdout is for the items."""
    print(f"crawlfleet: {text}", file=sys.stderr)


def _write_jsonl(file: IO[str], rows: Iterable[tuple[Any, ...]]) -> int:
    """Returns how many; so does its sibling."""
    written = 0
    for row in rows:
        written += 1
        item = dict(zip(ITEM, row, strict=True))
        file.write(json.dumps(item, ensure_ascii=False, default=datetime.isoformat) + "\n")
    return written


def _write_csv(file: IO[str], rows: Iterable[tuple[Any, ...]]) -> int:
    writer = csv.writer(file)
    writer.writerow(ITEM)
    written = 0
    for *fields, fetched_at, body in rows:
        written += 1
        writer.writerow([*fields, fetched_at.isoformat(), json.dumps(body, ensure_ascii=False)])
    return written


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as exc:
        raise BadInput(f"cannot write {path}: {exc.strerror}; the export is incomplete") from exc


def retry(arguments: Arguments) -> int:
    with connection(arguments) as conn:
        batch = _find(conn, arguments.batch)
        revived = batches.retry(conn, batch.batch_id, arguments.verdict)
        left = batches.left_dead(conn, batch.batch_id, arguments.verdict)
        fleet.recount(conn, batch.batch_id)
    hint = "; in a cluster the operator sees to them, else run the batch again" if revived else ""
    print(f"{batch.name}: {number_of(revived, 'task')} ready again{hint}")
    if left:
        print(f"{batch.name}: {number_of(left, 'task')} left dead: their accounts need a person. {ATTENTION}")
    return 0


def cancel(arguments: Arguments) -> int:
    with connection(arguments) as conn:
        batch = _find(conn, arguments.batch)
        stopped = batches.stop(conn, batch.batch_id, "cancel")
        closed = stopped and _close(conn, batch.uid)
    if not stopped:
        print(f"{batch.name}: closed already")
    else:
        print(f"{batch.name}: cancelled" + ("" if closed else "; crawls under way are still ending"))
    return 0


def _close(conn: Connection, uid: str) -> bool:
    """Do the chores that close a cancelled batch, since no worker may be there to do them."""
    deadline_s = time.monotonic() + CANCEL_S
    while time.monotonic() < deadline_s:
        fleet.housekeep(conn)
        batch = batches.find(conn, uid)
        if batch is None or batch.state == "closed":
            return True
        time.sleep(0.1)
    return False


def drain(arguments: Arguments) -> int:
    with connection(arguments) as conn:
        batches.drain(conn, arguments.worker)
        found = batches.worker_ended(conn, arguments.worker)
    if found is None:
        raise BadInput(
            f"no worker has the registration {arguments.worker}; `crawlfleet status BATCH` lists them"
        )
    ended_at, is_silent = found
    if ended_at is not None:
        raise BadInput(f"worker {arguments.worker} has ended already, at {cell(ended_at)}")
    silent = ", but it does not answer: it may be gone, then its crawls go to others" if is_silent else ""
    print(f"worker {arguments.worker}: draining{silent}")
    return 0
