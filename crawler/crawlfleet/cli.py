"""The command line: one function a command, each short; what they do lies elsewhere.

The commands, their options and exit codes are a contract (docs/command-line.md).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, BinaryIO

from rich.console import Console
from rich.table import Table

from crawlfleet import __version__, apply, logs
from crawlfleet.accounts import format_of, read_accounts
from crawlfleet.credentials import KeyRing
from crawlfleet.demo.cafe24 import ShopConfig, demo_accounts
from crawlfleet.demo.server import serve
from crawlfleet.demo.violations import Agreement
from crawlfleet.doctor import examine
from crawlfleet.errors import BadInput, CrawlfleetError, Verdict
from crawlfleet.local import run, shops
from crawlfleet.local.postgres import EmbeddedPostgres
from crawlfleet.local.watch import duration, line, progress, summary, waits_for
from crawlfleet.manifests import load
from crawlfleet.settings import WorkerSettings
from crawlfleet.sources import Adapter
from crawlfleet.store import accounts, batches
from crawlfleet.store.connection import Connection, connect
from crawlfleet.store.migrations import check_schema, migrate
from crawlfleet.store.sources import source_names
from crawlfleet.worker import run_worker

Arguments = argparse.Namespace
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors for people are one message on stderr."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.do(arguments)
    except CrawlfleetError as exc:
        print(f"crawlfleet: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crawlfleet", description="A crawler fleet; PostgreSQL is its only state."
    )
    parser.add_argument("--version", action="version", version=f"crawlfleet {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    running = _command(commands, "run", _run, "run manifests on a local fleet, to the end")
    running.add_argument(
        "-f",
        "--file",
        action="append",
        type=Path,
        required=True,
        metavar="FILE",
        help="a manifest; may be repeated",
    )
    running.add_argument("--workers", type=_positive, help="worker processes (default: spec.workers)")
    running.add_argument(
        "--accounts", type=Path, metavar="FILE", help="import these accounts first (JSONL or CSV)"
    )
    running.add_argument(
        "--shops", action="store_true", help="start the stand-in shop and import its accounts"
    )
    running.add_argument(
        "-o",
        "--output",
        choices=["text", "json"],
        default="text",
        help="json: the last line of stdout is the summary",
    )
    _account_commands(commands)
    status = _command(commands, "status", _status, "counts, rate and ETA of a batch, or of the recent ones")
    status.add_argument("batch", nargs="?", metavar="BATCH")
    why = _command(commands, "why", _why, "what one user's tasks did, and what they wait for")
    why.add_argument("user", type=_positive, metavar="USER")
    results = _command(commands, "results", _results, "the items of a batch")
    results.add_argument("batch", metavar="BATCH")
    results.add_argument("--format", choices=["jsonl", "csv"], default="jsonl")
    results.add_argument("--source", help="only of this source")
    results.add_argument("--kind", help="only of this kind")
    results.add_argument("--output", type=Path, metavar="FILE", help="default: stdout")
    retry = _command(
        commands, "retry", _retry, "dead tasks of a batch begin anew; a closed batch opens a new round"
    )
    retry.add_argument("batch", metavar="BATCH")
    retry.add_argument(
        "--verdict",
        choices=[v.value for v in Verdict if v is not Verdict.OK],
        help="only tasks that died of this",
    )
    cancel = _command(
        commands, "cancel", _cancel, "end a batch now: running crawls stop, the rest is cancelled"
    )
    cancel.add_argument("batch", metavar="BATCH")
    drain = _command(commands, "drain", _drain, "let one worker finish what it holds and end")
    drain.add_argument(
        "worker", type=_positive, metavar="WORKER", help="its registration, as its log tells it"
    )
    _command(
        commands,
        "worker",
        _worker,
        "what a crawler pod runs; settings come from the environment",
        database=False,
    )
    serving = _command(commands, "shops", _shops, "serve the stand-in shop on loopback", database=False)
    serving.add_argument("--port", type=_positive, default=8024)
    serving.add_argument(
        "--users", type=_number, default=100, help="write the accounts of that many sellers to stdout"
    )
    serving.add_argument(
        "--cap",
        type=_number,
        default=0,
        help="count more malls at once than this as a violation (0: unchecked)",
    )
    serving.add_argument(
        "--pace",
        type=float,
        default=0.0,
        help="count more requests a second than this as a violation (0: unchecked)",
    )
    _command(commands, "migrate", _migrate, "bring the database's schema up to date")
    _command(commands, "doctor", _doctor, "check database, schema, keys and sources")
    return parser


def _account_commands(commands: Any) -> None:
    verbs = commands.add_parser("accounts", help="import and look after accounts").add_subparsers(
        required=True, metavar="VERB"
    )
    imports = _command(
        verbs, "import", _import, "insert or update accounts of a JSONL or CSV file (- is stdin)"
    )
    imports.add_argument("file", metavar="FILE")
    listing = _command(verbs, "list", _list_accounts, "accounts and their state")
    listing.add_argument(
        "--needs-attention", action="store_true", help="only those a person has to log in or consent for"
    )
    for name, do, text in (
        ("show", _show_account, "one user's accounts"),
        ("enable", _enable, "crawl a user's accounts again"),
        ("disable", _disable, "leave a user's accounts out of new batches"),
        ("purge", _purge, "delete a user's accounts, items and snapshots"),
    ):
        verb = _command(verbs, name, do, text)
        verb.add_argument("user", type=_positive, metavar="USER")
        if name in ("enable", "disable"):
            verb.add_argument("--source", help="only at this source")


def _command(
    commands: Any, name: str, do: Callable[[Arguments], int], text: str, *, database: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(do=do)
    if database:
        parser.add_argument(
            "--database-url",
            default=os.environ.get("CRAWLFLEET_DATABASE_URL"),
            help="default: $CRAWLFLEET_DATABASE_URL, else an embedded PostgreSQL",
        )
        parser.add_argument(
            "--state-dir",
            type=Path,
            default=_state_dir(),
            help="embedded database, keys and logs (default: %(default)s)",
        )
        parser.add_argument(
            "--keys-file",
            type=Path,
            default=os.environ.get("CRAWLFLEET_KEYS_FILE"),
            help="key ring (default: $CRAWLFLEET_KEYS_FILE, else in the state folder)",
        )
    return parser


def _number(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return int(text)


def _state_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/crawlfleet")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "crawlfleet"


@contextmanager
def _database(arguments: Arguments) -> Iterator[tuple[str, Any]]:
    """The database's URL, and the embedded server if it is ours (else None)."""
    if arguments.database_url:
        yield arguments.database_url, None
        return
    with EmbeddedPostgres(arguments.state_dir) as postgres:
        migrate(postgres.url)
        yield postgres.url, postgres


