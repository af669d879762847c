"""The key ring against a database: does it fit, and the rotation of keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import add_accounts, declare_source, egress, scalar

from crawlfleet.credentials import KeyRing, account_context, proxy_context
from crawlfleet.errors import BadConfiguration
from crawlfleet.keys import check_keys, rotate
from crawlfleet.store import accounts
from crawlfleet.store.connection import Connection
from crawlfleet.store.sources import source_id_of


@pytest.fixture
def lines() -> list[str]:
    """Two key lines: the old one and the new one."""
    return [KeyRing.new_key(), KeyRing.new_key()]


def ring(folder: Path, *lines: str) -> KeyRing:
    file = folder / "keys"
    file.write_text("\n".join(lines))
    return KeyRing.load(file)


def opened(conn: Connection, keys: KeyRing, user_id: int) -> list[object]:
    """The user's two sealed values at `shop`, opened."""
    row = conn.execute("select credentials, imported from account where user_id = %s", (user_id,)).fetchone()
    assert row
    return [keys.open(value, account_context("shop", user_id)) for value in row]


def test_a_ring_fits_an_empty_database(conn: Connection, tmp_path: Path, lines: list[str]) -> None:
    assert check_keys(conn, ring(tmp_path, *lines)) == 0


def test_a_ring_that_opens_no_account_does_not_fit(
    conn: Connection, tmp_path: Path, lines: list[str]
) -> None:
    add_accounts(conn, [1, 2], keys=ring(tmp_path, lines[0]))

    with pytest.raises(BadConfiguration, match="opens none of the accounts looked at: account/shop/"):
        check_keys(conn, ring(tmp_path, lines[1]))


def test_one_broken_account_does_not_speak_against_the_ring(
    conn: Connection, tmp_path: Path, lines: list[str]
) -> None:
    keys = ring(tmp_path, lines[0])
    add_accounts(conn, [1, 2], keys=keys)
    conn.execute("update account set credentials = '\\x00' where user_id = 1")

    assert check_keys(conn, keys) == 2


def test_a_rotation_leaves_nothing_to_the_old_key(conn: Connection, tmp_path: Path, lines: list[str]) -> None:
    """More accounts than a chunk holds, of two sources, and a proxy."""
    old = ring(tmp_path, lines[0])
    proxy = old.seal({"url": "http://proxy.example.com"}, proxy_context("shop", "exit-1"))
    source_id = declare_source(conn, egress("exit-1"))
    conn.execute("update egress set proxy = %s where source_id = %s", (proxy, source_id))
    add_accounts(conn, range(1, 701), keys=old)
    add_accounts(conn, [1], source="mall", keys=old)

    done = rotate(conn, ring(tmp_path, lines[1], lines[0]))

    assert (done.accounts, done.proxies, done.problems) == (701, 1, [])
    new = ring(tmp_path, lines[1])
    assert opened(conn, new, 700) == [{"token": "token-700"}] * 2
    sealed = scalar(conn, "select proxy from egress where proxy is not null")
    assert new.open(sealed, proxy_context("shop", "exit-1")) == {"url": "http://proxy.example.com"}


def test_a_second_rotation_finds_nothing_to_do(conn: Connection, tmp_path: Path, lines: list[str]) -> None:
    add_accounts(conn, [1, 2], keys=ring(tmp_path, lines[0]))
    both = ring(tmp_path, lines[1], lines[0])
    rotate(conn, both)
    before = conn.execute("select * from account order by user_id").fetchall()

    assert rotate(conn, both).accounts == 0

    assert conn.execute("select * from account order by user_id").fetchall() == before


def test_a_rotation_goes_on_past_what_it_cannot_open(
    conn: Connection, tmp_path: Path, lines: list[str]
) -> None:
    add_accounts(conn, range(1, 16), keys=ring(tmp_path, KeyRing.new_key()))
    add_accounts(conn, [99], keys=ring(tmp_path, lines[0]))

    done = rotate(conn, ring(tmp_path, lines[1], lines[0]))

    assert done.accounts == 1
    assert done.problems[0].startswith("account/shop/1 is sealed with key")
    assert (len(done.problems), done.problems[-1]) == (11, "and 5 more")


def test_a_rotation_keeps_a_refresh_that_is_under_way(
    conn: Connection, tmp_path: Path, lines: list[str]
) -> None:
    """Its reply is stored by compare-and-swap on the generation, which sealing anew does not touch."""
    keys = ring(tmp_path, lines[0])
    add_accounts(conn, [1], keys=keys)
    source_id = source_id_of(conn, "shop")
    stored = accounts.read_credentials(conn, source_id, 1)
    assert stored
    assert accounts.intend_refresh(conn, source_id, 1, stored, 7)

    both = ring(tmp_path, lines[1], lines[0])
    rotate(conn, both)

    fresh = both.seal({"token": "rotated"}, account_context("shop", 1))
    assert accounts.store_refresh(conn, source_id, 1, stored.generation, fresh)
    assert opened(conn, both, 1) == [{"token": "rotated"}, {"token": "token-1"}]
