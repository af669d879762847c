"""A stand-in for the Cafe24 Admin API: its contract, without the HTTP around it.

One `Cafe24Shop` is every mall: it turns a `Request` into a `Reply` as the public documentation of the
API has it (rotating refresh tokens, paging rules, two rate systems, error bodies), or as a trap spoils
it. What the malls hold follows from a seed, so a test can ask for the truth (`expected_items`) without
HTTP. It opens no socket: delays, drips and cut connections are only described in the reply, and
`server.py` carries them out. What it tells a client about waiting and bans it also tells the `Witness`.

Where the documentation is silent (the body of a 429, the refusal of a refresh token, what happens
outside the rules of paging) the shop picks something plausible; no client may depend on the choice.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import hashlib
import hmac
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date, datetime, timedelta, timezone
from enum import StrEnum
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from crawlfleet.demo.violations import Agreement, Witness

KST = timezone(timedelta(hours=9))
MALL_ID = re.compile(r"[a-z][a-z0-9]{0,31}")
CLIENT_ID = "crawlfleet-demo"
SCOPES = ("mall.read_order", "mall.read_product")
REFRESH_TOKEN_LIFE = timedelta(days=14)
COMMA_VALUES_MAX = 100
USAGE_DRAIN_PERCENT_PER_S = 0.63
"""From the documented sample: a usage of 120.04 % is told to wait 32 s."""
PROCESSING_S = 0.02
MOVING_ORDERS_MAX = 20
MOVING_ORDER_NO = 9_000_000

Body = dict[str, Any]


@dataclass(frozen=True)
class Traps:
    """What goes wrong, all off. Times in seconds.

    ban_s: the next request of each egress gets it banned for so long (403 HTML), once an egress.
    throttle_once: one 429 with Retry-After a mall. drip: a byte every 0.2 s, without end.
    error_500: the share (0..1) of API requests that fail. huge_page_bytes: padding in each API reply.
    lose_refresh_reply: the refresh counts, but the connection is cut instead of a reply.
    poison_record: the newest order holds a NUL. moving_orders: each page of orders is followed by a new
    order at the head of the list. truncated: fewer bytes than Content-Length says.
    The others are what their names say; slow_s, maintenance and ban_s also hold for token requests.
    """

    always_429: bool = False
    throttle_once: bool = False
    ban_s: float = 0.0
    slow_s: float = 0.0
    drip: bool = False
    error_500: float = 0.0
    revoke_tokens: bool = False
    scope_removed: bool = False
    maintenance: bool = False
    html_200: bool = False
    empty_body: bool = False
    error_in_200: bool = False
    poison_record: bool = False
    huge_page_bytes: int = 0
    lose_refresh_reply: bool = False
    moving_orders: bool = False
    unknown_reply: bool = False
    truncated: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError, naming the trap: they also come in from the control endpoint."""
        for trap in fields(self):
            value, wanted = getattr(self, trap.name), type(trap.default)
            if isinstance(value, bool) != (wanted is bool) or not isinstance(value, bool | int | float):
                raise ValueError(f"trap {trap.name} takes a {wanted.__name__}, not {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"trap {trap.name} must not be {value!r}")


@dataclass(frozen=True)
class ShopConfig:
    """One stand-in platform. Equal configs hold equal malls and accept each other's tokens.

    The orders lie in the `order_days` before the shop's first midnight (KST), so a crawl of the last
    seven days holds them all, also when a midnight passes meanwhile. `usage_calls` and
    `usage_processing_s` are what fills the usage limit of a mall to 100 %.
    """

    seed: str = "demo"
    orders_per_mall: int = 12
    products_per_mall: int = 8
    order_days: int = 6
    access_token_s: float = 7200.0
    bucket_size: int = 40
    bucket_drain_per_s: float = 2.0
    usage_calls: int = 1000
    usage_processing_s: float = 300.0
    agreement: Agreement = field(default_factory=Agreement)
    traps: Traps = field(default_factory=Traps)


@dataclass(frozen=True)
class Request:
    """One HTTP request. `path` is percent-decoded, header names are lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    egress: str = "direct"

    @cached_property
    def _parts(self) -> list[str]:
        return self.path.split("/", 5)

    @property
    def mall(self) -> str:
        """The mall of `/{mall}/api/...`, or an empty string."""
        return self._parts[1] if len(self._parts) == 6 and MALL_ID.fullmatch(self._parts[1]) else ""

    @property
    def resource(self) -> str:
        """What follows `/{mall}/api/v2/admin/`, or an empty string for anything else."""
        return self._parts[5] if len(self._parts) == 6 and self._parts[2:5] == ["api", "v2", "admin"] else ""

    @property
    def is_token_request(self) -> bool:
        """Whether this is the token endpoint."""
        return self._parts[2:] == ["api", "v2", "oauth", "token"]


class Delivery(StrEnum):
    """How the server has to send a reply."""

    WHOLE = "whole"
    DRIP = "drip"
    TRUNCATED = "truncated"
    LOST = "lost"


@dataclass(frozen=True)
class Reply:
    """One HTTP reply and how to send it, `delay_s` after the request came in."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json; charset=utf-8"
    delivery: Delivery = Delivery.WHOLE
    delay_s: float = 0.0

    @classmethod
    def of_json(cls, status: int, body: Body) -> Reply:
        """A reply with that JSON body."""
        return cls(status, json.dumps(body).encode())

    @classmethod
    def of_html(cls, status: int, title: str) -> Reply:
        """A page for people where a client expects JSON."""
        page = f"<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
        return cls(status, page.encode(), content_type="text/html; charset=utf-8")

    @classmethod
    def of_error(cls, status: int, message: str) -> Reply:
        """An error body of the Admin API."""
        return cls.of_json(status, {"error": {"code": status, "message": message, "more_info": {}}})

    @classmethod
    def of_oauth_error(cls, status: int, error: str, description: str) -> Reply:
        """An error body of the token endpoint."""
        return cls.of_json(status, {"error": error, "error_description": description})


class Refused(Exception):
    """The parameters break a rule of the API; the reply is an error with that status."""

    def __init__(self, message: str, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


# --- Truth: what the malls hold -----------------------------------------------------------------------


class Order(NamedTuple):
    """An order of a mall: `no` is unique and rises with time."""

    no: int
    placed_at: datetime

    @property
    def order_id(self) -> str:
        """As Cafe24 writes it: the day and a number."""
        return f"{self.placed_at.date().isoformat().replace('-', '')}-{self.no:07d}"


def _dice(config: ShopConfig, *what: object) -> bytes:
    text = "/".join(map(str, (config.seed, *what)))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=KST)


@lru_cache(maxsize=512)
def orders_of(config: ShopConfig, mall_id: str, today: date) -> tuple[Order, ...]:
    """The orders of a mall, newest first; the newest lies exactly on the midnight that began `today`."""
    count, span_s = config.orders_per_mall, config.order_days * 86_400
    orders = []
    for i in range(count):
        jitter = _dice(config, mall_id, "placed", i)[0] / 256 if i else 0.0
        age = timedelta(seconds=int((i + jitter) / count * span_s))
        orders.append(Order(count - i, _midnight(today) - age))
    return tuple(orders)


def order_body(config: ShopConfig, mall_id: str, order: Order) -> Body:
    """One order with its items, as `embed=items` gives it. Money is text, times carry +09:00."""
    dice = _dice(config, mall_id, "order", order.no)
    order_id = order.order_id
    items = [_order_item(config, order_id, no, dice) for no in range(1, 2 + dice[0] % 3)]
    paid_at = order.placed_at + timedelta(minutes=1 + dice[1] % 5)
    buyer_no = int.from_bytes(dice[2:4], "big")
    return {
        "shop_no": 1,
        "currency": "KRW",
        "order_id": order_id,
        "member_id": f"member{buyer_no}",
        "billing_name": f"결제자 {buyer_no}",
        "buyer_name": f"주문자 {buyer_no}",
        "buyer_email": f"buyer{buyer_no}@example.com",
        "payment_method": ["card"],
        "paid": "T",
        "canceled": "F",
        "order_date": order.placed_at.isoformat(),
        "payment_date": paid_at.isoformat(),
        "payment_amount": f"{sum(_price(item['product_no']) * item['quantity'] for item in items)}.00",
        "cancel_date": None,
        "shipping_status": "F",
        "items": items,
    }


def _order_item(config: ShopConfig, order_id: str, no: int, dice: bytes) -> Body:
    product_no = 1 + dice[3 + no] % max(config.products_per_mall, 1)
    return {
        "item_no": no,
        "order_item_code": f"{order_id}-{no:02d}",
        "product_no": product_no,
        "product_name": f"상품 {product_no}",
        "product_price": f"{_price(product_no)}.00",
        "quantity": 1 + dice[7 + no] % 3,
        "order_status": "N10",
    }


def product_body(config: ShopConfig, mall_id: str, product_no: int, today: date) -> Body:
    """One product. A higher number was created later; all were changed within the last five days."""
    age_h = (config.products_per_mall - product_no + 1) * 24 + 24 * config.order_days
    changed_h = _dice(config, mall_id, "changed", product_no)[0] % 120
    return {
        "shop_no": 1,
        "product_no": product_no,
        "product_code": f"P{product_no:07d}",
        "product_name": f"상품 {product_no}",
        "price": f"{_price(product_no)}.00",
        "display": "T",
        "selling": "T",
        "sold_out": "F",
        "created_date": (_midnight(today) - timedelta(hours=age_h)).isoformat(),
        "updated_date": (_midnight(today) - timedelta(hours=changed_h)).isoformat(),
    }


def _price(product_no: int) -> int:
    return 1000 + product_no * 700 % 49_000


def expected_items(config: ShopConfig, mall_id: str, days: int, today: date) -> dict[tuple[str, str], Body]:
    """The truth: what a crawl of the last `days` days has to bring, by (kind, external_id).

    `today` is the day (KST) on which the shop started. Orders count from `today - days` on and hold
    their items; products are always all. Orders that a trap adds are not in it.
    """
    since = _midnight(today - timedelta(days=days))
    expected = {
        ("order", order.order_id): order_body(config, mall_id, order)
        for order in orders_of(config, mall_id, today)
        if order.placed_at >= since
    }
    for no in range(1, config.products_per_mall + 1):
        expected["product", str(no)] = product_body(config, mall_id, no, today)
    return expected


# --- Accounts and tokens ------------------------------------------------------------------------------


def client_secret(config: ShopConfig) -> str:
    """The secret of the one app that all malls have installed."""
    return _signature(config, "client")


def refresh_token(config: ShopConfig, mall_id: str, generation: int = 0) -> str:
    """A validly signed refresh token. A generation above the current one is a person's new consent."""
    return _token(config, "refresh", mall_id, generation)


def demo_accounts(count: int, config: ShopConfig, now: datetime) -> Iterator[Body]:
    """Account lines of the users 1..count: 3 of 10 paid, 5 free and active in the last week, 2 inactive."""
    for user_id in range(1, count + 1):
        place = user_id % 10
        away = timedelta(days=30 + user_id % 60) if place >= 8 else timedelta(hours=user_id % 144)
        mall_id = f"demo{user_id}"
        yield {
            "user_id": user_id,
            "source": "cafe24",
            "subscription": "paid" if place < 3 else "free",
            "last_login_at": (now - away).astimezone(KST).isoformat(timespec="seconds"),
            "credentials": {
                "mall_id": mall_id,
                "client_id": CLIENT_ID,
                "client_secret": client_secret(config),
                "refresh_token": refresh_token(config, mall_id),
            },
        }


def _signature(config: ShopConfig, text: str) -> str:
    return hmac.new(config.seed.encode(), text.encode(), hashlib.sha256).hexdigest()[:32]


def _token(config: ShopConfig, kind: str, mall_id: str, number: int) -> str:
    payload = f"{kind}.{mall_id}.{number}"
    return f"{payload}.{_signature(config, payload)}"


def _read_token(config: ShopConfig, kind: str, mall_id: str, token: str) -> int | None:
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

    def __init__(self, config: ShopConfig, witness: Witness) -> None:
        self._config = config
        self._witness = witness
        self._lock = Lock()
        self._generations: dict[str, int] = {}
        self._refused: set[str] = set()
        self._reply_lost: set[str] = set()

    def rotate(self, mall: str, token: str, traps: Traps) -> str | None:
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


# --- Rate systems -------------------------------------------------------------------------------------


class Leak:
    """A level that drains at a fixed rate: a bucket in requests, or a usage in percent."""

    def __init__(self, drain_per_s: float) -> None:
        self._drain_per_s = drain_per_s
        self._level = 0.0
        self._at_s = 0.0

    def level(self, now_s: float) -> float:
        """The level at that time, which must not lie before an earlier call's."""
        self._level = max(0.0, self._level - (now_s - self._at_s) * self._drain_per_s)
        self._at_s = now_s
        return self._level

    def add(self, amount: float, now_s: float) -> float:
        """The level after `amount` was added."""
        self._level = self.level(now_s) + amount
        return self._level


@dataclass(frozen=True)
class Charge:
    """What one API request cost: the headers to send, whether to serve it, how long to stay away."""

    headers: Mapping[str, str]
    refused: bool
    wait_s: int = 0


class RateLimits:
    """A bucket per mall and API, and the usage per mall over all APIs. Thread-safe."""

    def __init__(self, config: ShopConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._lock = Lock()
        self._buckets: dict[tuple[str, str], Leak] = {}
        self._usages: dict[str, tuple[Leak, Leak]] = {}

    def charge(self, mall: str, api: str, processing_s: float) -> Charge:
        """Count one request. A refused call fills no bucket, but a blocked one lengthens its block."""
        with self._lock:
            now_s = self._clock()
            usage, blocked = self._use(mall, processing_s, now_s)
            bucket = self._buckets.setdefault((mall, api), Leak(self._config.bucket_drain_per_s))
            size = self._config.bucket_size
            full = bucket.level(now_s) + 1 > size
            level = bucket.level(now_s) if full or blocked else bucket.add(1, now_s)
            headers = {"X-Api-Call-Limit": f"{math.ceil(level)}/{size}"}
            for name, percent in usage.items():
                headers |= _usage_headers(name, percent)
            wait_s = max(_seconds_to_resume(percent) for percent in usage.values())
            return Charge(headers, refused=full or blocked, wait_s=wait_s)

    def _use(self, mall: str, processing_s: float, now_s: float) -> tuple[dict[str, float], bool]:
        if mall not in self._usages:
            self._usages[mall] = (Leak(USAGE_DRAIN_PERCENT_PER_S), Leak(USAGE_DRAIN_PERCENT_PER_S))
        calls, seconds = self._usages[mall]
        blocked = max(calls.level(now_s), seconds.level(now_s)) >= 100
        call_percent = calls.add(100 / self._config.usage_calls, now_s)
        cost = 0.0 if blocked else 100 * processing_s / self._config.usage_processing_s
        return {"Call": call_percent, "Time": seconds.add(cost, now_s)}, blocked


def _seconds_to_resume(percent: float) -> int:
    return math.floor((percent - 100) / USAGE_DRAIN_PERCENT_PER_S) + 1 if percent >= 100 else 0


def _usage_headers(name: str, percent: float) -> dict[str, str]:
    headers = {f"X-Cafe24-{name}-Usage": f"{percent:.2f}"}
    if percent >= 100:
        headers[f"X-Cafe24-{name}-Remain"] = str(_seconds_to_resume(percent))
    return headers


# --- Traps at run time --------------------------------------------------------------------------------


class Switchboard:
    """Which traps are set, for all malls and for single ones. Thread-safe.

    A trap that springs once is armed again whenever it is switched.
    """

    def __init__(self, traps: Traps) -> None:
        self._lock = Lock()
        self._all = traps
        self._malls: dict[str, dict[str, Any]] = {}
        self._sprung: set[tuple[str, str]] = set()

    def traps(self, mall: str) -> Traps:
        """The traps of that mall: its own switches win over those of all."""
        with self._lock:
            own = self._malls.get(mall)
            return replace(self._all, **own) if own else self._all

    def spring_once(self, trap: str, victim: str) -> bool:
        """True the first time that trap meets that victim."""
        with self._lock:
            first = (trap, victim) not in self._sprung
            self._sprung.add((trap, victim))
            return first

    def switch(self, change: Mapping[str, Any]) -> None:
        """Carry out `{"all": {trap: value}, "malls": {mall_id: {trap: value}}}`; null switches all of it off.

        Raises ValueError, telling what is wrong; then nothing was switched.
        """
        everyone, malls = _checked_change(change)
        with self._lock:
            self._all = Traps() if everyone is None else replace(self._all, **everyone)
            for mall, own in malls.items():
                self._malls[mall] = {} if own is None else {**self._malls.get(mall, {}), **own}
            switched = {name for part in (everyone, *malls.values()) for name in part or ()}
            self._sprung = {(trap, victim) for trap, victim in self._sprung if trap not in switched}

    def as_dict(self) -> Body:
        """The switches, as `switch` takes them."""
        with self._lock:
            return {
                "all": asdict(self._all),
                "malls": {mall: own for mall, own in self._malls.items() if own},
            }


def _checked_change(change: Any) -> tuple[Mapping[str, Any] | None, Mapping[str, Mapping[str, Any] | None]]:
    if not isinstance(change, Mapping) or change.keys() - {"all", "malls"}:
        raise ValueError('a change is {"all": {trap: value}, "malls": {mall_id: {trap: value}}}')
    everyone, malls = change.get("all", {}), change.get("malls", {})
    if not isinstance(malls, Mapping):
        raise ValueError('"malls" maps a mall_id to its traps')
    for part in (everyone, *malls.values()):
        _check_traps(part)
    return everyone, malls


def _check_traps(part: Any) -> None:
    if part is None:
        return
    if not isinstance(part, Mapping):
        raise ValueError(f"traps are an object or null, not {part!r}")
    known = {trap.name for trap in fields(Traps)}
    if unknown := part.keys() - known:
        raise ValueError(f"unknown traps {sorted(unknown)}; known: {', '.join(sorted(known))}")
    Traps(**part)


# --- Parameters of a list -----------------------------------------------------------------------------

ORDER_DATES = {"order_date": "order_date", "pay_date": "payment_date", "cancel_date": "cancel_date"}
"""The date types that have a field here; of the others no order has a date yet."""
DATELESS = {
    f"{event}_date"
    for event in (
        *("shipbegin", "shipend", "place", "purchaseconfirmation", "cancel_request", "cancel_accept"),
        *("cancel_complete", "exchange_request", "exchange_accept", "exchange_complete"),
        *("return_request", "return_accept", "return_complete"),
    )
}
ORDER_EMBEDS = {"items", "receivers", "buyer", "return", "cancellation", "exchange"}
PRODUCT_EMBEDS = {
    "variants",
    "options",
    "benefits",
    "discountprice",
    "decorationimages",
    "additionalimages",
    "hits",
}
MOMENT = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\d([+-]\d\d:\d\d)?)?")
LIST_WORDS = {"shop_no", "fields", "embed", "limit", "offset"}
ORDER_WORDS = {"shop_no", "start_date", "end_date", "date_type"}
PRODUCT_DATES = ("created", "updated")
PRODUCT_WORDS = {"since_product_no", "product_no", "sort", "order"} | {
    f"{kind}_{end}_date" for kind in PRODUCT_DATES for end in ("start", "end")
}


class Parameters:
    """The query of one request, read by the rules of the API. Every method raises Refused."""

    def __init__(self, query: str, known: set[str]) -> None:
        self._values = dict(parse_qsl(query, keep_blank_values=True))
        # The real API ignores what it does not know; here that would falsify a test's truth.
        if unknown := self._values.keys() - known:
            raise Refused(f"Parameters unknown to the stand-in shop: {', '.join(sorted(unknown))}")

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str = "") -> str:
        """The value as it is."""
        return self._values.get(name, default)

    def number(self, name: str, default: int, least: int, most: float = math.inf) -> int:
        """A whole number within its limits."""
        text = self._values.get(name, str(default))
        if not re.fullmatch(r"[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise Refused(f"[{name}] must be a number from {least} to {most}.")
        return int(text)

    def values(self, name: str) -> list[str]:
        """The values of a comma list."""
        values = [value for value in self.text(name).split(",") if value]
        if len(values) > COMMA_VALUES_MAX:
            raise Refused(f"[{name}] takes at most {COMMA_VALUES_MAX} values.")
        return values

    def choice(self, name: str, default: str, choices: set[str]) -> str:
        """One of a fixed set of words."""
        if (value := self.text(name, default)) not in choices:
            raise Refused(f"[{name}] is not valid.")
        return value

    def embeds(self, choices: set[str]) -> list[str]:
        """The embedded resources asked for."""
        embeds = self.values("embed")
        if set(embeds) - choices:
            raise Refused("[embed] is not valid.")
        return embeds

    def window(self, start: str, end: str) -> tuple[datetime, datetime] | None:
        """The half-open time span of two parameters that come together or not at all.

        A date is a whole day in Korea; a time means itself, to the second.
        """
        if start not in self and end not in self:
            return None
        begin, last = _moment(self.text(start), start), _moment(self.text(end), end)
        until = last + (
            timedelta(days=1) if len(self.text(end)) == len("2026-11-20") else timedelta(seconds=1)
        )
        if until <= begin:
            raise Refused(f"[{end}] must not be before [{start}].")
        return begin, until

    def order_window(self) -> tuple[datetime, datetime]:
        """The span of an order search: required, and three months at most."""
        window = self.window("start_date", "end_date")
        if window is None:
            raise Refused("[start_date] and [end_date] are required.")
        if window[1] > _months_later(window[0], 3) + timedelta(days=1):
            raise Refused("The search period must not exceed 3 months.")
        return window


def _moment(text: str, name: str) -> datetime:
    if not MOMENT.fullmatch(text):
        raise Refused(f"[{name}] must be a date (YYYY-MM-DD).")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(f"[{name}] must be a date (YYYY-MM-DD).") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=KST)