@contextmanager
def _connection(arguments: Arguments) -> Iterator[Connection]:
    with _database(arguments) as (url, _), connect(url, "crawlfleet command") as conn:
        check_schema(conn)
        yield conn


def _keys_file(arguments: Arguments) -> Path:
    """The key ring's file. Local mode makes one of its own; a given one must exist."""
    if arguments.keys_file:
        return Path(arguments.keys_file)
    file: Path = arguments.state_dir / "keys"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as opened:
            opened.write(KeyRing.new_key() + "\n")
    return file


def _batch(conn: Connection, name: str) -> batches.Batch:
    found = batches.find(conn, name)
    if found is None:
        known = ", ".join(sorted({b.name for b in batches.recent(conn)})) or "none"
        raise BadInput(f"there is no batch {name!r} in this database; recent batches: {known}")
    return found


# Commands.


def _run(arguments: Arguments) -> int:
    manifests = load(arguments.file)
    if not manifests.batches:
        raise BadInput("no CrawlBatch in " + ", ".join(map(str, arguments.file)))
    adapters = apply.adapters(manifests)
    as_json = arguments.output == "json"
    console = Console(stderr=as_json)
    interrupt = run.Interrupt()
    counted: dict[str, Any] = {}
    with interrupt.installed(), _database(arguments) as (url, postgres), ExitStack() as shop:
        keys_file = _keys_file(arguments)
        keys = KeyRing.load(keys_file)
        shop_url = shop.enter_context(shops.running_shop(manifests)) if arguments.shops else None
        with connect(url, "crawlfleet run") as conn:
            check_schema(conn)
            apply.declare(conn, keys, manifests)
            if arguments.shops:
                apply.import_accounts(conn, keys, shops.shop_accounts(shops.USERS))
            if arguments.accounts:
                _import_file(conn, keys, str(arguments.accounts), adapters)
        local = run.LocalRun(
            url, keys_file, arguments.state_dir / "logs", console, postgres, arguments.workers
        )
        told = run.run_batches(local, manifests, interrupt)
        if shop_url:
            counted = shops.counters(shop_url)
    _tell(console, told, counted)
    if as_json:
        print(json.dumps(told[-1], ensure_ascii=False))
    return INTERRUPTED if interrupt.count else run.exit_code(told)


