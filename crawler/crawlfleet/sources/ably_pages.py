"""What Ably's pages and replies mean. Pure; `ably` does the browsing.

Nothing about the seller admin is documented publicly. So every page is judged by what it shows, and what shows nothing
known is `UNKNOWN`: never an empty list of orders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import Enum, auto
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from crawlfleet.errors import AuthFailed, Blocked, Bug, CrawlEnded, Retry, Throttled
from crawlfleet.sources.hints import retry_after_s
from crawlfleet.sources.redaction import redact

THROTTLED_S = 60.0
"""How long to wait where the page does not say."""


class Sight(Enum):
    """What a page is."""

    LOGIN = auto()
    REFUSED = auto()
    TWO_FACTOR = auto()
    CAPTCHA = auto()
    BANNED = auto()
    MAINTENANCE = auto()
    FAILED = auto()
    RATE_LIMITED = auto()
    EXPIRED = auto()
    LOADING = auto()
    EMPTY = auto()
    ORDERS = auto()
    HOME = auto()
    UNKNOWN = auto()


@dataclass(frozen=True)
class Selectors:
    """How the pages are marked; options of the source may change each."""

    email: str = "input[name=email]"
    password: str = "input[name=password]"  # noqa: S105  a selector
    submit: str = "button[type=submit]"
    login_error: str = ".login-error"
    table: str = "table.order-items"
    head: str = "thead th[data-key]"
    row: str = "tbody tr[data-sno]"
    skeleton: str = "tr.is-skeleton"
    empty: str = ".empty-state"
    load_error: str = ".load-error"
    pagination: str = ".pagination[data-max-page]"
    current_page: str = ".is-active[data-page]"
    popup: str = ".el-dialog__wrapper"
    popup_close: str = ".el-dialog__headerbtn"
    expired: str = ".session-expired"
    home: str = ".seller-name"

    def as_dict(self) -> dict[str, str]:
        """By name, as the scripts take them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Facts:
    """What LOOK sees of a page. `status` of the document, `api_status` of its last order request; 0: not known.

    `ready`: its scripts have run, so that a form is theirs. `max_page` 0: there is no pagination. `keyed`: every cell of a
    row stands below a head. `submitted`: it is the very page where a password was typed.
    """

    url: str = ""
    status: int = 0
    api_status: int = 0
    ready: bool = True
    text: str = ""
    login: bool = False
    login_error: bool = False
    expired: bool = False
    home: bool = False
    loading: bool = False
    empty: bool = False
    load_error: bool = False
    page: int = 0
    max_page: int = 0
    keyed: bool = True
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    submitted: bool = False

    @classmethod
    def of(cls, seen: Mapping[str, Any]) -> Facts:
        """From what the script returned; the rows keep their order."""
        return cls(**{**seen, "rows": dict(seen["rows"])})


LOOK = files(__package__).joinpath("ably_look.js").read_text()


_SECONDS = re.compile(r"(\d{1,5}) ?초")
_WORDS = (
    (Sight.CAPTCHA, re.compile(r"보안\s?문자|자동\s?입력\s?방지|captcha|로봇이 아닙니다", re.IGNORECASE)),
    (Sight.TWO_FACTOR, re.compile(r"2단계 인증|인증번호|two.factor|verification code", re.IGNORECASE)),
    (Sight.BANNED, re.compile(r"차단|비정상적인 접근|access.{0,40}(blocked|denied)", re.IGNORECASE)),
    (Sight.MAINTENANCE, re.compile(r"점검|maintenance", re.IGNORECASE)),
    (Sight.RATE_LIMITED, re.compile(r"요청이 (너무 )?많|too many requests", re.IGNORECASE)),
)

_SEEN = "const seen = (function () {" + LOOK + "}).apply(null, arguments);"
_DECIDED = (
    "seen.ready && !seen.loading && (seen.expired || seen.status >= 400"
    f" || !document.querySelector(arguments[0].table) && !seen.home && /{'|'.join(words.pattern for _, words in _WORDS)}/i"
    ".test(seen.text)"
)
SETTLED = (
    _SEEN + "const [, wanted, before] = arguments;"
    "const listed = seen.rows.length ? (!seen.page || seen.page === wanted) && seen.rows[0][0] !== before"
    " : seen.empty || seen.load_error;"
    "return " + _DECIDED + " || seen.login || (wanted ? listed : seen.home)) ? seen : null;"
)
"""LOOK, once the page has made up its mind. The second argument is the page of orders to wait for, 0 for another page;
the third the first order of the page before, which may still stand there."""
LEFT_LOGIN = (
    _SEEN + "return " + _DECIDED + " || seen.login_error || seen.load_error || (seen.login ? !seen.submitted"
    " : seen.home || seen.rows.length || seen.empty)) ? seen : null;"
)
"""LOOK, once a login has led somewhere: to an error, inside, or to a login page again."""


def classify(facts: Facts) -> Sight:
    """What the page is, by its markers first, then its status, then its words."""
    if facts.login:
        return Sight.REFUSED if facts.login_error else _worded(facts, Sight.LOGIN)
    if facts.expired or facts.api_status == 401:
        return Sight.EXPIRED
    if facts.status == 429 or facts.api_status == 429:
        return Sight.RATE_LIMITED
    if facts.status == 403 or facts.api_status == 403:
        return _worded(facts, Sight.BANNED)
    if facts.status == 503 or facts.api_status == 503:
        return Sight.MAINTENANCE
    if max(facts.status, facts.api_status) >= 500:
        return Sight.FAILED
    if facts.loading:
        return Sight.LOADING
    if facts.load_error:
        return Sight.FAILED
    if facts.api_status in (0, 200) and facts.rows:
        return Sight.ORDERS
    if facts.api_status in (0, 200) and facts.empty:
        return Sight.EMPTY
    return Sight.HOME if facts.home else _worded(facts, Sight.UNKNOWN)


