"""Importing accounts: a nightly file leaves rotated credentials alone, and a file with a bad line writes nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from builders import account, add_accounts, declare_source, scalar, session_keys, together

from crawlfleet.accounts import Account, read_accounts
from crawlfleet.apply import credential_check, import_accounts
from crawlfleet.credentials import account_context
from crawlfleet.errors import BadInput
from crawlfleet.store.accounts import list_accounts, read_credentials, set_state, store_refresh
from crawlfleet.store.connection import Connection
from crawlfleet.store.sources import source_names

Connections = Callable[[], Connection]
KEYS = session_keys()


def imported(conn: Connection, *accounts: Account) -> tuple[int, int]:
    """(lines, accounts with new credentials)."""
    return import_accounts(conn, KEYS, accounts)


def import_lines(conn: Connection, *lines: Any) -> tuple[int, int]:
    """A JSONL file, as the command line reads it."""
    file = io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    check = credential_check(source_names(conn), {})
    return import_accounts(conn, KEYS, read_accounts(file, "FILE", "jsonl", check))


def line(user_id: int, source: str = "shop") -> dict[str, Any]:
    return {
        "user_id": user_id,
        "source": source,
        "subscription": "paid",
        "credentials": {"token": f"token-{user_id}"},
    }


def token_of(conn: Connection, user_id: int = 1) -> tuple[str, int]:
    """(token, generation) as a crawl would find them."""
    stored = read_credentials(conn, scalar(conn, "select source_id from source"), user_id)
    assert stored is not None
    return KEYS.open(stored.credentials, account_context("shop", user_id))["token"], stored.generation


def rotate_token(conn: Connection, token: str) -> None:
    """As the shop does, in the middle of a crawl."""
    _, generation = token_of(conn)
    sealed = KEYS.seal({"token": token}, account_context("shop", 1))
    assert store_refresh(conn, scalar(conn, "select source_id from source"), 1, generation, sealed)


def park(conn: Connection) -> None:
    conn.execute(
        "update account set state = 'auth', reason = 'RefreshLost', refresh_tries = 2, refresh_lease = 9"
    )


def test_new_accounts_are_inserted_well(conn: Connection) -> None:
    assert imported(conn, account(1), account(2)) == (2, 2)

    assert [row[:3] for row in list_accounts(conn, needs_attention=False)] == [
        (1, "shop", "ok"),
        (2, "shop", "ok"),
    ]
    assert token_of(conn) == ("token-1", 0)


def test_the_nightly_file_leaves_a_rotated_credential_alone(conn: Connection) -> None:
    """The file still holds the token that was imported first; the shop has rotated it since."""
    imported(conn, account(1))
    rotate_token(conn, "rotated")

    assert imported(conn, account(1)) == (1, 0)
    assert token_of(conn) == ("rotated", 1)


def test_different_credentials_replace_a_rotated_one_in_a_new_generation(conn: Connection) -> None:
    """The seller has consented again: the file's token is the good one now."""
    imported(conn, account(1))
    rotate_token(conn, "rotated")

    assert imported(conn, account(1, credentials={"token": "consented"})) == (1, 1)
    assert token_of(conn) == ("consented", 2)
    assert imported(conn, account(1, credentials={"token": "consented"})) == (1, 0)


def test_different_credentials_make_a_parked_account_well(conn: Connection) -> None:
    imported(conn, account(1))
    park(conn)

    imported(conn, account(1, credentials={"token": "consented"}))

    assert list_accounts(conn, needs_attention=True) == []
    trace = conn.execute("select state::text, reason, refresh_tries, refresh_lease from account").fetchone()
    assert trace == ("ok", None, 0, None)


def test_the_same_credentials_leave_a_parked_account_parked(conn: Connection) -> None:
    """Never retried blindly."""
    imported(conn, account(1))
    park(conn)

    imported(conn, account(1))

    assert [row[2] for row in list_accounts(conn, needs_attention=True)] == ["auth"]


def test_different_credentials_do_not_enable_an_account_that_a_person_disabled(conn: Connection) -> None:
    imported(conn, account(1))
    set_state(conn, 1, None, "disabled", "left")

    imported(conn, account(1, credentials={"token": "consented"}))

    assert scalar(conn, "select state::text from account") == "disabled"


def test_subscription_and_last_login_follow_every_file(conn: Connection) -> None:
    imported(conn, account(1, subscription="paid"))
    imported(conn, account(1, subscription="free"))

    assert scalar(conn, "select subscription from account") == "free"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(line(0), "FILE line 2: user_id", id="bad-user"),
        pytest.param(line(1), "FILE line 2: user 1 at shop stands already on line 1", id="twice"),
        pytest.param(
            line(2, "other"), "FILE line 2: source: there is no source 'other'", id="unknown-source"
        ),
        pytest.param(line(2, "cafe24"), "FILE line 2: credentials: .*mall_id", id="bad-credentials"),
    ],
)
def test_a_bad_line_is_named_and_nothing_of_its_file_is_written(
    conn: Connection, bad: dict[str, Any], message: str
) -> None:
    declare_source(conn)

    with pytest.raises(BadInput, match=message):
        import_lines(conn, line(1), bad, line(3))

    assert scalar(conn, "select count(*) from account") == 0


def test_an_unknown_source_is_told_with_the_known_ones(conn: Connection) -> None:
    declare_source(conn)

    with pytest.raises(BadInput, match=r"there is no source 'other'; known: .*cafe24.*shop"):
        import_lines(conn, line(1, "other"))


def test_accounts_may_come_before_their_source_if_it_is_named_like_an_adapter(conn: Connection) -> None:
    assert import_lines(conn, line(1, "noop") | {"credentials": {"duration_s": 0}}) == (1, 1)
    assert source_names(conn) == ["noop"]


def test_a_file_may_be_longer_than_a_chunk(conn: Connection) -> None:
    users = range(1, 2502)
    add_accounts(conn, users)

    assert scalar(conn, "select count(*) from account") == 2501
    assert imported(conn, *map(account, users)) == (2501, 0)


def test_of_two_imports_at_once_each_account_keeps_one_of_the_two_wholly(
    conn: Connection, connections: Connections
) -> None:
    """Credentials and what was imported belong together, else the next nightly file would overwrite."""
    files = [
        [account(u, credentials={"token": f"{u}-of-{name}"}) for u in range(1, 201)] for name in ("a", "b")
    ]
    for _ in range(5):
        together(*[partial(import_accounts, connections(), KEYS, file) for file in files])

    rows = conn.execute("select user_id, credentials, imported from account order by 1").fetchall()
    assert len(rows) == 200
    for user, credentials, same in rows:
        context = account_context("shop", user)
        kept = KEYS.open(bytes(credentials), context)
        assert kept == KEYS.open(bytes(same), context)
        assert kept["token"] in (f"{user}-of-a", f"{user}-of-b")


def test_of_two_imports_of_a_new_account_at_once_the_second_sees_the_first(
    conn: Connection, connections: Connections
) -> None:
    """Whoever is second compares with what the first one wrote: the newest credentials are the stored ones."""
    conns = [connections(), connections()]
    for user in range(1, 51):
        files = [account(user, credentials={"token": token}) for token in ("one", "two")]
        results = together(*[partial(imported, mine, file) for mine, file in zip(conns, files, strict=True)])
        assert results == [(1, 1), (1, 1)]
        assert token_of(conn, user)[1] == 1
