"""Where a command works: the database and the key ring that its options name, or the embedded ones."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from crawlfleet.credentials import KeyRing
from crawlfleet.errors import BadInput
from crawlfleet.local.postgres import EmbeddedPostgres
from crawlfleet.settings import database_url
from crawlfleet.store.connection import Connection, connect
from crawlfleet.store.migrations import check_schema, migrate

Arguments = argparse.Namespace


def default_state_dir() -> Path:
    """Where local state lies: XDG_STATE_HOME/crawlfleet, /var/lib/crawlfleet for root."""
    if os.geteuid() == 0:
        return Path("/var/lib/crawlfleet")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "crawlfleet"


@contextmanager
def database(
    arguments: Arguments, *, may_make: bool = False
) -> Iterator[tuple[str, EmbeddedPostgres | None]]:
    """The database's URL, and the embedded server if no URL was given; it is up to date while entered.

    Raises BadInput if there is none yet, unless the command is one that may make it: who only looks would otherwise
    be shown an empty database instead of the wrong folder.
    """
    if url := given_url(arguments):
        yield url, None
        return
    postgres = EmbeddedPostgres(arguments.state_dir)
    if not may_make and not postgres.exists:
        raise BadInput(
            f"there is no database in {arguments.state_dir}; `crawlfleet run` and `crawlfleet accounts import` make one,"
            " --state-dir and --database-url name another"
        )
    with postgres:
        migrate(postgres.url)
        yield postgres.url, postgres


def given_url(arguments: Arguments) -> str | None:
    """The URL that was given, None for the embedded database."""
    url: str | None = arguments.database_url
    if url is None:
        url = database_url(os.environ)
    if url is not None and not url.strip():
        raise BadInput(
            "--database-url or CRAWLFLEET_DATABASE_URL is empty; expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE,"
            " or neither of them for the embedded database"
        )
    return url


@contextmanager
def connection(arguments: Arguments, *, may_make: bool = False) -> Iterator[Connection]:
    """A connection to the database, whose schema is ours."""
    with database(arguments, may_make=may_make) as (url, _), connect(url, "crawlfleet command") as conn:
        check_schema(conn)
        yield conn


def keys_path(arguments: Arguments) -> Path:
    """The key ring's file, which need not exist."""
    return Path(arguments.keys_file) if arguments.keys_file else arguments.state_dir / "keys"


def key_ring(arguments: Arguments) -> KeyRing:
    """The key ring. One that was named must exist; in the state folder it is made when it is first needed."""
    path = keys_path(arguments)
    if not arguments.keys_file and not path.exists():
        _make_key_ring(path)
    return KeyRing.load(path)


def _make_key_ring(path: Path) -> None:
    """Complete before it has its name, and never over one that another process made meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"keys.{os.getpid()}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT, 0o600), "w") as opened:
            opened.write(KeyRing.new_key() + "\n")
        with suppress(FileExistsError):
            path.hardlink_to(fresh)
    finally:
        fresh.unlink(missing_ok=True)


def command_line(arguments: Arguments, *words: str) -> str:
    """A crawlfleet command for a person to copy: `words`, at the same place as this one. Shows no password."""
    line = [program_name(), *words]
    if arguments.state_dir != default_state_dir():
        line += ["--state-dir", str(arguments.state_dir)]
    if arguments.database_url:
        line += ["--database-url", "URL" if _has_password(arguments.database_url) else arguments.database_url]
    if arguments.keys_file and str(arguments.keys_file) != os.environ.get("CRAWLFLEET_KEYS_FILE"):
        line += ["--keys-file", str(arguments.keys_file)]
    return shlex.join(line)


def _has_password(url: str) -> bool:
    try:
        return "password" in conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return True


def program_name() -> str:
    """How this program was called."""
    return "crawlfleet" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
