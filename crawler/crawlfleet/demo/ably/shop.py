"""A stand-in for the Ably seller admin, pages and API on one origin, without the HTTP around it.

One `AblyShop` is every seller. It logs sellers in, draws their orders by the scripts in `pages/`, serves the same
orders as JSON, or spoils all that as a trap says. What the sellers have sold is in `orders`, who is logged in in
`sessions`. What the shop tells a client, and what a client does with passwords, it also tells the `Witness`.

There is no public documentation of the real one; what is known was seen in clients of it. Where they are silent
the shop picks something plausible; no client may depend on the choice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from http.cookies import CookieError, SimpleCookie
from itertools import count
from urllib.parse import urlencode

from crawlfleet.demo.ably import assets
from crawlfleet.demo.ably.config import AblyConfig
from crawlfleet.demo.ably.orders import COLUMNS, OrderLists, Strategy, expected_items
from crawlfleet.demo.ably.sellers import Session, seller_of, session_of, session_token
from crawlfleet.demo.ably.sessions import Sessions, State
from crawlfleet.demo.ably.traps import AblyTraps
from crawlfleet.demo.ably.witness import AblyWitness
from crawlfleet.demo.exchange import Body, Delivery, Refused, Reply, Request, Visit
from crawlfleet.demo.korea import KST, korean_now
from crawlfleet.demo.shop import MAINTENANCE, Shop, spoil_json

COOKIE = "ably-seller-admin-jwt-token"
RETRY_AFTER_S = 1
WHATS = {
    "/": "home",
    "/login": "login page",
    "/seller/login/": "login",
    "/dashboard": "dashboard",
    "/orders": "orders",
    "/seller/order_items/": "order_items",
    "/captcha": "challenge",
    "/two-factor": "challenge",
}
ASSETS = ("image", "static")
EMPTY: Body = {"order_items": [], "max_page_number": 1}


class Access(StrEnum):
    """What a session is good for; the two in the middle are the names of the pages it leads to."""

    NONE = "login"
    CAPTCHA = "captcha"
    TWO_FACTOR = "two-factor"
    SILENT = "silent"
    FULL = "full"


CHALLENGES = {
    Access.CAPTCHA: ("보안문자 입력", "자동입력 방지를 위해 보안문자를 입력해 주세요."),
    Access.TWO_FACTOR: ("2단계 인증", "휴대전화로 전송된 인증번호 6자리를 입력해 주세요."),
}


class AblyShop(Shop[AblyTraps]):
    """Every seller of the stand-in platform."""

    witness: AblyWitness

    def __init__(
        self,
        config: AblyConfig,
        *,
        now: Callable[[], datetime] = korean_now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config.traps, AblyWitness(config.agreement, clock), clock, seed=config.seed)
        self.config = config
        self.today = now().astimezone(KST).date()
        """The day the orders are counted back from: it stays, whatever midnights pass."""
        self._sessions = Sessions(config)
        self._orders = OrderLists(config, self.today, now)
        self._hops = count()

    def expected_items(
        self, seller: str, days: int, strategy: Strategy = "http"
    ) -> dict[tuple[str, str], Body]:
        """The truth of this shop: see the function of that name; without the orders that a trap took away."""
        gone = self._orders.vanished(seller)
        expected = expected_items(self.config, seller, days, self.today, strategy)
        return {key: body for key, body in expected.items() if key[1] not in gone}

    def end_sessions(self, seller: str) -> None:
        """End all sessions of a seller so far, as if a person had logged out everywhere."""
        self._sessions.end_all(seller)

    def visit(self, request: Request) -> Visit:
        """The seller who logs in, of the token, or of the cookie."""
        what = WHATS.get(request.path, "")
        if request.path.startswith("/img/"):
            what = "image"
        elif request.path.startswith("/static/"):
            what = "static"
        return Visit(next(iter(self._sellers(request)), ""), what, is_api=what == "order_items")

    def _sellers(self, request: Request) -> list[str]:
        """Everybody whom a request names."""
        is_login = request.path == "/seller/login/"
        who_logs_in = seller_of(_login_form(request)[0]) if is_login else ""
        sessions = [s for s in (self._bearer(request), self._cookie(request)) if s]
        return [seller for seller in (who_logs_in, *(session.seller for session in sessions)) if seller]

    def _bearer(self, request: Request) -> Session | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return session_of(self.config, token) if scheme == "JWT" else None

    def _cookie(self, request: Request) -> Session | None:
        try:
            morsel = SimpleCookie(request.headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return None
        return session_of(self.config, morsel.value) if morsel else None

    def _delay_s(self, visit: Visit, traps: AblyTraps) -> float:
        return 0.0 if visit.what in ASSETS else traps.slow_s

    def _reply(self, request: Request, visit: Visit, traps: AblyTraps) -> Reply:
        if len(set(self._sellers(request))) > 1:
            self.witness.sellers_mixed()
        if traps.maintenance_200:
            return Reply.of_notice(200, MAINTENANCE)
        match visit.what:
            case "login":
                return self._login_reply(request, traps)
            case "order_items":
                return self._api_reply(request, traps)
            case "image":
                self.witness.image_asked()
                return assets.image(request.path)
            case "static":
                return assets.static_file(request.path.removeprefix("/static/"))
        return self._page_reply(request, visit.what, traps)

    def _access(self, session: Session | None, traps: AblyTraps) -> Access:
        if session is None or traps.revoke_tokens:
            return Access.NONE
        state = self._sessions.state(session)
        if state is State.ENDED:
            return Access.NONE
        if traps.silent_logout or state is State.SILENT:
            return Access.SILENT
        if session.number and (traps.captcha or traps.two_factor):
            return Access.CAPTCHA if traps.captcha else Access.TWO_FACTOR
        return Access.FULL

    # Login

    def _login_reply(self, request: Request, traps: AblyTraps) -> Reply:
        if request.method != "POST":
            return _api_error(405, "허용되지 않은 메소드입니다.")
        email, password = _login_form(request)
        seller = seller_of(email)
        self.witness.password_submitted(seller, password)
        if traps.wrong_password or not self._sessions.accepts(seller, password):
            self.witness.login_refused(seller)
            return _api_error(401, "이메일 또는 비밀번호가 올바르지 않습니다.")
        session = self._sessions.open(seller)
        self.witness.login_accepted(session)
        token = session_token(self.config, session)
        reply = Reply.of_json(200, {"token": token})
        delivery = Delivery.LOST if traps.lose_login_reply else Delivery.WHOLE
        return replace(reply, headers={"Set-Cookie": f"{COOKIE}={token}; Path=/"}, delivery=delivery)

    # The API

    def _api_reply(self, request: Request, traps: AblyTraps) -> Reply:
        session = self._bearer(request)
        access = self._access(session, traps)
        if request.method != "GET":
            return _api_error(405, "허용되지 않은 메소드입니다.")
        if session is None or access is Access.NONE or traps.api_401:
            return _api_error(401, "인증 정보가 만료되었습니다.")
        if access in CHALLENGES:
            self.witness.login_refused(session.seller)
            return _api_error(403, CHALLENGES[access][1])
        self.witness.orders_asked(session)
        if access is Access.SILENT:
            return Reply.of_json(200, EMPTY)
        return self._refusing_trap(session.seller, traps) or self._content(request, session, traps)

    def _refusing_trap(self, seller: str, traps: AblyTraps) -> Reply | None:
        once = traps.throttle_once and self.switches.spring_once("throttle_once", seller)
        if once or traps.always_429:
            self.witness.told_to_wait(seller, RETRY_AFTER_S)
            throttled = _api_error(429, "요청이 너무 많습니다. 잠시 후 다시 시도해 주세요.")
            return replace(throttled, headers={"Retry-After": str(RETRY_AFTER_S)})
        if self._fails(traps):
            return _api_error(500, "서버 오류가 발생했습니다.")
        return None

    def _content(self, request: Request, session: Session, traps: AblyTraps) -> Reply:
        if traps.html_200:
            return Reply.of_html(200, assets.page("login.html"))
        if traps.empty_body:
            return Reply(200)
        if traps.error_in_200:
            return Reply.of_json(200, {"code": "E5000", "message": "일시적인 오류가 발생했습니다."})
        if traps.unknown_reply:
            return Reply.of_json(200, {"result": {"rows": []}, "meta": {"version": 3}})
        try:
            page = self._orders.page(session.seller, request.query, traps)
        except Refused as refusal:
            return _api_error(refusal.status, str(refusal))
        self._end_mid_job(session, traps)
        return spoil_json(Reply.of_json(200, page), traps)

    def _end_mid_job(self, session: Session, traps: AblyTraps) -> None:
        if traps.revoke_mid_job and self.switches.spring_once("revoke_mid_job", session.seller):
            self._sessions.end(session)
        if traps.silent_logout_mid_job and self.switches.spring_once("silent_logout_mid_job", session.seller):
            self._sessions.end(session, State.SILENT)

    # Pages

    def _page_reply(self, request: Request, what: str, traps: AblyTraps) -> Reply:
        session = self._cookie(request)
        is_walled = traps.wall_302 or traps.wall_200
        access = Access.NONE if is_walled else self._access(session, traps)
        match what:
            case "home":
                return _redirect("/dashboard")
            case "login page":
                return self._login_page(access)
            case "challenge":
                return self._challenge_page(request, access)
            case "dashboard" | "orders":
                return self._inner_page(what, session, access, traps)
        return Reply.of_notice(404, "페이지를 찾을 수 없습니다")

    def _login_page(self, access: Access) -> Reply:
        if access in (Access.NONE, Access.SILENT):
            return Reply.of_html(200, assets.page("login.html"))
        return _redirect("/dashboard")

    def _challenge_page(self, request: Request, access: Access) -> Reply:
        if request.path != f"/{access}":
            return _redirect("/dashboard")
        if request.method == "POST":
            self.witness.challenge_attempted()
        title, text = CHALLENGES[access]
        return Reply.of_html(200, assets.page("challenge.html", kind=access, title=title, text=text))

    def _inner_page(self, what: str, session: Session | None, access: Access, traps: AblyTraps) -> Reply:
        """A page for who is logged in."""
        if what == "orders" and traps.wall_200:
            return Reply.of_html(200, assets.page("login.html"))
        if session is None or access is Access.NONE:
            return _redirect("/login")
        if access in CHALLENGES:
            self.witness.login_refused(session.seller)
            return _redirect(f"/{access}")
        if what == "orders":
            self.witness.orders_asked(session)
            return self._orders_page(session.seller, traps)
        return _redirect("/login") if access is Access.SILENT else self._dashboard(session.seller)

    def _dashboard(self, seller: str) -> Reply:
        days = {"start_date": self.today - timedelta(days=7), "end_date": self.today}
        return Reply.of_html(
            200, assets.page("dashboard.html", seller=seller, orders=f"/orders?{urlencode(days)}")
        )

    def _orders_page(self, seller: str, traps: AblyTraps) -> Reply:
        if traps.endless_redirect:
            return _redirect(f"/orders?hop={next(self._hops)}")
        if traps.download:
            attachment = {"Content-Disposition": 'attachment; filename="orders.csv"'}
            return Reply(200, b"sno,order_sno\r\n", attachment, content_type="text/csv; charset=utf-8")
        if traps.unknown_page:
            return Reply.of_notice(200, "새로워진 셀러 센터를 만나보세요")
        options = {
            "columns": COLUMNS,
            "rowsPerPage": self.config.rows_per_page,
            "drawDelayMs": 1000 * (traps.slow_table_s or self.config.draw_delay_s),
            "popup": traps.popup,
            "alert": traps.alert,
            "hang": traps.hang,
            "crash": traps.crash_renderer,
        }
        padding = f"<div hidden>{'x' * traps.huge_page_bytes}</div>\n" if traps.huge_page_bytes else ""
        fields = {"seller": seller, "options": json.dumps(options), "padding": padding}
        return Reply.of_html(200, assets.page("orders.html", **fields))


def _login_form(request: Request) -> tuple[str, str]:
    """E-mail address and password of a login; empty where they are missing."""
    try:
        form = json.loads(request.body)
        return str(form.get("email", "")), str(form.get("password", ""))
    except (ValueError, AttributeError):
        return "", ""


def _api_error(status: int, detail: str) -> Reply:
    return Reply.of_json(status, {"detail": detail})


def _redirect(location: str) -> Reply:
    return Reply(302, headers={"Location": location})
