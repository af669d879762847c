"""Accounts in the database: import, the levers of a person, and the three writes of the refresh protocol.

Credentials pass through here sealed; `credentials.KeyRing` opens them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.queries import sql


@dataclass(frozen=True)
class SealedAccount:
    """One line of an import, credentials sealed."""

    user_id: int
    subscription: str
    last_login_at: datetime | None
    credentials: bytes
    imported: bytes


class Stored(NamedTuple):
    """The credentials of an account as they stand now, and what is known of a refresh under way.

    `refresh_lease`: who has an intent open, since at least `since_s` (both mean nothing otherwise).
    """

    credentials: bytes
    generation: int
    refresh_tries: int
    refresh_lease: int | None
    since_s: float


class Sealed(NamedTuple):
    """The two sealed values of an account, for the rotation of keys."""

    source_id: int
    user_id: int
    source: str
    credentials: bytes
    imported: bytes


def locked_imports(conn: Connection, source_id: int, users: Sequence[int]) -> dict[int, bytes]:
    """User id → what was last imported (sealed), of those that exist; their rows are locked."""
    rows = conn.execute(sql("lock_accounts"), {"source": source_id, "users": sorted(users)})
    return {user: bytes(imported) for user, imported in rows}


def put_accounts(
    conn: Connection, source_id: int, accounts: Sequence[SealedAccount], renewed: set[int]
) -> None:
    """Insert or update accounts; only those in `renewed` get new credentials where they exist already."""
    ordered = sorted(accounts, key=lambda a: a.user_id)
    conn.execute(
        sql("put_accounts"),
        {
            "source": source_id,
            "users": [a.user_id for a in ordered],
            "subscriptions": [a.subscription for a in ordered],
            "logins": [a.last_login_at for a in ordered],
            "credentials": [a.credentials for a in ordered],
            "imported": [a.imported for a in ordered],
        },
    )
    changed = [a for a in ordered if a.user_id in renewed]
    if changed:
        conn.execute(
            sql("renew_credentials"),
            {
                "source": source_id,
                "users": [a.user_id for a in changed],
                "credentials": [a.credentials for a in changed],
                "imported": [a.imported for a in changed],
            },
        )


def read_credentials(conn: Connection, source_id: int, user_id: int) -> Stored | None:
    """The account's credentials now; None if it was purged."""
    row = conn.execute(sql("read_credentials"), {"source": source_id, "user": user_id}).fetchone()
    return None if row is None else Stored(bytes(row[0]), *row[1:])


def intend_refresh(conn: Connection, source_id: int, user_id: int, seen: Stored, lease_id: int) -> bool:
    """Commit the intent to send this generation's token; False if somebody else was faster."""
    with transaction(conn):
        row = conn.execute(
            sql("intend_refresh"),
            {
                "source": source_id,
                "user": user_id,
                "generation": seen.generation,
                "tries": seen.refresh_tries,
                "lease": lease_id,
            },
        ).fetchone()
    return row is not None


def store_refresh(
    conn: Connection, source_id: int, user_id: int, generation: int, credentials: bytes
) -> bool:
    """Store the reply by compare-and-swap on the generation; False if newer credentials are there."""
    with transaction(conn):
        row = conn.execute(
            sql("store_refresh"),
            {"source": source_id, "user": user_id, "generation": generation, "credentials": credentials},
        ).fetchone()
    return row is not None


def park(conn: Connection, source_id: int, user_id: int, generation: int, reason: str) -> bool:
    """The shop refused this generation: the account needs a person. False if newer credentials are there."""
    refused = {"sources": [source_id], "users": [user_id], "generations": [generation], "reasons": [reason]}
    with transaction(conn):
        return conn.execute(sql("park_accounts"), refused).rowcount > 0


def end_try(
    conn: Connection, source_id: int, user_id: int, generation: int, lease_id: int, tries: int
) -> None:
    """The POST of this lease has ended and decided nothing; `tries` 0: it was never sent, 1: that is in doubt."""
    with transaction(conn):
        conn.execute(
            sql("end_try"),
            {
                "source": source_id,
                "user": user_id,
                "generation": generation,
                "lease": lease_id,
                "tries": tries,
            },
        )


def list_accounts(conn: Connection, *, needs_attention: bool) -> list[tuple[Any, ...]]:
    """(user id, source, state, subscription, last login, reason) of all accounts, or of those that need a person."""
    return conn.execute(sql("list_accounts"), {"needs_attention": needs_attention}).fetchall()


def show_account(conn: Connection, user_id: int) -> list[tuple[Any, ...]]:
    """One row a source: as `list_accounts`, then generation, open refresh tries, egress, expected cost in ms."""
    return conn.execute(sql("show_account"), {"user": user_id}).fetchall()


def count_items(conn: Connection, user_id: int) -> dict[str, int]:
    """Source → how many items of the user are stored."""
    return dict(conn.execute(sql("count_items"), {"user": user_id}).fetchall())


def set_state(
    conn: Connection, user_id: int, source: str | None, state: str, reason: str | None
) -> list[str]:
    """Enable or disable a user's accounts; returns the names of the sources that had one."""
    with transaction(conn):
        rows = conn.execute(
            sql("set_account_state"), {"user": user_id, "source": source, "state": state, "reason": reason}
        )
        return [name for (name,) in rows]


def purge(conn: Connection, user_id: int) -> tuple[int, int] | None:
    """Delete a user's items, accounts and what was kept of them.

    Returns how many (accounts, items) were deleted, None if a crawl is under way.
    """
    known = set_state(conn, user_id, None, "disabled", "Purging")  # from here on no crawl begins
    with transaction(conn, long=True):
        if conn.execute(sql("holds_permit"), {"user": user_id}).fetchone() == (True,):
            return None
        conn.execute(sql("purge_tracks"), {"user": user_id})
        conn.execute(sql("purge_accounts"), {"user": user_id})
        items = conn.execute(sql("purge_items"), {"user": user_id}).rowcount
        conn.execute(sql("purge_snapshots"), {"user": user_id})
    return len(known), items


def sample(conn: Connection, batch_id: int | None) -> list[tuple[str, int, bytes]]:
    """(source, user id, sealed credentials) of a few accounts, of the batch's sources if one is given."""
    rows = conn.execute(sql("sample_accounts"), {"batch": batch_id})
    return [(source, user, bytes(sealed)) for source, user, sealed in rows]


def locked_chunk(conn: Connection, source_id: int, user_id: int) -> list[Sealed]:
    """The next accounts after this one, by key; their rows are locked."""
    rows = conn.execute(sql("sealed_accounts"), {"source": source_id, "user": user_id})
    return [
        Sealed(source_id, user_id, source, bytes(credentials), bytes(imported))
        for source_id, user_id, source, credentials, imported in rows
    ]


def reseal(conn: Connection, accounts: Sequence[Sealed]) -> None:
    """Write these values; the caller has locked the rows."""
    conn.execute(
        sql("reseal_accounts"),
        {
            "sources": [a.source_id for a in accounts],
            "users": [a.user_id for a in accounts],
            "credentials": [a.credentials for a in accounts],
            "imported": [a.imported for a in accounts],
        },
    )
