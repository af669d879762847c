"""`crawlfleet doctor`: is everything there that a fleet needs? Looks, changes nothing; launches a Chrome for a moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from crawlfleet.browser import preflight
from crawlfleet.credentials import KeyRing
from crawlfleet.errors import CrawlfleetError
from crawlfleet.keys import check_keys
from crawlfleet.local.chrome import try_out
from crawlfleet.settings import ChromeSettings
from crawlfleet.sources import load_adapter, needs_browser
from crawlfleet.store.connection import Connection, connect
from crawlfleet.store.migrations import check_schema
from crawlfleet.store.sources import latest_adapters


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is well, and in words."""

    what: str
    well: bool
    words: str


def examine(url: str, keys_file: Path, chrome: ChromeSettings) -> Iterator[Finding]:
    """Check the keys, the database, its schema, that the keys fit it, its sources, and Chrome, in this order.

    Call it from the main thread.
    """
    keys = None
    try:
        keys = KeyRing.load(keys_file)
        yield Finding("keys", True, f"{keys_file}: {', '.join(keys.ids)}; {keys.ids[0]} seals")
    except CrawlfleetError as exc:
        yield Finding("keys", False, str(exc))
    adapters: list[str] = []
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
            sources = dict(latest_adapters(conn))
            adapters = list(sources.values())
            yield from map(_source, sources, adapters)
    except (CrawlfleetError, psycopg.Error) as exc:
        yield Finding("database", False, str(exc))
    yield _chrome(chrome, is_needed=any(map(needs_browser, adapters)))


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


def _source(name: str, adapter: str) -> Finding:
    try:
        load_adapter(adapter)
    except CrawlfleetError as exc:
        return Finding(f"source {name}", False, str(exc))
    return Finding(f"source {name}", True, f"adapter {adapter}")


def _chrome(settings: ChromeSettings, *, is_needed: bool) -> Finding:
    """Launched for a moment. One that cannot run is no fault where nobody needs it."""
    try:
        installation = preflight.inspect(settings)
        status = try_out()
    except CrawlfleetError as exc:
        return Finding("chrome", not is_needed, f"{exc}" if is_needed else f"no source needs it ({exc})")
    wall = "in its sandbox" if installation.sandbox else "without a sandbox, which cannot be made here"
    return Finding(
        "chrome",
        True,
        f"{installation.version} with its chromedriver, ready in {status.launch_s:.1f} s,"
        f" {status.memory_mb:.0f} MB, {wall}",
    )
