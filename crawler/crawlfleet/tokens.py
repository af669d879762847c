"""The refresh protocol: rotate an account's tokens exactly once, whatever dies meanwhile. A login goes the same way.

A rotating refresh token is good for one use; a reply that is lost costs a person a new consent. So:

1. *intend*: commit (account, generation, try number) before the token is sent;
2. *post*: send it, outside any transaction or row lock;
3. *store*: write the reply by compare-and-swap on the generation alone, never on the lease: a rescued
   worker's new token is still the only good one. Storing is retried for as long as the process lives.

Who finds an open intent of another lease first waits until that POST must have ended; if nothing was stored
by then, the token is tried once more (the POST may never have left), under an intent of its own. A second
open intent means that nobody knows any more: the account ends `auth` with reason RefreshLost.

A password is submitted under the same intent, but never a second time: one open intent, or a submission that
decided nothing, is a LoginInterrupted. Wrong passwords lock sellers out, and who knows what the shop has seen.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from crawlfleet.credentials import KeyRing, account_context
from crawlfleet.errors import AuthFailed, CrawlEnded, Retry
from crawlfleet.metrics import REFRESHES
from crawlfleet.store import accounts
from crawlfleet.store.accounts import Stored
from crawlfleet.store.connection import Connection
from crawlfleet.store.turn import Lease

log = logging.getLogger(__name__)

T = TypeVar("T")

Credentials = dict[str, Any]
Connections = Callable[[], AbstractContextManager[Connection]]

POST_S = 60.0
"""No refresh POST lasts longer: `LiveCrawl.enforce` shuts its socket then."""
STORE_AGAIN_S = 1.0
MAX_TRIES = 2


class PendingStores:
    """Counts replies that are not stored yet, so that a process does not exit over one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pending = 0

    def __enter__(self) -> None:
        with self._changed:
            self._pending += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._pending -= 1
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return self._pending

    def wait_long(self) -> None:
        """Wait until none is pending, however long it takes; says so each minute."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._pending == 0, 60):
                log.warning("waiting to store a refreshed token")


@dataclass(frozen=True)
class Rule:
    """How often what is sent may be sent while nobody knows what became of it, and how the account ends then."""

    most_tries: int
    lost: str
    detail: str

    def ending(self) -> AuthFailed:
        return AuthFailed(self.lost, self.detail)


REFRESH = Rule(
    MAX_TRIES, "RefreshLost", "a crash hid the reply of a token refresh; the seller must consent again"
)
LOGIN = Rule(
    1,
    "LoginInterrupted",
    "a login broke off after its password was submitted, or may have been; see that the account is not locked,"
    " then `crawlfleet accounts enable` it",
)


class Tokens:
    """The tokens of one account during one crawl: opens, refreshes and stores them."""

    def __init__(
        self,
        connections: Connections,
        keys: KeyRing,
        pending: PendingStores,
        source: str,
        lease: Lease,
    ) -> None:
        """Raises CrawlfleetError if the key ring does not open the lease's credentials."""
        assert lease.credentials is not None
        assert lease.generation is not None
        self._connections = connections
        self._keys = keys
        self._pending = pending
        self._context = account_context(source, lease.user_id)
        self._source = source
        self._account = (lease.source_id, lease.user_id)
        self._lease_id = lease.lease_id
        self.generation = lease.generation
        self.secrets: set[str] = set()
        """Every value of the credentials so far: those of a token that was replaced may still live."""
        self._know(keys.open(bytes(lease.credentials), self._context))

    def refresh(self, post: Callable[[Credentials], Credentials], wait: Callable[[float], None]) -> None:
        """Rotate, or find that somebody else just has. `wait` sleeps, and ends the crawl if it has to stop.

        Raises AuthFailed if the token was refused or is lost, and what `post` raises if nothing was learned.
        """
        self._renew(REFRESH, post, wait)

    def login(self, submit: Callable[[Credentials], Credentials], wait: Callable[[float], None]) -> None:
        """Submit a password, or find that somebody else just has.

        Raises AuthFailed if it was refused, or if a submission broke off, now or earlier.
        """
        self._renew(LOGIN, submit, wait)

    def _renew(
        self, rule: Rule, post: Callable[[Credentials], Credentials], wait: Callable[[float], None]
    ) -> None:
        stored = self._read()
        if stored.generation != self.generation:
            return self._adopt(stored)
        if stored.refresh_lease:
            stored = self._outwait(stored, wait)
            if stored.generation != self.generation:
                return self._adopt(stored)
        if stored.refresh_tries >= rule.most_tries:
            return self._adopt_if_newer_or_raise(rule.ending())
        if not self._intend(stored):
            raise Retry("RefreshContended", "another crawl began to refresh this account's tokens")
        return self._post_and_store(rule, post, stored)

    def _read(self) -> Stored:
        with self._connections() as conn:
            stored = accounts.read_credentials(conn, *self._account)
        if stored is None:
            raise AuthFailed("AccountPurged", "the account was deleted while it was being crawled")
        return stored

    def _know(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self.secrets |= {str(value) for value in credentials.values()}

    def _adopt(self, stored: Stored) -> None:
        self._know(self._keys.open(stored.credentials, self._context))
        self.generation = stored.generation
        REFRESHES.labels(self._source, "adopted").inc()

    def _outwait(self, stored: Stored, wait: Callable[[float], None]) -> Stored:
        """An intent of a lease that is gone is open: its POST may still be under way in a paused process."""
        waited_s = stored.since_s
        while waited_s < POST_S and stored.refresh_lease and stored.generation == self.generation:
            wait(STORE_AGAIN_S)
            waited_s += STORE_AGAIN_S
            stored = self._read()
        return stored

    def _intend(self, stored: Stored) -> bool:
        with self._connections() as conn:
            return accounts.intend_refresh(conn, *self._account, stored, self._lease_id)

    def _post_and_store(self, rule: Rule, post: Callable[[Credentials], Credentials], stored: Stored) -> None:
        with self._pending:
            try:
                new = post(self.credentials)
            except AuthFailed as refused:
                REFRESHES.labels(self._source, "refused").inc()
                self._adopt_if_newer_or_raise(rule.ending() if stored.refresh_tries > 0 else refused)
                return
            except CrawlEnded as undecided:
                REFRESHES.labels(self._source, "undecided").inc()
                if rule.most_tries == 1 and not undecided.never_sent:
                    self._adopt_if_newer_or_raise(rule.ending())
                    return
                self._end_try(stored, sent=not undecided.never_sent)
                raise
            self._store(new)
        REFRESHES.labels(self._source, "rotated").inc()

    def _adopt_if_newer_or_raise(self, ending: AuthFailed) -> None:
        """Write the end down at once: whatever becomes of this crawl, nobody sends that token or password again."""
        parked = self._persist(
            lambda conn: accounts.park(conn, *self._account, self.generation, ending.reason)
        )
        if not parked and (stored := self._read()).generation != self.generation:
            return self._adopt(stored)
        raise ending

    def _end_try(self, stored: Stored, *, sent: bool) -> None:
        """This POST has ended and decided nothing. If it was sent, the next one is in doubt, but need not outwait it."""
        tries = 1 if sent else stored.refresh_tries
        self._persist(
            lambda conn: accounts.end_try(conn, *self._account, self.generation, self._lease_id, tries)
        )

    def _store(self, new: Credentials) -> None:
        """Store until it is stored: the reply exists only here, and no time limit is worth a seller's consent."""
        sealed = self._keys.seal(new, self._context)
        stored = self._persist(
            lambda conn: accounts.store_refresh(conn, *self._account, self.generation, sealed)
        )
        if stored:
            self._know(new)
            self.generation += 1
        else:
            self._adopt(self._read())

    def _persist(self, write: Callable[[Connection], T]) -> T:
        """Write until it is written: what the shop has just told us is known only here."""
        while True:
            try:
                with self._connections() as conn:
                    return write(conn)
            except (psycopg.Error, PoolTimeout) as exc:
                log.warning(
                    "token not stored yet",
                    extra={"user_id": self._account[1], "error": type(exc).__name__},
                )
                threading.Event().wait(STORE_AGAIN_S)