def _months_later(moment: datetime, months: int) -> datetime:
    years, month = divmod(moment.month - 1 + months, 12)
    year, month = moment.year + years, month + 1
    return moment.replace(year=year, month=month, day=min(moment.day, calendar.monthrange(year, month)[1]))


def _is_within(body: Body, name: str | None, window: tuple[datetime, datetime]) -> bool:
    text = body[name] if name else None
    return text is not None and window[0] <= datetime.fromisoformat(text) < window[1]


# --- The shop -----------------------------------------------------------------------------------------


def korean_now() -> datetime:
    """The time in Korea."""
    return datetime.now(KST)


class Cafe24Shop:
    """Every mall of the stand-in platform. Thread-safe; `answer` is all a server needs."""

    def __init__(
        self,
        config: ShopConfig,
        witness: Witness,
        *,
        now: Callable[[], datetime] = korean_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.today = now().astimezone(KST).date()
        """The day the orders are counted back from: it stays, whatever midnights pass."""
        self.switches = Switchboard(config.traps)
        self._witness = witness
        self._now = now
        self._clock = clock
        self._tokens = RefreshTokens(config, witness)
        self._limits = RateLimits(config, clock)
        self._lock = Lock()
        self._banned_until_s: dict[str, float] = {}
        self._moved: dict[str, list[Order]] = {}
        # Repeatable faults, not secrets.
        self._random = random.Random(config.seed)  # noqa: S311

    def expected_items(self, mall_id: str, days: int) -> dict[tuple[str, str], Body]:
        """The truth of this shop: see the function of that name."""
        return expected_items(self.config, mall_id, days, self.today)

    def answer(self, request: Request) -> Reply:
        """The reply to one request; a trap may have spoiled it."""
        traps = self.switches.traps(request.mall)
        reply = self._banned(request.egress, traps) or self._served(request, traps)
        return replace(reply, delay_s=traps.slow_s) if traps.slow_s else reply

    def _banned(self, egress: str, traps: Traps) -> Reply | None:
        now_s = self._clock()
        if traps.ban_s and self.switches.spring_once("ban_s", egress):
            self._banned_until_s[egress] = now_s + traps.ban_s
            self._witness.told_ban(egress, traps.ban_s)
        if now_s < self._banned_until_s.get(egress, 0.0):
            return Reply.of_html(403, "Access from your network has been blocked")
        return None

    def _served(self, request: Request, traps: Traps) -> Reply:
        if traps.maintenance:
            return Reply.of_html(503, "서비스 점검 중입니다")
        if not request.mall:
            return Reply.of_error(404, "No such mall.")
        if request.is_token_request:
            return self._token_reply(request, traps)
        try:
            return self._api_reply(request, traps)
        except Refused as refusal:
            return Reply.of_error(refusal.status, str(refusal))

    # Tokens

    def _token_reply(self, request: Request, traps: Traps) -> Reply:
        form = dict(parse_qsl(request.body.decode("utf-8", "replace")))
        if request.method != "POST":
            return Reply.of_oauth_error(405, "invalid_request", "Use POST.")
        if not self._knows_client(request.headers.get("authorization", "")):
            return Reply.of_oauth_error(401, "invalid_client", "Unknown client or wrong secret.")
        if form.get("grant_type") != "refresh_token":
            return Reply.of_oauth_error(400, "unsupported_grant_type", "Only refresh_token is served.")
        successor = self._tokens.rotate(request.mall, form.get("refresh_token", ""), traps)
        if successor is None:
            return Reply.of_oauth_error(400, "invalid_grant", "Invalid refresh_token")
        delivery = Delivery.LOST if traps.lose_refresh_reply else Delivery.WHOLE
        return replace(self._token_pair(request.mall, successor), delivery=delivery)

    def _knows_client(self, authorization: str) -> bool:
        scheme, _, encoded = authorization.partition(" ")
        try:
            given = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return False
        wanted = f"{CLIENT_ID}:{client_secret(self.config)}".encode()
        return scheme.lower() == "basic" and hmac.compare_digest(given, wanted)

    def _token_pair(self, mall: str, successor: str) -> Reply:
        now = self._now().astimezone(KST)
        expires_at = now + timedelta(seconds=self.config.access_token_s)
        body = {
            "access_token": _token(self.config, "access", mall, _milliseconds(expires_at)),
            "expires_at": _zoneless(expires_at),
            "refresh_token": successor,
            "refresh_token_expires_at": _zoneless(now + REFRESH_TOKEN_LIFE),
            "client_id": CLIENT_ID,
            "mall_id": mall,
            "user_id": mall,
            "scopes": list(SCOPES),
            "issued_at": _zoneless(now),
            "shop_no": "1",
            "token_type": "Bearer",
        }
        return Reply.of_json(200, body)

    def _check_access(self, request: Request, traps: Traps) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        expires_ms = _read_token(self.config, "access", request.mall, token)
        if scheme != "Bearer" or expires_ms is None or traps.revoke_tokens:
            raise Refused("Invalid access_token", 401)
        if _milliseconds(self._now()) >= expires_ms:
            raise Refused("access_token time expired", 401)

    # The API

    def _api_reply(self, request: Request, traps: Traps) -> Reply:
        if request.resource not in {"orders", "orders/count", "products"}:
            raise Refused("Not Found", 404)
        if request.method != "GET":
            raise Refused("Method Not Allowed", 405)
        self._check_access(request, traps)
        charge = self._limits.charge(request.mall, request.resource, PROCESSING_S + traps.slow_s)
        if charge.wait_s:
            self._witness.told_to_wait(request.mall, charge.wait_s)
        if charge.refused:
            reply = Reply.of_error(429, "Too Many Requests")
        else:
            reply = self._refusing_trap(request.mall, traps) or self._content(request, traps)
        return replace(reply, headers={**charge.headers, **reply.headers})

    def _refusing_trap(self, mall: str, traps: Traps) -> Reply | None:
        if traps.always_429:
            size = self.config.bucket_size
            full = {"X-Api-Call-Limit": f"{size}/{size}"}
            return replace(Reply.of_error(429, "Too Many Requests"), headers=full)
        if traps.throttle_once and self.switches.spring_once("throttle_once", mall):
            self._witness.told_to_wait(mall, 1)
            return replace(Reply.of_error(429, "Too Many Requests"), headers={"Retry-After": "1"})
        if traps.scope_removed:
            return Reply.of_error(403, "insufficient_scope")
        if traps.error_500 and self._roll() < traps.error_500:
            return Reply.of_error(500, "Internal Server Error")
        return None

    def _roll(self) -> float:
        with self._lock:
            return self._random.random()

    def _content(self, request: Request, traps: Traps) -> Reply:
        if traps.html_200:
            return Reply.of_html(200, "관리자 로그인")
        if traps.empty_body:
            return Reply(200)
        if traps.error_in_200:
            return replace(Reply.of_error(500, "Internal Server Error"), status=200)
        if traps.unknown_reply:
            return Reply.of_json(200, {"result": {"rows": []}, "meta": {"version": 3}})
        return _spoil(self._listing(request, traps), traps)

    def _listing(self, request: Request, traps: Traps) -> Reply:
        _check_version(request.headers.get("x-cafe24-api-version", ""))
        try:
            body = {
                "orders": self._orders,
                "orders/count": self._orders_count,
                "products": self._products,
            }[request.resource](request, traps)
        except Refused as refusal:
            return Reply.of_error(refusal.status, str(refusal))
        return Reply.of_json(200, body)

    def _orders(self, request: Request, traps: Traps) -> Body:
        parameters = Parameters(request.query, ORDER_WORDS | LIST_WORDS)
        limit = parameters.number("limit", 10, 1, 1000)
        offset = parameters.number("offset", 0, 0, 15_000)
        embeds = parameters.embeds(ORDER_EMBEDS)
        found = self._found_orders(request.mall, parameters)
        page = [self._order(request.mall, o, embeds, traps) for o in found[offset : offset + limit]]
        if traps.moving_orders:
            self._move(request.mall)
        body: Body = {"orders": _with_fields(page, parameters)}
        return body | _next_link(request, offset, limit, len(found))

    def _orders_count(self, request: Request, traps: Traps) -> Body:
        parameters = Parameters(request.query, ORDER_WORDS)
        return {"count": len(self._found_orders(request.mall, parameters))}

    def _found_orders(self, mall: str, parameters: Parameters) -> list[Order]:
        window = parameters.order_window()
        date_type = parameters.choice("date_type", "order_date", ORDER_DATES.keys() | DATELESS)
        with self._lock:
            orders = [*reversed(self._moved.get(mall, ())), *orders_of(self.config, mall, self.today)]
        if date_type == "order_date":
            return [order for order in orders if window[0] <= order.placed_at < window[1]]
        name = ORDER_DATES.get(date_type)
        return [o for o in orders if _is_within(order_body(self.config, mall, o), name, window)]

    def _order(self, mall: str, order: Order, embeds: Sequence[str], traps: Traps) -> Body:
        body = order_body(self.config, mall, order)
        items = body.pop("items")
        for embed in embeds:
            body[embed] = items if embed == "items" else []
        if traps.poison_record and order.no == self.config.orders_per_mall:
            body["buyer_name"] += "\0"
        return body

    def _move(self, mall: str) -> None:
        with self._lock:
            moved = self._moved.setdefault(mall, [])
            if len(moved) < MOVING_ORDERS_MAX:
                placed_at = self._now().astimezone(KST).replace(microsecond=0)
                moved.append(Order(MOVING_ORDER_NO + len(moved), placed_at))

    def _products(self, request: Request, traps: Traps) -> Body:
        parameters = Parameters(request.query, PRODUCT_WORDS | LIST_WORDS)
        limit = parameters.number("limit", 10, 1, 100)
        offset = parameters.number("offset", 0, 0, 5000)
        embeds = parameters.embeds(PRODUCT_EMBEDS)
        found = self._found_products(request.mall, parameters)
        page = [product | {embed: [] for embed in embeds} for product in found[offset : offset + limit]]
        body: Body = {"products": _with_fields(page, parameters)}
        return (
            body
            if "since_product_no" in parameters
            else body | _next_link(request, offset, limit, len(found))
        )

    def _found_products(self, mall: str, parameters: Parameters) -> list[Body]:
        since = parameters.number("since_product_no", 0, 0)
        if "since_product_no" in parameters:
            _check_cursor_alone(parameters)
        numbers = range(since + 1, self.config.products_per_mall + 1)
        products = [product_body(self.config, mall, no, self.today) for no in numbers]
        for kind in PRODUCT_DATES:
            if window := parameters.window(f"{kind}_start_date", f"{kind}_end_date"):
                products = [p for p in products if _is_within(p, f"{kind}_date", window)]
        if wanted := parameters.values("product_no"):
            products = [p for p in products if str(p["product_no"]) in wanted]
        return products if "since_product_no" in parameters else _sorted_products(products, parameters)


def _sorted_products(products: list[Body], parameters: Parameters) -> list[Body]:
    sort = parameters.choice("sort", "created_date", {"created_date", "updated_date", "product_name"})
    order = parameters.choice("order", "desc", {"asc", "desc"})
    return sorted(products, key=lambda p: (p[sort], p["product_no"]), reverse=order == "desc")


def _check_version(version: str) -> None:
    try:
        date.fromisoformat(version)
    except ValueError:
        raise Refused("X-Cafe24-Api-Version must be a date (YYYY-MM-DD).", 400) from None


def _check_cursor_alone(parameters: Parameters) -> None:
    for name in ("product_no", "sort", "order", "offset"):
        if name in parameters:
            raise Refused(f"[{name}] cannot be used with [since_product_no].")


def _with_fields(page: list[Body], parameters: Parameters) -> list[Body]:
    wanted = parameters.values("fields")
    return [{name: row[name] for name in wanted if name in row} for row in page] if wanted else page


def _next_link(request: Request, offset: int, limit: int, total: int) -> Body:
    if offset + limit >= total:
        return {}
    query = urlencode({**dict(parse_qsl(request.query)), "offset": offset + limit})
    host = request.headers.get("host", "127.0.0.1")
    return {"links": [{"rel": "next", "href": f"http://{host}{request.path}?{query}"}]}


def _spoil(reply: Reply, traps: Traps) -> Reply:
    if traps.huge_page_bytes:
        padding = b'{"padding": "' + b"x" * traps.huge_page_bytes + b'", '
        reply = replace(reply, body=padding + reply.body[1:])
    if traps.drip:
        return replace(reply, delivery=Delivery.DRIP)
    return replace(reply, delivery=Delivery.TRUNCATED) if traps.truncated else reply


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _zoneless(moment: datetime) -> str:
    """As the token endpoint writes times: Korean time that does not say so."""
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds")
