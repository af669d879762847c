"""A stand-in for the Cafe24 Admin API: its contract, without the HTTP around it.

One `Cafe24Shop` is every mall: it turns a `Request` into a `Reply` as the public documentation of the
API has it (rotating refresh tokens, paging rules, two rate systems, error bodies), or as a trap spoils
it. `https://{mall_id}.cafe24api.com` becomes `/{mall_id}` here. What the malls hold is in `truth`, what
they list of it in `listings`. What the shop tells a client about waiting it also tells the `Witness`.

Where the documentation is silent (the body of a 429, the refusal of a refresh token, what happens
outside the rules of paging) the shop picks something plausible; no client may depend on the choice.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from urllib.parse import parse_qsl

from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.limits import RateLimits
from crawlfleet.demo.cafe24.listings import Listings
from crawlfleet.demo.cafe24.replies import api_error, oauth_error
from crawlfleet.demo.cafe24.tokens import (
    CLIENT_ID,
    RefreshTokens,
    access_expires_ms,
    access_token,
    client_secret,
)
from crawlfleet.demo.cafe24.traps import Cafe24Traps
from crawlfleet.demo.cafe24.truth import expected_items
from crawlfleet.demo.cafe24.witness import Cafe24Witness
from crawlfleet.demo.exchange import Body, Delivery, Refused, Reply, Request, Visit
from crawlfleet.demo.korea import KST, korean_now
from crawlfleet.demo.shop import Shop, spoil_json

MALL_ID = re.compile(r"[a-z][a-z0-9]{0,31}")
SCOPES = ("mall.read_order", "mall.read_product")
REFRESH_TOKEN_LIFE = timedelta(days=14)
PROCESSING_S = 0.02


class Cafe24Shop(Shop[Cafe24Traps]):
    """Every mall of the stand-in platform."""

    witness: Cafe24Witness

    def __init__(
        self,
        config: Cafe24Config,
        *,
        now: Callable[[], datetime] = korean_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        witness = Cafe24Witness(config.agreement, clock)
        super().__init__(config.traps, witness, clock, seed=config.seed)
        self.config = config
        self.today = now().astimezone(KST).date()
        """The day the orders are counted back from: it stays, whatever midnights pass."""
        self._now = now
        self._tokens = RefreshTokens(config, witness)
        self._limits = RateLimits(config, clock)
        self._listings = Listings(config, self.today, now)

    def expected_items(self, mall_id: str, days: int) -> dict[tuple[str, str], Body]:
        """The truth of this shop: see the function of that name."""
        return expected_items(self.config, mall_id, days, self.today)

    def visit(self, request: Request) -> Visit:
        """The mall and the resource of `/{mall_id}/api/v2/admin/{resource}`, or `token` for its token endpoint."""
        parts = request.path.split("/", 5)
        if len(parts) < 6 or not MALL_ID.fullmatch(parts[1]):
            return Visit()
        if parts[2:5] == ["api", "v2", "admin"]:
            return Visit(parts[1], parts[5], is_api=bool(parts[5]))
        return Visit(parts[1], "token" if parts[2:] == ["api", "v2", "oauth", "token"] else "")

    def _reply(self, request: Request, visit: Visit, traps: Cafe24Traps) -> Reply:
        if not visit.account:
            return api_error(404, "No such mall.")
        if visit.what == "token" and not visit.is_api:
            return self._token_reply(request, visit.account, traps)
        try:
            return self._api_reply(request, visit, traps)
        except Refused as refusal:
            return api_error(refusal.status, str(refusal))

    # Tokens

    def _token_reply(self, request: Request, mall: str, traps: Cafe24Traps) -> Reply:
        form = dict(parse_qsl(request.body.decode("utf-8", "replace")))
        if request.method != "POST":
            return oauth_error(405, "invalid_request", "Use POST.")
        if not self._knows_client(request.headers.get("authorization", "")):
            return oauth_error(401, "invalid_client", "Unknown client or wrong secret.")
        if form.get("grant_type") != "refresh_token":
            return oauth_error(400, "unsupported_grant_type", "Only refresh_token is served.")
        successor = self._tokens.rotate(mall, form.get("refresh_token", ""), traps)
        if successor is None:
            return oauth_error(400, "invalid_grant", "Invalid refresh_token")
        delivery = Delivery.LOST if traps.lose_refresh_reply else Delivery.WHOLE
        return replace(self._token_pair(mall, successor), delivery=delivery)

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
            "access_token": access_token(self.config, mall, _milliseconds(expires_at)),
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

    def _check_access(self, request: Request, mall: str, traps: Cafe24Traps) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        expires_ms = access_expires_ms(self.config, mall, token)
        if scheme != "Bearer" or expires_ms is None or traps.revoke_tokens:
            raise Refused("Invalid access_token", 401)
        if _milliseconds(self._now()) >= expires_ms:
            raise Refused("access_token time expired", 401)

    # The API

    def _api_reply(self, request: Request, visit: Visit, traps: Cafe24Traps) -> Reply:
        if visit.what not in {"orders", "orders/count", "products"}:
            raise Refused("Not Found", 404)
        if request.method != "GET":
            raise Refused("Method Not Allowed", 405)
        self._check_access(request, visit.account, traps)
        charge = self._limits.charge(visit.account, visit.what, PROCESSING_S + traps.slow_s)
        if charge.wait_s:
            self.witness.told_to_wait(visit.account, charge.wait_s)
        if charge.refused:
            reply = api_error(429, "Too Many Requests")
        else:
            reply = self._refusing_trap(visit.account, traps) or self._content(request, visit, traps)
        return replace(reply, headers={**charge.headers, **reply.headers})

    def _refusing_trap(self, mall: str, traps: Cafe24Traps) -> Reply | None:
        if traps.always_429:
            size = self.config.bucket_size
            full = {"X-Api-Call-Limit": f"{size}/{size}"}
            return replace(api_error(429, "Too Many Requests"), headers=full)
        if traps.throttle_once and self.switches.spring_once("throttle_once", mall):
            self.witness.told_to_wait(mall, 1)
            return replace(api_error(429, "Too Many Requests"), headers={"Retry-After": "1"})
        if traps.scope_removed:
            return api_error(403, "insufficient_scope")
        if self._fails(traps):
            return api_error(500, "Internal Server Error")
        return None

    def _content(self, request: Request, visit: Visit, traps: Cafe24Traps) -> Reply:
        if traps.html_200:
            return Reply.of_notice(200, "관리자 로그인")
        if traps.empty_body:
            return Reply(200)
        if traps.error_in_200:
            return replace(api_error(500, "Internal Server Error"), status=200)
        if traps.unknown_reply:
            return Reply.of_json(200, {"result": {"rows": []}, "meta": {"version": 3}})
        _check_version(request.headers.get("x-cafe24-api-version", ""))
        return spoil_json(self._listings.answer(request, visit, traps), traps)


def _check_version(version: str) -> None:
    try:
        date.fromisoformat(version)
    except ValueError:
        raise Refused("X-Cafe24-Api-Version must be a date (YYYY-MM-DD).", 400) from None


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _zoneless(moment: datetime) -> str:
    """As the token endpoint writes times: Korean time that does not say so."""
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds")
