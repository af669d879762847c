"""`crawlfleet doctor`: is everything there that a fleet needs? Looks, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from crawlfleet.credentials import KeyRing
from crawlfleet.errors import CrawlfleetError
from crawlfleet.keys import check_keys
from crawlfleet.sources import load_adapter
from crawlfleet.store.connection import Connection, connect
from crawlfleet.store.migrations import check_schema
from crawlfleet.store.sources import latest_adapters


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is well, and in words."""

    what: str
    well: bool
    words: str


def examine(url: str, keys_file: Path) -> Iterator[Finding]:
    """Check the keys, the database, its schema, that the keys fit it, and its sources, in this order."""
    keys = None
    try:
        keys = KeyRing.load(keys_file)
        yield Finding("keys", True, f"{keys_file}: {', '.join(keys.ids)}; {keys.ids[0]} seals")
    except CrawlfleetError as exc:
        yield Finding("keys", False, str(exc))
    try:
        with connect(url, "crawlfleet doctor") as conn:
            yield Finding("database", True, _version(conn))
            check_schema(conn)
            yield Finding("schema", True, "up to date")
            yield (
                _fitting(conn, keys)
                if keys
                else Finding("credentials", False, "not looked at, since the keys cannot be read")
            )
            yield from _sources(conn)
    except (CrawlfleetError, psycopg.Error) as exc:
        yield Finding("database", False, str(exc))


def _version(conn: Connection) -> str:
    row = conn.execute(
        "select current_setting('server_version'), current_setting('synchronous_commit')"
    ).fetchone()
    return "PostgreSQL {}, synchronous_commit {}".format(*(row or ("?", "?")))


def _fitting(conn: Connection, keys: KeyRing) -> Finding:
    try:
        tried = check_keys(conn, keys)
    except CrawlfleetError as exc:
        return Finding("credentials", False, str(exc))
    return Finding("credentials", True, "the keys open them" if tried else "no account yet")


def _sources(conn: Connection) -> Iterator[Finding]:
    for name, adapter in latest_adapters(conn):
        try:
            load_adapter(adapter)
            yield Finding(f"source {name}", True, f"adapter {adapter}")
        except CrawlfleetError as exc:
            yield Finding(f"source {name}", False, str(exc))
