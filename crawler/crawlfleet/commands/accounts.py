"""`crawlfleet accounts`: import sellers' accounts and look after them. No command shows a secret."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from crawlfleet import apply
from crawlfleet.accounts import format_of, read_accounts
from crawlfleet.commands.place import Arguments, connection, key_ring
from crawlfleet.commands.tables import number_of, print_table
from crawlfleet.credentials import KeyRing
from crawlfleet.errors import BadInput, CrawlfleetError
from crawlfleet.sources import Adapter
from crawlfleet.store import accounts
from crawlfleet.store.connection import Connection
from crawlfleet.store.sources import source_names

LISTED = ("USER", "SOURCE", "STATE", "SUBSCRIPTION", "LAST_LOGIN", "REASON")
SHOWN = (*LISTED, "GENERATION", "OPEN_REFRESHES", "EGRESS", "COST_MS")


def import_accounts(arguments: Arguments) -> int:
    with connection(arguments, may_make=True) as conn:
        lines, renewed = import_file(conn, key_ring(arguments), arguments.file, {})
    print(f"{number_of(lines, 'account')}, {renewed} with new credentials")
    return 0


def import_file(
    conn: Connection, keys: KeyRing, name: str, adapters: Mapping[str, Adapter]
) -> tuple[int, int]:
    """Import a file (`-` is stdin): (lines, accounts with new credentials). Of a file with a bad line, nothing."""
    check = apply.credential_check(source_names(conn), adapters)
    with _opened(name) as file:
        shown = "stdin" if name == "-" else name
        return apply.import_accounts(conn, keys, read_accounts(file, shown, format_of(name), check))


@contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(name).open("rb") as file:
            yield file
    except OSError as exc:
        raise BadInput(f"cannot read {name}: {exc.strerror}") from exc


def list_accounts(arguments: Arguments) -> int:
    with connection(arguments) as conn:
        print_table(LISTED, accounts.list_accounts(conn, needs_attention=arguments.needs_attention))
    return 0


def show(arguments: Arguments) -> int:
    with connection(arguments) as conn:
        rows = accounts.show_account(conn, arguments.user)
    if not rows:
        raise BadInput(f"user {arguments.user} has no account in this database")
    print_table(SHOWN, rows)
    return 0


def enable(arguments: Arguments) -> int:
    return _set_state(arguments, "ok", None, "enabled")


def disable(arguments: Arguments) -> int:
    return _set_state(arguments, "disabled", "DisabledByHand", "disabled")


def _set_state(arguments: Arguments, state: str, reason: str | None, words: str) -> int:
    with connection(arguments) as conn:
        changed = accounts.set_state(conn, arguments.user, arguments.source, state, reason)
    if not changed:
        at = f" at {arguments.source}" if arguments.source else ""
        raise BadInput(f"user {arguments.user} has no account{at} in this database")
    print(f"user {arguments.user}: {words} at {', '.join(changed)}")
    return 0


def purge(arguments: Arguments) -> int:
    with connection(arguments) as conn:
        deleted = accounts.purge(conn, arguments.user)
    if deleted is None:
        raise CrawlfleetError(f"user {arguments.user} is being crawled right now; purge again in a moment")
    if deleted == (0, 0):
        raise BadInput(f"user {arguments.user} has neither an account nor an item in this database")
    _, items = deleted
    print(f"user {arguments.user}: accounts, snapshots and {number_of(items, 'item')} deleted")
    return 0
