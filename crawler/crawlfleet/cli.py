"""The command line: which commands there are and what they take. What they do stands in `commands`.

The commands, their options and exit codes are a contract (docs/command-line.md). The function of a command is
named here (`batches.status`) and imported when the command is given, so that none loads what others need.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import psycopg

from crawlfleet import __version__
from crawlfleet.commands.place import Arguments, default_state_dir
from crawlfleet.errors import (
    INTERRUPTED,
    BadConfiguration,
    BadInput,
    ChromeUnusable,
    CrawlfleetError,
    Verdict,
)
from crawlfleet.store.connection import unavailable

Commands = Any
"""What argparse calls _SubParsersAction, which it does not export."""

STAND_IN_PORTS = {"cafe24": 8024, "ably": 8025}
"""The stand-in shops, and where they listen unless told otherwise."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors for people are one message on stderr."""
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown:  # argparse itself would show the usage of the whole program
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        code = function_of(arguments.do)(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except (CrawlfleetError, psycopg.Error, OSError) as exc:
        error = _for_people(exc)
        print(f"crawlfleet: {error}", file=sys.stderr)
        return error.exit_code if arguments.do.startswith("pod.") else _exit_code(error)
    return code


def function_of(name: str) -> Callable[[Arguments], int]:
    """The function behind a command, such as `batches.status`."""
    module, _, function = name.partition(".")
    found: Callable[[Arguments], int] = getattr(import_module(f"crawlfleet.commands.{module}"), function)
    return found


def _exit_code(error: CrawlfleetError) -> int:
    """Of a command that a person gave: what the environment of a container would say is bad input here."""
    if isinstance(error, BadConfiguration):
        return BadInput.exit_code
    return CrawlfleetError.exit_code if isinstance(error, ChromeUnusable) else error.exit_code


def _for_people(exc: Exception) -> CrawlfleetError:
    """What was not foreseen where it happened: the database went away or refused, the disk is full."""
    if isinstance(exc, CrawlfleetError):
        return exc
    if isinstance(exc, psycopg.OperationalError):
        return unavailable(exc)
    if isinstance(exc, OSError):
        return CrawlfleetError(": ".join(str(part) for part in (exc.filename, exc.strerror or exc) if part))
    return CrawlfleetError(f"the database refused: {' '.join(str(exc).split())}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="crawlfleet", description="A crawler fleet; PostgreSQL is its only state."
    )
    parser.add_argument("--version", action="version", version=f"crawlfleet {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_accounts(commands)
    _add_questions(commands)
    _add_levers(commands)
    _add_pod(commands)
    _add_shops(commands)
    _add_upkeep(commands)
    return parser


def _add_run(commands: Commands) -> None:
    run = _add(commands, "run", "run.run", "run the batches of manifests on a local fleet, to the end")
    run.epilog = (
        "Ctrl-C drains, twice stops at once; the same command resumes. Exit code: 0 every task ok, 3 ended with"
        " failures, 2 bad manifest or option, 130 interrupted, 1 anything else."
    )
    _add_manifests(run)
    run.add_argument(
        "--workers", type=_positive, metavar="N", help="worker processes (default: spec.workers)"
    )
    run.add_argument(
        "--shops", action="store_true", help="start the stand-in shops and import their sellers' accounts"
    )
    run.add_argument(
        "-o",
        "--output",
        choices=["text", "json"],
        default="text",
        help="json: stdout gets one line of summary a batch, all else goes to stderr",
    )

    about = "plan the batches of manifests, for workers that run elsewhere"
    _add_manifests(_add(commands, "plan", "run.plan", about))


def _add_manifests(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-f",
        "--file",
        action="append",
        type=Path,
        required=True,
        metavar="FILE",
        help="a file of CrawlSource, CrawlBatch and Secret documents; may be repeated",
    )
    command.add_argument("--accounts", metavar="FILE", help="import these accounts first (JSONL or CSV)")


def _add_accounts(commands: Commands) -> None:
    about = "import sellers' accounts and look after them; shows no secret"
    verbs = commands.add_parser("accounts", help=about, description=about).add_subparsers(
        required=True, metavar="VERB"
    )
    file = _add(verbs, "import", "accounts.import_accounts", "insert or update the accounts of a file")
    file.add_argument("file", metavar="FILE", help="NAME.jsonl, NAME.csv, or - for JSONL on stdin")
    listing = _add(verbs, "list", "accounts.list_accounts", "all accounts and their state")
    listing.add_argument(
        "--needs-attention", action="store_true", help="only those a person has to consent or log in for"
    )
    _add_user(_add(verbs, "show", "accounts.show", "one user's accounts"))
    for name, do, about in (
        ("enable", "accounts.enable", "crawl a user's accounts again"),
        ("disable", "accounts.disable", "leave a user's accounts out of new batches"),
    ):
        verb = _add(verbs, name, do, about)
        _add_user(verb)
        verb.add_argument("--source", metavar="NAME", help="only at this source")
    _add_user(_add(verbs, "purge", "accounts.purge", "delete a user's accounts, items and snapshots"))


def _add_questions(commands: Commands) -> None:
    status = _add(commands, "status", "batches.status", "counts, rate, ETA and workers of a batch")
    status.add_argument("batch", nargs="?", metavar="BATCH", help="without it: the recent batches")
    why = _add(commands, "why", "batches.why", "what a user's tasks did, and what they wait for")
    _add_user(why)
    why.add_argument(
        "--save", type=Path, metavar="DIR", help="write the pages that were kept into this folder"
    )
    results = _add(
        commands, "results", "batches.results", "the items of the accounts that ended ok in a batch"
    )
    _add_batch(results)
    results.add_argument("--format", choices=["jsonl", "csv"], default="jsonl", help="default: jsonl")
    results.add_argument("--source", metavar="NAME", help="only of this source")
    results.add_argument("--kind", metavar="KIND", help="only of this kind, such as order")
    results.add_argument("--output", type=Path, metavar="FILE", help="default: stdout")


def _add_levers(commands: Commands) -> None:
    about = "let dead and cancelled tasks of a batch begin anew; a closed batch opens a new round"
    retry = _add(commands, "retry", "batches.retry", about)
    _add_batch(retry)
    retry.add_argument(
        "--verdict",
        choices=[verdict.value for verdict in Verdict if verdict is not Verdict.OK],
        help="only tasks that died of this",
    )
    about = "end a batch now: running crawls stop, what has not begun is cancelled"
    _add_batch(_add(commands, "cancel", "batches.cancel", about))
    drain = _add(commands, "drain", "batches.drain", "let one worker finish what it holds and end")
    drain.add_argument("worker", type=_positive, metavar="WORKER", help="its number in `crawlfleet status`")


def _add_pod(commands: Commands) -> None:
    about = "what a crawler pod runs; its settings come from the environment"
    _add_placeless(commands, "worker", "pod.worker", about)
    about = "supervise one Chrome and its chromedriver; settings come from the environment"
    _add_placeless(commands, "chrome", "pod.chrome", about)


def _add_shops(commands: Commands) -> None:
    about = "serve the stand-in shops; writes their sellers' accounts to stdout"
    shops = _add_placeless(commands, "shops", "shops.serve_shops", about)
    shops.add_argument(
        "--listen",
        default="127.0.0.1",
        type=_address,
        metavar="ADDRESS",
        help="default: %(default)s; 0.0.0.0 in a pod",
    )
    for name, port in STAND_IN_PORTS.items():
        shops.add_argument(f"--{name}-port", type=_positive, default=port, help="default: %(default)s")
    shops.add_argument("--only", choices=list(STAND_IN_PORTS), help="serve this shop alone")
    shops.add_argument("--users", type=_number, default=100, help="sellers (default: %(default)s)")
    shops.add_argument(
        "--cap", type=_number, default=0, help="count more accounts at once as a violation (0: do not)"
    )
    shops.add_argument(
        "--pace", type=float, default=0.0, help="count more requests a second as a violation (0: do not)"
    )


def _add_upkeep(commands: Commands) -> None:
    _add(commands, "migrate", "upkeep.migrate", "bring the database's schema up to date")
    _add(commands, "doctor", "upkeep.doctor", "check database, schema, keys, sources and Chrome")
    about = "print the CustomResourceDefinitions, as YAML"
    crds = _add_placeless(commands, "crds", "upkeep.print_crds", about)
    crds.add_argument(
        "--into", type=Path, metavar="DIR", help="write a file for each into this folder instead"
    )
    about = "make and rotate the keys that credentials are sealed with"
    verbs = commands.add_parser("keys", help=about, description=about).add_subparsers(
        required=True, metavar="VERB"
    )
    about = "print a fresh key: a line for the key ring, whose first key seals"
    _add_placeless(verbs, "new", "upkeep.new_key", about)
    _add(
        verbs,
        "rotate",
        "upkeep.rotate_keys",
        "seal everything with the first key of the ring; may be repeated",
    )


def _add_placeless(commands: Commands, name: str, do: str, about: str) -> argparse.ArgumentParser:
    """A command, done by the function that `do` names."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    parser.set_defaults(do=do, parser=parser)
    return parser


def _add(commands: Commands, name: str, do: str, about: str) -> argparse.ArgumentParser:
    """A command that works at a place: a database and a key ring."""
    parser = _add_placeless(commands, name, do, about)
    place = parser.add_argument_group("where")
    place.add_argument(
        "--database-url",
        metavar="URL",
        help="default: $CRAWLFLEET_DATABASE_URL, or what the file $CRAWLFLEET_DATABASE_URL_FILE holds, else an embedded"
        " PostgreSQL in the state folder",
    )
    place.add_argument(
        "--state-dir",
        type=Path,
        metavar="FOLDER",
        default=default_state_dir(),
        help="embedded database, keys and logs (default: %(default)s)",
    )
    place.add_argument(
        "--keys-file",
        metavar="FILE",
        default=os.environ.get("CRAWLFLEET_KEYS_FILE"),
        help="key ring (default: $CRAWLFLEET_KEYS_FILE, else `keys` in the state folder)",
    )
    return parser


def _add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("batch", metavar="BATCH", help="its name (the newest of that name) or uid")


def _add_user(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("user", type=_positive, metavar="USER", help="a user id")


def _number(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _address(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"expected an IPv4 address, not {text!r}") from exc


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return int(text)