def _tell(console: Console, told: Sequence[dict[str, Any]], counted: dict[str, Any]) -> None:
    for summed in told:
        run.print_summary(console, summed)
    if counted:
        words = ", ".join(f"{name} {number}" for name, number in counted.items())
        console.print(f"\nthe shop's politeness counters: {words}", highlight=False)


def _import(arguments: Arguments) -> int:
    with _connection(arguments) as conn:
        lines, renewed = _import_file(conn, KeyRing.load(_keys_file(arguments)), arguments.file, {})
    print(f"{lines} accounts, {renewed} with new credentials")
    return 0


def _import_file(
    conn: Connection, keys: KeyRing, name: str, adapters: Mapping[str, Adapter]
) -> tuple[int, int]:
    check = apply.credential_check(source_names(conn), adapters)
    with _opened(name) as file:
        return apply.import_accounts(conn, keys, read_accounts(file, name, format_of(name), check))


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    with _or_bad_input("read", Path(name)), Path(name).open("rb") as file:
        yield file


def _list_accounts(arguments: Arguments) -> int:
    with _connection(arguments) as conn:
        rows = accounts.list_accounts(conn, needs_attention=arguments.needs_attention)
    _print_table(["USER", "SOURCE", "STATE", "SUBSCRIPTION", "LAST LOGIN", "REASON"], rows)
    return 0


def _show_account(arguments: Arguments) -> int:
    with _connection(arguments) as conn:
        rows = accounts.show_account(conn, arguments.user)
    if not rows:
        raise BadInput(f"user {arguments.user} has no account in this database")
    columns = [
        "USER",
        "SOURCE",
        "STATE",
        "SUBSCRIPTION",
        "LAST LOGIN",
        "REASON",
        "GENERATION",
        "OPEN REFRESHES",
        "EGRESS",
        "COST MS",
    ]
    _print_table(columns, rows)
    return 0


def _enable(arguments: Arguments) -> int:
    return _set_state(arguments, "ok", None)


def _disable(arguments: Arguments) -> int:
    return _set_state(arguments, "disabled", "DisabledByHand")


def _set_state(arguments: Arguments, state: str, reason: str | None) -> int:
    with _connection(arguments) as conn:
        changed = accounts.set_state(conn, arguments.user, arguments.source, state, reason)
    if not changed:
        raise BadInput(f"user {arguments.user} has no such account in this database")
    print(f"user {arguments.user}: {', '.join(changed)} {'enabled' if state == 'ok' else 'disabled'}")
    return 0


def _purge(arguments: Arguments) -> int:
    with _connection(arguments) as conn:
        items = accounts.purge(conn, arguments.user)
    if items is None:
        raise CrawlfleetError(
            f"user {arguments.user} is being crawled right now; disable the user and purge again in a moment"
        )
    print(f"user {arguments.user}: accounts, snapshots and {items} items deleted")
    return 0


def _status(arguments: Arguments) -> int:
    with _connection(arguments) as conn:
        if arguments.batch:
            _print_status(conn, _batch(conn, arguments.batch))
            return 0
        rows = [(b.name, b.state, b.round, b.total, b.started_at) for b in batches.recent(conn)]
    _print_table(["BATCH", "STATE", "ROUND", "TASKS", "STARTED"], rows)
    return 0


