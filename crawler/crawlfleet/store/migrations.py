"""Plain numbered migrations (`migrations/NNNN_name.sql`), each in a transaction, under an advisory lock."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import LiteralString, NamedTuple

from crawlfleet.errors import CrawlfleetError
from crawlfleet.store.connection import Connection, connect, transaction

_LOCK = 0x63726177  # "craw": no other program in this database may use this advisory lock


_TABLE: LiteralString = """
create table if not exists schema_migration (
    version integer primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default now()
)"""


class Migration(NamedTuple):
    """One file: its number, its name and the checksum of its text."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return sha256(self.text.encode()).hexdigest()


class SchemaMismatch(CrawlfleetError):
    """The database was migrated by files that are not ours."""


def migrate(url: str) -> list[str]:
    """Bring the schema up to date; returns the names that were applied now, none if there was nothing to do.

    Raises SchemaMismatch if an applied migration was changed or is unknown here (a newer crawlfleet was
    here first), DatabaseUnavailable if there is no server.
    """
    with connect(url, "crawlfleet migrate") as conn:
        applied = [migration.name for migration in available() if _apply(conn, migration)]
        check_schema(conn)
    return applied


def _apply(conn: Connection, migration: Migration) -> bool:
    """Apply one migration unless it is there already; two at once wait for each other."""
    with transaction(conn):
        conn.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        conn.execute(_TABLE)
        row = conn.execute(
            "select checksum from schema_migration where version = %s", (migration.version,)
        ).fetchone()
        if row is None:
            conn.execute(migration.text)
            conn.execute(
                "insert into schema_migration (version, name, checksum) values (%s, %s, %s)",
                (migration.version, migration.name, migration.checksum),
            )
            return True
    if row[0] != migration.checksum:
        raise SchemaMismatch(
            f"migration {migration.version} ({migration.name}) was changed after it had been applied here;"
            " restore the file as it was released"
        )
    return False


def available() -> list[Migration]:
    """The migrations that this version ships, in order."""
    found = []
    for file in (files("crawlfleet.store") / "migrations").iterdir():
        number, _, name = file.name.removesuffix(".sql").partition("_")
        found.append(Migration(int(number), name, file.read_text(encoding="utf-8")))
    return sorted(found)


def check_schema(conn: Connection, *, or_newer: bool = False) -> None:
    """Raise SchemaMismatch unless exactly the shipped migrations are applied; `or_newer`: at least those.

    During an upgrade workers of the older version start on the newer schema, which is made for both.
    """
    if conn.execute("select to_regclass('schema_migration')").fetchone() == (None,):
        raise SchemaMismatch("the database has no crawlfleet schema; run `crawlfleet migrate`")
    applied: dict[int, str] = dict(conn.execute("select version, checksum from schema_migration").fetchall())
    for migration in available():
        if applied.pop(migration.version, None) != migration.checksum:
            raise SchemaMismatch(
                f"migration {migration.version} ({migration.name}) is not applied as shipped; run `crawlfleet migrate`"
            )
    if applied and not or_newer:
        raise SchemaMismatch(
            f"the database has migration {max(applied)}, newer than this crawlfleet; upgrade crawlfleet"
        )
