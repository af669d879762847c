"""The sellers' accounts at a stand-in shop, and the tokens they call it with.

Tokens are signed with the shop's seed, so a shop knows its own without storing any. `RefreshTokens` keeps which
one of each mall is alive and tells the witness who shows a dead one.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from datetime import datetime
from threading import Lock

from crawlfleet.demo.accounts import account_lines
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.traps import Cafe24Traps
from crawlfleet.demo.cafe24.witness import Cafe24Witness
from crawlfleet.demo.exchange import Body

CLIENT_ID = "crawlfleet-demo"


def client_secret(config: Cafe24Config) -> str:
    """The secret of the one app that all malls have installed."""
    return _signature(config, "client")


def refresh_token(config: Cafe24Config, mall_id: str, generation: int = 0) -> str:
    """A validly signed refresh token. A generation above the current one is a person's new consent."""
    return _token(config, "refresh", mall_id, generation)


def access_token(config: Cafe24Config, mall_id: str, expires_ms: int) -> str:
    """An access token that tells its own end, in milliseconds since the epoch."""
    return _token(config, "access", mall_id, expires_ms)


def access_expires_ms(config: Cafe24Config, mall_id: str, token: str) -> int | None:
    """When an access token of that mall ends, in milliseconds since the epoch; None if it is not ours."""
    return _read_token(config, "access", mall_id, token)


def demo_accounts(count: int, config: Cafe24Config, now: datetime) -> Iterator[Body]:
    """Account lines of the users 1..count."""

    def credentials(user_id: int) -> Body:
        mall_id = f"demo{user_id}"
        return {
            "mall_id": mall_id,
            "client_id": CLIENT_ID,
            "client_secret": client_secret(config),
            "refresh_token": refresh_token(config, mall_id),
        }

    return account_lines(count, "cafe24", credentials, now)


def _signature(config: Cafe24Config, text: str) -> str:
    return hmac.new(config.seed.encode(), text.encode(), hashlib.sha256).hexdigest()[:32]


def _token(config: Cafe24Config, kind: str, mall_id: str, number: int) -> str:
    payload = f"{kind}.{mall_id}.{number}"
    return f"{payload}.{_signature(config, payload)}"


def _read_token(config: Cafe24Config, kind: str, mall_id: str, token: str) -> int | None:
    """The number in a token of that kind and mall; None if it is not ours."""
    payload, _, signature = token.rpartition(".")
    if not hmac.compare_digest(_signature(config, payload).encode(), signature.encode()):
        return None
    prefix, _, number = payload.rpartition(".")
    return int(number) if prefix == f"{kind}.{mall_id}" else None


class RefreshTokens:
    """Which refresh token of each mall is alive. Thread-safe.

    A shop that has just started knows no generations and adopts what it is shown first, so accounts
    stored by an earlier run keep working.
    """

    def __init__(self, config: Cafe24Config, witness: Cafe24Witness) -> None:
        self._config = config
        self._witness = witness
        self._lock = Lock()
        self._generations: dict[str, int] = {}
        self._refused: set[str] = set()
        self._reply_lost: set[str] = set()

    def rotate(self, mall: str, token: str, traps: Cafe24Traps) -> str | None:
        """The successor of `token`, which dies; None if `token` is refused, which it is for ever."""
        with self._lock:
            generation = self._accept(mall, token, revoked=traps.revoke_tokens)
            if generation is None:
                self._refused.add(token)
                return None
            if traps.lose_refresh_reply:
                self._reply_lost.add(token)
            self._generations[mall] = generation + 1
            return refresh_token(self._config, mall, generation + 1)

    def _accept(self, mall: str, token: str, *, revoked: bool) -> int | None:
        if token in self._refused:
            self._witness.refreshed_after_refusal()
            return None
        generation = _read_token(self._config, "refresh", mall, token)
        if generation is None or revoked:
            return None
        if generation >= self._generations.get(mall, generation):
            return generation
        # A client whose reply was lost cannot know that its token is old: it may try it once.
        if token not in self._reply_lost:
            self._witness.refreshed_stale()
        return None