def _print_status(conn: Connection, batch: batches.Batch) -> None:
    p = progress(batches.counts(conn, batch.batch_id))
    rate = (p.total - p.open) / batch.seconds if batch.seconds else 0.0
    waiting = waits_for(
        p, batches.waits(conn, batch.batch_id), batches.next_retry_s(conn, batch.batch_id), batch.stop
    )
    print(f"{batch.name}: {batch.state}, round {batch.round}")
    print(
        f"  {line(p, rate, waiting)}"
        if batch.state != "closed"
        else f"  {p.done}/{p.total} done, {p.failed} failed, {p.cancelled} cancelled, took {duration(batch.seconds or 0.0)}"
    )
    for source, verdicts in summary(conn, batch)["failures"].items():
        print(f"  {source} failures: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()))


def _why(arguments: Arguments) -> int:
    with _connection(arguments) as conn:
        rows = batches.why(conn, arguments.user)
        states = accounts.show_account(conn, arguments.user)
    if not rows and not states:
        raise BadInput(f"user {arguments.user} has neither an account nor a task in this database")
    for _, source, state, *_, reason in (row[:6] for row in states):
        print(f"account at {source}: {state}" + (f" ({reason})" if reason else ""))
    seen = None
    for batch, source, state, verdict, run_after, at, failed, reason, detail, snapshot in rows:
        if (batch, source) != seen:
            seen = (batch, source)
            waits = f", not before {run_after:%H:%M:%S %Z}" if run_after else ""
            print(f"{batch}, {source}: {state}" + (f" ({verdict})" if verdict else "") + waits)
        if at:
            print(f"  {at:%Y-%m-%d %H:%M:%S} {failed}: {reason}. {detail}")
        if snapshot:
            print("    snapshot: " + snapshot.replace("\n", "\n    "))
    return 0


def _results(arguments: Arguments) -> int:
    with _connection(arguments) as conn:
        batch = _batch(conn, arguments.batch)
        rows = batches.results(conn, batch.batch_id, arguments.source, arguments.kind)
        with _output(arguments.output) as file:
            (_write_csv if arguments.format == "csv" else _write_jsonl)(file, rows)
    return 0


COLUMNS = ("user_id", "source", "kind", "external_id", "fetched_at", "body")


def _write_jsonl(file: IO[str], rows: Iterator[tuple[Any, ...]]) -> None:
    for row in rows:
        file.write(
            json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False, default=datetime.isoformat)
            + "\n"
        )


def _write_csv(file: IO[str], rows: Iterator[tuple[Any, ...]]) -> None:
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for *fields, fetched_at, body in rows:
        writer.writerow([*fields, fetched_at.isoformat(), json.dumps(body, ensure_ascii=False)])


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    with _or_bad_input("write", path), path.open("w", encoding="utf-8", newline="") as file:
        yield file


@contextmanager
def _or_bad_input(do: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise BadInput(f"cannot {do} {path}: {exc.strerror}") from exc


def _retry(arguments: Arguments) -> int:
    with _connection(arguments) as conn:
        batch = _batch(conn, arguments.batch)
        revived = batches.retry(conn, batch.batch_id, arguments.verdict)
    print(
        f"{batch.name}: {revived} tasks are ready again"
        + ("; run the batch again to crawl them" if revived else "")
    )
    return 0


def _cancel(arguments: Arguments) -> int:
    with _connection(arguments) as conn:
        batch = _batch(conn, arguments.batch)
        stopped = batches.stop(conn, batch.batch_id, "cancel")
    print(f"{batch.name}: {'cancelled' if stopped else 'closed already'}")
    return 0


def _drain(arguments: Arguments) -> int:
    with _connection(arguments) as conn:
        if not batches.drain(conn, arguments.worker):
            raise BadInput(f"no live worker has the registration {arguments.worker}")
    print(f"worker {arguments.worker}: draining")
    return 0


def _worker(arguments: Arguments) -> int:
    settings = WorkerSettings.from_environment(os.environ)
    logs.set_up(as_json=settings.log_json)
    return run_worker(settings)


def _shops(arguments: Arguments) -> int:
    config = ShopConfig(agreement=Agreement(malls_per_egress=arguments.cap, pace_per_s=arguments.pace))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())

    def ready(url: str) -> None:
        for account in demo_accounts(arguments.users, config, datetime.now(UTC)):
            print(json.dumps(account, ensure_ascii=False))
        print(f"stand-in shop: baseURL {url}/{{mall_id}}; Ctrl-C ends it", file=sys.stderr, flush=True)

    try:
        counted = serve(arguments.port, config, stop=ended, ready=ready)
    except OSError as exc:
        raise CrawlfleetError(
            f"cannot listen on port {arguments.port}: {exc.strerror}; end what uses it or give --port"
        ) from exc
    print(json.dumps(counted.as_dict()), file=sys.stderr)
    return 0


def _migrate(arguments: Arguments) -> int:
    if not arguments.database_url:
        raise BadInput(
            "migrate needs --database-url or CRAWLFLEET_DATABASE_URL; the embedded database migrates itself"
        )
    applied = migrate(arguments.database_url)
    print(f"applied: {', '.join(applied)}" if applied else "the schema is up to date")
    return 0


def _doctor(arguments: Arguments) -> int:
    bad = 0
    with _database(arguments) as (url, _):
        for finding in examine(url, _keys_file(arguments)):
            bad += not finding.well
            print(f"{'ok  ' if finding.well else 'FAIL'} {finding.what}: {finding.words}")
    return 1 if bad else 0


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console(soft_wrap=True).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}" if isinstance(value, datetime) else str(value)
