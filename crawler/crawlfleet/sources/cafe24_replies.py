"""What Cafe24's replies mean: verdicts, waiting times, tokens. Pure; `cafe24` does the calling."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from crawlfleet.errors import AuthFailed, Blocked, Bug, CrawlEnded, Retry, Throttled
from crawlfleet.sources import KST, Credentials
from crawlfleet.sources.hints import retry_after_s, seconds
from crawlfleet.sources.redaction import redact

TOKEN_PATH = "/api/v2/oauth/token"  # noqa: S105 - a path, not a password
ASSUMED_LIFE = timedelta(hours=2)
VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
_ERROR_WORDS = frozenset(
    {"invalid_grant", "invalid_client", "invalid_request", "invalid_token", "insufficient_scope"}
)


def classify(
    call: str, status: int, headers: Mapping[str, str], body: bytes, now: datetime
) -> CrawlEnded | None:
    """The verdict of a reply by its status; None for 200, whose body is still to be judged.

    `call` names the request for a person; `body` is the head of the reply, at most 64 kB.
    """
    if status == 200:
        return None
    said = f"{call} was answered {status}{_error_code(body)}"
    hint_s = wait_hint_s(headers, now)
    if status in (401, 403):
        return _refused(status, said, headers, body, hint_s or 0.0)
    if status == 429:
        return Throttled("CallLimit", said, retry_after_s=max(1.0, hint_s or 0.0), account_only=True)
    if status == 503 and hint_s is not None:
        return Throttled("Maintenance", said, retry_after_s=max(1.0, hint_s))
    if status == 408 or status >= 500:
        return Retry("ServerError", said, retry_after_s=hint_s or 0.0)
    if 300 <= status < 400:
        # An API has nothing to redirect to: a gateway or a maintenance page speaks. It passes, or the
        # attempts end; following it would carry the token to another host.
        return Retry("Redirected", said, retry_after_s=hint_s or 0.0)
    return Bug("Rejected" if status >= 400 else "UnexpectedReply", said, snapshot=redact(body))


def classify_refresh(
    status: int, headers: Mapping[str, str], body: bytes, now: datetime
) -> CrawlEnded | None:
    """The verdict of a reply of the token endpoint; None for 200.

    Only a JSON error decides against the token: calling it refused costs the seller a new consent.
    """
    ending = classify(f"POST {TOKEN_PATH}", status, headers, body, now)
    if ending is None or isinstance(ending, Retry | Throttled | Blocked):
        return ending
    said = f"POST {TOKEN_PATH} was answered {status}{_error_code(body)}"
    if status >= 400 and _is_error(_json_object(body)):
        return AuthFailed("RefreshRefused", f"{said}; the seller must consent again")
    return Retry("RefreshUnreadable", f"{said}, which is no readable refusal")


def renewed(credentials: Credentials, body: bytes, now: datetime) -> Credentials:
    """The credentials with the tokens of a 200 reply.

    Raises Retry if it is no JSON object, Bug (without a snapshot) if it has no refresh token. A reply
    without an access token is still taken: its refresh token is the only good one from now on.
    """
    reply = _json_object(body)
    if reply is None:
        raise Retry("RefreshUnreadable", f"POST {TOKEN_PATH} was answered 200, but not with a JSON object")
    refresh_token = reply.get("refresh_token")
    if not isinstance(refresh_token, str) or not refresh_token:
        raise Bug("UnexpectedReply", f"POST {TOKEN_PATH} was answered 200 without a refresh token")
    access_token = reply.get("access_token")
    if not isinstance(access_token, str) or not VISIBLE_ASCII.fullmatch(access_token):
        access_token = None
    expires_at = moment(reply.get("expires_at")) or now.astimezone(KST) + ASSUMED_LIFE
    return credentials | {
        "access_token": access_token,
        "refresh_token": refresh_token,
        "expires_at": expires_at.isoformat(timespec="seconds"),
    }


def wait_hint_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """How long the shop asks to wait: its longest hint, since a call before that lengthens a block."""
    hints = [retry_after_s(headers, now)]
    hints += [seconds(headers.get(f"X-Cafe24-{what}-Remain")) for what in ("Call", "Time")]
    return max((hint for hint in hints if hint is not None), default=None)


def _refused(status: int, said: str, headers: Mapping[str, str], body: bytes, hint_s: float) -> CrawlEnded:
    """The API refuses with a JSON error; anything else is a wall before it, and no word about the seller."""
    empty = not body.strip() and (status == 401 or "json" in headers.get("Content-Type", ""))
    reply = _json_object(body) or {}
    if not (empty or "error" in reply or "error_code" in reply):
        return Blocked("BanPage", f"{said} by a page instead of the API", retry_after_s=hint_s)
    if status == 401:
        return AuthFailed("AccessRefused", f"{said}; the seller must consent again")
    return AuthFailed("ScopeMissing", f"{said}; the app lacks a scope or was removed from the mall")


def _json_object(body: bytes) -> dict[str, Any] | None:
    with suppress(ValueError, RecursionError):
        value = json.loads(body)
        return value if isinstance(value, dict) else None
    return None


def _is_error(reply: dict[str, Any] | None) -> bool:
    """Three shapes are in use: error {code, message}; error, error_description; error_code, error_message."""
    return reply is not None and bool(reply.get("error") or reply.get("error_code"))


def _error_code(body: bytes) -> str:
    """The reply's error code for a person, if it is one that cannot hold anything private."""
    reply = _json_object(body) or {}
    error = reply.get("error", reply.get("error_code"))
    code = error.get("code") if isinstance(error, dict) else error
    if isinstance(code, int) and 0 <= code <= 9999:
        return f" (error code {code})"
    return f" ({code})" if isinstance(code, str) and code in _ERROR_WORDS else ""


def moment(value: object) -> datetime | None:
    """A time of the API in KST; without a zone it is meant in KST, not in UTC."""
    if not isinstance(value, str):
        return None
    try:
        read = datetime.fromisoformat(value.strip())
        return read.replace(tzinfo=KST) if read.tzinfo is None else read.astimezone(KST)
    except (ValueError, OverflowError):
        return None


def token_life_s(credentials: Credentials, now: datetime) -> float:
    """Seconds the access token still lives; 0 if there is none or nobody knows."""
    expires_at = moment(credentials.get("expires_at"))
    if not credentials.get("access_token") or expires_at is None:
        return 0.0
    return (expires_at - now).total_seconds()