def _worded(facts: Facts, otherwise: Sight) -> Sight:
    return next((sight for sight, words in _WORDS if words.search(facts.text)), otherwise)


def ending(sight: Sight, facts: Facts) -> CrawlEnded | None:
    """The verdict of a page that ends a crawl; None for those that an adapter can go on from."""
    at = f"{urlsplit(facts.url).path} (status {facts.status})"
    wait_s = _wait_s(facts)
    match sight:
        case Sight.BANNED:
            return Blocked("BanPage", f"a ban page instead of {at}")
        case Sight.MAINTENANCE:
            return Throttled("Maintenance", f"a maintenance page instead of {at}", retry_after_s=THROTTLED_S)
        case Sight.RATE_LIMITED:
            return Throttled("TooManyRequests", f"too many requests, says {at}", retry_after_s=wait_s)
        case Sight.CAPTCHA:
            return Throttled("Captcha", f"a captcha instead of {at}", retry_after_s=THROTTLED_S)
        case Sight.TWO_FACTOR:
            return AuthFailed("TwoFactor", f"{at} asks for a second factor; the seller must log in by hand")
        case Sight.FAILED:
            return Retry("ServerError", f"the shop says that it could not show {at}")
        case Sight.LOADING:
            return Retry("TableTimeout", f"the table on {at} was not drawn in time")
    return None


def _wait_s(facts: Facts) -> float:
    hint = _SECONDS.search(facts.text)
    return float(hint[1]) if hint else THROTTLED_S


def login_status(answers: Sequence[int | CrawlEnded]) -> int:
    """How the shop answered a login, if all that the page posted was answered alike: nobody knows which post was the login.
    0 otherwise. Raises the verdict by which no post left."""
    first = answers[0] if answers else 0
    if isinstance(first, CrawlEnded) and all(isinstance(a, CrawlEnded) and a.never_sent for a in answers):
        raise first
    return first if isinstance(first, int) and set(answers) == {first} else 0


def login_ending(sight: Sight, facts: Facts, status: int = 0) -> CrawlEnded | None:
    """The verdict of a login by the page it led to; None if it succeeded. Whatever needs a person ends `auth`.

    `status` is how the shop answered it. One that is busy, closed, or has banned us has judged no password: that login
    does not count.
    """
    said = f"the login was answered {status}"
    match sight:
        case Sight.REFUSED:
            return AuthFailed("LoginRefused", "the shop refused email or password")
        case Sight.CAPTCHA:
            return AuthFailed("Captcha", "the login asks for a captcha; the seller must log in by hand")
        case Sight.TWO_FACTOR:
            return ending(sight, facts)
    match status:
        case 403:
            return Blocked("BanPage", said, never_sent=True)
        case 429:
            return Throttled("TooManyRequests", said, retry_after_s=_wait_s(facts), never_sent=True)
        case 503:
            return Throttled("Maintenance", said, retry_after_s=_wait_s(facts), never_sent=True)
    if sight in (Sight.HOME, Sight.ORDERS, Sight.EMPTY):
        return None
    return ending(sight, facts) or Retry("LoginUnclear", "the login led to a page that nobody knows")


def classify_reply(status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> CrawlEnded | Sight:
    """A reply of the order API: ORDERS (read it), EXPIRED, or the verdict that ends the crawl."""
    hint_s = retry_after_s(headers, now)
    said = f"the order API answered {status}"
    if status == 401:
        return Sight.EXPIRED
    if status == 429:
        return Throttled("TooManyRequests", said, retry_after_s=max(1.0, hint_s or THROTTLED_S))
    if status == 403:
        return Blocked("BanPage", said, retry_after_s=hint_s or 0.0)
    if status == 503:
        return Throttled("Maintenance", said, retry_after_s=max(1.0, hint_s or THROTTLED_S))
    if status == 408 or status >= 500 or 300 <= status < 400:
        return Retry("ServerError", said, retry_after_s=hint_s or 0.0)
    if status != 200:
        return Bug("Rejected", said, snapshot=redact(body))
    if not _is_json(body):
        text = body[:4000].decode("utf-8", "replace")
        facts = Facts(
            url="/", status=status, text=text, login='name="password"' in text or "name=password" in text
        )
        sight = classify(facts)
        return Sight.EXPIRED if sight is Sight.LOGIN else ending(sight, facts) or _unexpected(body)
    return Sight.ORDERS


def _is_json(body: bytes) -> bool:
    return body.lstrip()[:1] in (b"{", b"[")


def _unexpected(body: bytes) -> Bug:
    return Bug("UnexpectedReply", "status 200, but no list of orders", snapshot=redact(body))


def orders_of(body: bytes) -> tuple[list[dict[str, Any]], int]:
    """The order items and the number of pages of a 200 reply. Raises Bug: an error in it is never an empty list."""
    reply: Any = None
    with suppress(ValueError, RecursionError):
        reply = json.loads(body)
    if not isinstance(reply, dict) or "error" in reply:
        raise _unexpected(body)
    items, pages = reply.get("order_items"), reply.get("max_page_number")
    if not items and reply.keys() & {"code", "message", "detail"}:
        raise _unexpected(body)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _unexpected(body)
    if isinstance(pages, bool) or not isinstance(pages, int):
        raise _unexpected(body)
    return items, pages
