"""The key ring against a database: whether it opens what is stored there, and the rotation of keys.

`credentials` seals and opens single values and knows no database; here the two meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from crawlfleet.credentials import KeyRing, account_context, proxy_context
from crawlfleet.errors import BadConfiguration, CrawlfleetError
from crawlfleet.store import accounts, sources
from crawlfleet.store.connection import Connection, transaction

PROBLEMS_SHOWN = 10


def check_keys(conn: Connection, keys: KeyRing, batch_id: int | None = None) -> int:
    """Try a few accounts (of that batch's sources, if given); returns how many were tried.

    Raises BadConfiguration if none of them can be opened: then the ring is the wrong one. A single broken
    account is no reason to stop; its crawl ends `crashed`.
    """
    samples = accounts.sample(conn, batch_id)
    first: CrawlfleetError | None = None
    for source, user_id, sealed in samples:
        try:
            keys.open(sealed, account_context(source, user_id))
        except CrawlfleetError as exc:
            first = first or exc
        else:
            return len(samples)
    if first is not None:
        raise BadConfiguration(f"the key ring {keys.path} opens none of the accounts looked at: {first}")
    return 0


@dataclass(frozen=True)
class Rotation:
    """What was sealed anew; `problems` name values that no key of the ring opens (the first few)."""

    accounts: int
    proxies: int
    problems: Sequence[str]


def rotate(conn: Connection, keys: KeyRing) -> Rotation:
    """Seal every account and proxy with the ring's first key. Safe to repeat, and while a fleet works.

    A chunk of accounts is locked while it is sealed anew, so no refresh of a token is overwritten.
    """
    problems: list[str] = []
    done = sum(_reseal_accounts(conn, keys, problems))
    proxies = _reseal_proxies(conn, keys, problems)
    more = len(problems) - PROBLEMS_SHOWN
    if more > 0:
        problems[PROBLEMS_SHOWN:] = [f"and {more} more"]
    return Rotation(done, proxies, problems)


def _reseal_accounts(conn: Connection, keys: KeyRing, problems: list[str]) -> Iterator[int]:
    """Chunk by chunk, each in a transaction of its own: how many were sealed anew."""
    after = (0, 0)
    while True:
        with transaction(conn):
            chunk = accounts.locked_chunk(conn, *after)
            if not chunk:
                return
            fresh = [row for account in chunk if (row := _resealed(keys, account, problems))]
            accounts.reseal(conn, fresh)
        after = (chunk[-1].source_id, chunk[-1].user_id)
        yield len(fresh)


def _resealed(keys: KeyRing, account: accounts.Sealed, problems: list[str]) -> accounts.Sealed | None:
    """The account sealed with the first key; None if it is already, or cannot be opened."""
    context = account_context(account.source, account.user_id)
    try:
        if not (keys.needs_reseal(account.credentials) or keys.needs_reseal(account.imported)):
            return None
        credentials, imported = (
            keys.seal(keys.open_bytes(value, context), context)
            for value in (account.credentials, account.imported)
        )
    except CrawlfleetError as exc:
        problems.append(str(exc))
        return None
    return account._replace(credentials=credentials, imported=imported)


def _reseal_proxies(conn: Connection, keys: KeyRing, problems: list[str]) -> int:
    done = 0
    with transaction(conn):
        for egress_id, source, name, proxy in sources.locked_proxies(conn):
            context = proxy_context(source, name)
            try:
                if keys.needs_reseal(proxy):
                    sources.reseal_proxy(conn, egress_id, keys.seal(keys.open_bytes(proxy, context), context))
                    done += 1
            except CrawlfleetError as exc:
                problems.append(str(exc))
    return done
