"""Migrations: applied once, by whoever is first, and never over files that are not ours."""

from __future__ import annotations

from itertools import chain

import pytest
from builders import scalar, together

from crawlfleet.store.connection import Connection
from crawlfleet.store.migrations import SchemaMismatch, available, check_schema, migrate

NAMES = [migration.name for migration in available()]


@pytest.fixture
def empty(conn: Connection) -> Connection:
    """The test's database without our schema."""
    conn.execute("drop schema public cascade; create schema public")
    return conn


def test_an_empty_database_gets_every_migration_once(empty: Connection, database_url: str) -> None:
    assert migrate(database_url) == NAMES
    assert migrate(database_url) == []

    check_schema(empty)
    assert scalar(empty, "select count(*) from schema_migration") == len(NAMES)


def test_two_concurrent_runs_apply_each_migration_once(empty: Connection, database_url: str) -> None:
    applied = together(*[lambda: migrate(database_url)] * 4)

    assert sorted(chain(*applied)) == sorted(NAMES)
    check_schema(empty)


def test_a_migration_that_was_changed_after_it_was_applied_is_refused(
    conn: Connection, database_url: str
) -> None:
    conn.execute("update schema_migration set checksum = 'other'")

    with pytest.raises(SchemaMismatch, match=r"migration 1 .* was changed"):
        migrate(database_url)
    with pytest.raises(SchemaMismatch, match=r"migration 1 .* is not applied as shipped"):
        check_schema(conn)


def test_a_database_of_a_newer_crawlfleet_is_refused(conn: Connection, database_url: str) -> None:
    conn.execute("insert into schema_migration (version, name, checksum) values (9999, 'later', 'x')")

    with pytest.raises(SchemaMismatch, match="9999, newer than this crawlfleet"):
        migrate(database_url)
    with pytest.raises(SchemaMismatch, match="9999, newer than this crawlfleet"):
        check_schema(conn)


def test_a_newer_database_is_good_enough_for_a_worker(conn: Connection) -> None:
    """During an upgrade those of the older version go on, and new pods of it start."""
    conn.execute("insert into schema_migration (version, name, checksum) values (9999, 'later', 'x')")

    check_schema(conn, or_newer=True)


@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        ("delete from schema_migration where version = 2", r"migration 2 .* is not applied as shipped"),
        (
            "update schema_migration set checksum = 'x' where version = 2",
            r"migration 2 .* is not applied as shipped",
        ),
        ("drop table schema_migration", "run `crawlfleet migrate`"),
    ],
    ids=["older", "another", "none"],
)
def test_an_older_database_is_not_good_enough_for_a_worker(conn: Connection, spoilt: str, words: str) -> None:
    """Not even with later migrations on it."""
    conn.execute("insert into schema_migration (version, name, checksum) values (9999, 'later', 'x')")
    conn.execute(spoilt)

    with pytest.raises(SchemaMismatch, match=words):
        check_schema(conn, or_newer=True)


def test_a_missing_schema_is_named_with_the_command_that_helps(empty: Connection) -> None:
    with pytest.raises(SchemaMismatch, match="run `crawlfleet migrate`"):
        check_schema(empty)


def test_a_migration_that_fails_leaves_nothing_behind(empty: Connection, database_url: str) -> None:
    """A foreign table is in the way: the migration and its record are rolled back together."""
    empty.execute("create table track (note text)")

    with pytest.raises(Exception, match='"track" already exists'):
        migrate(database_url)

    assert scalar(empty, "select to_regclass('fleet')") is None


def test_no_table_or_sequence_is_unlogged(conn: Connection) -> None:
    """A crash of PostgreSQL empties an unlogged one: permits and their numbers would be given twice."""
    kept = conn.execute(
        "select distinct relpersistence::text from pg_class where relnamespace = 'public'::regnamespace"
    )
    assert kept.fetchall() == [("p",)]
