"""The sellers' accounts at the stand-in ably: their passwords, and the tokens of their sessions.

Both are signed with the shop's seed, so a shop knows its own without storing any. Tokens look like the JWTs of the
real platform; what they say is nobody's business but the shop's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from crawlfleet.demo.ably.config import AblyConfig
from crawlfleet.demo.accounts import account_lines
from crawlfleet.demo.exchange import Body

EMAIL = re.compile(r"([a-z][a-z0-9]{0,31})@example\.com")
PASSWORD = re.compile(r"Pw([0-9]{1,9})-[0-9a-f]{12}")
TOKEN_ONLY = 10
"""Every so many-th seller gave a token instead of a password."""


class Session(NamedTuple):
    """One login of a seller. 0 is the token that the seller gave."""

    seller: str
    number: int


def email(seller: str) -> str:
    """What the seller logs in with."""
    return f"{seller}@example.com"


def seller_of(email: str) -> str:
    """The seller with that address, or an empty string."""
    match = EMAIL.fullmatch(email)
    return match[1] if match else ""


def password(config: AblyConfig, seller: str, generation: int = 0) -> str:
    """A password of that seller. A generation above the current one is one that a person has set since."""
    return f"Pw{generation}-{_sign(config, f'password.{seller}.{generation}').hex()[:12]}"


def generation_of(config: AblyConfig, seller: str, text: str) -> int | None:
    """The generation of a password; None if it was never one of that seller."""
    match = PASSWORD.fullmatch(text)
    generation = int(match[1]) if match else -1
    return generation if match and text == password(config, seller, generation) else None


def session_token(config: AblyConfig, session: Session) -> str:
    """The token of a session."""
    head = _encode(b'{"alg":"HS256","typ":"JWT"}')
    payload = _encode(json.dumps(session._asdict(), separators=(",", ":")).encode())
    return f"{head}.{payload}.{_encode(_sign(config, f'{head}.{payload}'))}"


def session_of(config: AblyConfig, token: str) -> Session | None:
    """The session of a token; None if it is not ours."""
    signed, _, signature = token.rpartition(".")
    if not hmac.compare_digest(_encode(_sign(config, signed)).encode(), signature.encode()):
        return None
    try:
        said = json.loads(base64.urlsafe_b64decode(signed.partition(".")[2] + "=="))
        return Session(said["seller"], said["number"])
    except (binascii.Error, ValueError, KeyError, TypeError):
        return None


def demo_accounts(count: int, config: AblyConfig, now: datetime) -> Iterator[Body]:
    """Account lines of the users 1..count. Every tenth has a token only."""

    def credentials(user_id: int) -> Body:
        seller = f"demo{user_id}"
        if user_id % TOKEN_ONLY == 0:
            return {"token": session_token(config, Session(seller, 0))}
        return {"email": email(seller), "password": password(config, seller)}

    return account_lines(count, "ably", credentials, now)


def _sign(config: AblyConfig, text: str) -> bytes:
    return hmac.new(config.seed.encode(), text.encode(), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
