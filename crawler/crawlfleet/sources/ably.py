"""Ably's seller admin: the order items of one seller, by Selenium (`dom`) or by its JSON API after a login (`http`).

Used by the worker through `sources.Adapter`. What a page or a reply means is in `ably_pages`. A password is submitted
through `Crawl.login` alone, which does it once; the session that it gave is used until the shop ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.resources import files
from typing import Any, ClassVar
from urllib.parse import urlencode, urljoin, urlsplit

from crawlfleet.errors import AuthFailed, BadInput, Bug, CrawlEnded, Retry
from crawlfleet.sources import KST, Crawl, Credentials, Item, Page
from crawlfleet.sources.ably_pages import (
    LEFT_LOGIN,
    LOOK,
    SETTLED,
    Facts,
    Selectors,
    Sight,
    classify,
    classify_reply,
    ending,
    login_ending,
    login_status,
    orders_of,
)
from crawlfleet.sources.options import check_known, whole_number
from crawlfleet.sources.redaction import redact_value
from crawlfleet.sources.replies import Body

OFFICIAL_URL = "https://my.a-bly.com"
OFFICIAL_API = "https://api.a-bly.com"
COOKIE = "ably-seller-admin-jwt-token"
PASSES = 5
PER_PAGE = 100
SETTLE_S = 20.0
LOGIN_S = 20.0
_TYPE = files(__package__).joinpath("ably_type.js").read_text()

Rows = dict[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Paths:
    """Where things are, below the base URL; `api_orders` is below the API's, and may be a whole URL."""

    login: str = "/login"
    home: str = "/dashboard"
    orders: str = "/orders"
    api_orders: str = "/seller/order_items/"


class Ably:
    """Options: `days` back from now (default 7), `strategy` `dom` or `http`, `selectors`, `paths`. Kind: `order_item`."""

    official_url: ClassVar[str | None] = OFFICIAL_URL
    needs_browser: ClassVar[bool] = True

    def __init__(self, options: Mapping[str, Any]) -> None:
        check_known("ably", options, ("days", "strategy", "selectors", "paths"))
        self._days = whole_number("ably", options, "days", 7, least=1, most=3650)
        self._selectors = replace(Selectors(), **_texts(options, "selectors", Selectors.__dataclass_fields__))
        self._paths = replace(Paths(), **_texts(options, "paths", Paths.__dataclass_fields__))
        strategy = options.get("strategy", "dom")
        if strategy not in ("dom", "http"):
            raise BadInput(f"ably: option 'strategy' must be 'dom' or 'http', not {strategy!r}")
        self._read = self._read_dom if strategy == "dom" else self._read_http

    def check_credentials(self, credentials: Credentials) -> None:
        """Raise BadInput unless there are email and password, or a token."""
        for name in credentials:
            if name not in ("email", "password", "token"):
                raise BadInput(f"ably: unknown credential {name!r}; known: email, password, token")
        for name, value in credentials.items():
            if value and (not isinstance(value, str) or not value.isprintable()):
                raise BadInput(f"ably: credential {name!r} must be text without control characters")
        if not credentials.get("token") and not (credentials.get("email") and credentials.get("password")):
            raise BadInput("ably: credentials must hold 'email' and 'password', or a 'token'")

    def crawl(self, crawl: Crawl) -> Iterator[Item]:
        """The order items of the window."""
        for sno, row in self._read(crawl).items():
            yield Item("order_item", sno, row)

    def _read_dom(self, crawl: Crawl) -> Rows:
        with self._admin(crawl) as admin:
            return admin.read()

    def _read_http(self, crawl: Crawl) -> Rows:
        return Api(crawl, self._paths, self._days, self._admin).read()

    @contextmanager
    def _admin(self, crawl: Crawl) -> Iterator[Admin]:
        with crawl.browse() as page:
            yield Admin(crawl, page, self._selectors, self._paths, self._days)


def _texts(options: Mapping[str, Any], name: str, known: Iterable[str]) -> dict[str, str]:
    given = options.get(name, {})
    if not isinstance(given, Mapping) or not all(isinstance(text, str) and text for text in given.values()):
        raise BadInput(f"ably: option {name!r} must map names to text")
    check_known(f"ably: {name}", given, known)
    return dict(given)


def _need_password(crawl: Crawl) -> None:
    if not crawl.credentials.get("password"):
        raise AuthFailed(
            "SessionExpired", "the token has expired and there is no password; import a new token"
        )


def _logged_out(has_read: bool, where: str) -> CrawlEnded:
    """A session that ended although this crawl has logged in. One that never showed orders would be a loop of logins."""
    if has_read:
        return Retry("LoggedOut", f"the session ended while the orders were read, {where}")
    return AuthFailed(
        "LoginLoop", f"the shop ended the session right after its login, {where}; look there by hand"
    )


def _window(crawl: Crawl, days: int) -> dict[str, str]:
    today = crawl.now().astimezone(KST).date()
    return {"start_date": str(today - timedelta(days=days)), "end_date": str(today)}


@dataclass(frozen=True)
class Pass:
    """All pages read once, in the order of the list, newest first.

    `whole` is false if a page was empty or brought nothing new although there were said to be more.
    """

    rows: Rows
    pages: int
    whole: bool


def read_pages(read_page: Callable[[int], tuple[Rows, int]]) -> Pass:
    """One pass. `read_page` gets the number of a page: its rows, and how many pages there are now."""
    rows, pages = read_page(1)
    rows, number, whole = dict(rows), 1, True
    while number < pages:
        number += 1
        more, now = read_page(number)
        whole = whole and not more.keys() <= rows.keys()
        rows |= more
        pages = max(pages, now)
    return Pass(rows, pages, whole)


def read_until_agreed(read_pass: Callable[[], Pass]) -> Rows:
    """Read all pages again until two passes agree, and return the last; a single page at first sight is one glance.

    Rows that go pull others over the edges of pages meanwhile, where a pass steps over them. So nothing of one pass may
    be missing in the next, what is new there has to stand at its head, where orders come in, and no page may have gone.
    Raises Retry if the list does not rest within PASSES.
    """
    before: Pass | None = None
    for _ in range(PASSES):
        now = read_pass()
        if now.pages <= 1 if before is None else _agree(before, now):
            return now.rows
        before = now
    raise Retry("ListMoved", f"the list of orders did not rest while it was read {PASSES} times")


def _agree(before: Pass, now: Pass) -> bool:
    oldest = list(now.rows)[len(now.rows) - len(before.rows) :]
    return before.whole and now.whole and now.pages >= before.pages and set(oldest) == before.rows.keys()


class Admin:
    """One seller's pages in one browser page."""

    def __init__(self, crawl: Crawl, page: Page, selectors: Selectors, paths: Paths, days: int) -> None:
        self._crawl = crawl
        self._page = page
        self._marks = {**selectors.as_dict(), "api_orders": urlsplit(paths.api_orders).path}
        self._selectors = selectors
        self._paths = paths
        self._base = crawl.base_url or OFFICIAL_URL
        self._window = _window(crawl, days)
        self._logged_in = False
        self._has_read = False
        self._first_row: str | None = None

    def read(self) -> Rows:
        """All orders of the window; logs in if there is no living session."""
        if self._crawl.credentials.get("token"):
            self.enter()
        else:
            self.log_in()
        return read_until_agreed(lambda: read_pages(self._read_page))

    def enter(self) -> None:
        """Go on with the session that the account has."""
        self._page.set_cookie(self._base, COOKIE, self._crawl.credentials["token"])

    def log_in(self) -> None:
        """Log in by the page, and keep the session. Raises AuthFailed without a password, or if it was refused."""
        _need_password(self._crawl)
        facts = self._visit(self._paths.login)
        if classify(facts) is not Sight.LOGIN:
            raise self._ending(facts)
        if not facts.ready:  # a form without its scripts would put the password into an address
            raise Retry("PageTimeout", f"the scripts of the login page did not come within {SETTLE_S:.0f} s")
        self._page.delete_cookie(self._base, COOKIE)  # else an old session would look like a new one
        self._logged_in = True
        self._crawl.login(self._submit)

    def _submit(self, credentials: Credentials) -> Credentials:
        s = self._selectors
        try:
            self._page.read(_TYPE, s.email, credentials["email"], s.password, credentials["password"])
        except CrawlEnded as ended:
            ended.never_sent = True
            raise
        self._page.press(s.submit)
        facts = self._look(LEFT_LOGIN, LOGIN_S)
        status = login_status(self._page.answers())
        refused, token = login_ending(classify(facts), facts, status), self._page.cookie(COOKIE)
        if refused is not None and (isinstance(refused, AuthFailed) or refused.never_sent):
            raise refused
        if not token:  # with one the login has succeeded, whatever page came next
            raise refused or Retry("LoginUnclear", f"the login set no cookie {COOKIE}")
        return credentials | {"token": token}

    def _read_page(self, number: int) -> tuple[Rows, int]:
        facts = self._first_page() if number == 1 else self._turn_to(number)
        self._first_row = next(iter(facts.rows), None)
        self._has_read = True
        return dict(facts.rows), facts.max_page

    def _first_page(self) -> Facts:
        facts = self._visit(self._paths.orders, {**self._window, "page": "1"}, page_no=1)
        if facts.login or classify(facts) is Sight.EXPIRED:
            return self._again_after_login(facts)
        if classify(facts) is Sight.EMPTY and not self.is_alive():
            return self._again_after_login(facts)
        return self._orders(facts)

    def _again_after_login(self, facts: Facts) -> Facts:
        if self._logged_in:
            raise _logged_out(self._has_read, f"at {urlsplit(facts.url).path}")
        self.log_in()
        return self._first_page()

    def is_alive(self) -> bool:
        """Whether the session still lives: an empty list after a silent logout looks like an empty shop."""
        facts = self._visit(self._paths.home)
        if classify(facts) is Sight.HOME:
            return True
        if facts.login or facts.expired:
            return False
        raise self._ending(facts)

    def _turn_to(self, number: int) -> Facts:
        self._page.press(f'{self._selectors.pagination} [data-page="{number}"]')
        facts = self._settled(number, self._first_row)
        if classify(facts) in (Sight.LOGIN, Sight.EXPIRED):
            raise Retry("LoggedOut", "the session ended while the orders were read")
        stale = bool(facts.rows) and next(iter(facts.rows)) == self._first_row
        if stale or facts.page not in (0, number):
            raise Retry("PageMissing", f"page {number} of the orders did not come")
        return self._orders(facts)

    def _orders(self, facts: Facts) -> Facts:
        sight = classify(facts)
        if sight is Sight.EMPTY:
            return facts
        if sight is not Sight.ORDERS:
            raise self._ending(facts)
        if not facts.keyed:
            raise self._odd(facts, "a row has cells without a head; see options.selectors.head")
        if facts.max_page < 1:
            raise self._odd(facts, "the table has no pagination; see options.selectors.pagination")
        return facts

    def _visit(self, path: str, query: Mapping[str, str] | None = None, page_no: int = 0) -> Facts:
        self._page.go(urljoin(self._base, path) + (f"?{urlencode(query)}" if query else ""))
        return self._settled(page_no)

    def _settled(self, page_no: int = 0, before: str | None = None) -> Facts:
        return self._look(SETTLED, SETTLE_S, page_no, before)

    def _look(self, script: str, within_s: float, *arguments: Any) -> Facts:
        """The page once the script says so, or what it is when time is up; a page that is left meanwhile is looked at anew."""
        for _ in range(4):
            try:
                seen = self._page.settle(script, self._marks, *arguments, within_s=within_s)
                return Facts.of(seen or self._page.read(LOOK, self._marks))
            except Retry as left:
                if left.reason != "PageLeft":
                    raise
        raise Retry("PageLeft", "the page goes from one address to the next without end")

    def _ending(self, facts: Facts) -> CrawlEnded:
        """The verdict of a page that is not what was asked for; one that nobody knows is kept."""
        if known := ending(classify(facts), facts):
            return known
        return self._odd(facts, "no page that the adapter knows; see options.selectors and options.paths")

    def _odd(self, facts: Facts, what: str) -> Bug:
        html, picture = self._page.likeness()
        at = f"{urlsplit(facts.url).path} (status {facts.status})"
        return Bug("UnknownPage", f"{at}: {what}", snapshot=html, picture=picture)


class Api:
    """One seller's JSON API, by the session's token. The pages are opened for a login, and to see whether a session lives."""

    def __init__(
        self,
        crawl: Crawl,
        paths: Paths,
        days: int,
        browse: Callable[[Crawl], AbstractContextManager[Admin]],
    ) -> None:
        self._crawl = crawl
        self._base = crawl.base_url or OFFICIAL_URL
        self._orders = urljoin(crawl.base_url or OFFICIAL_API, paths.api_orders)
        self._window = _window(crawl, days)
        self._browse = browse
        self._logged_in = False
        self._has_read = False

    def read(self) -> Rows:
        """All orders of the window; logs in if there is no living session."""
        if not self._crawl.credentials.get("token"):
            self._renew_session()
        return read_until_agreed(lambda: read_pages(self._read_page))

    def _renew_session(self) -> None:
        if self._logged_in:
            raise _logged_out(self._has_read, "at its order API")
        _need_password(self._crawl)
        self._logged_in = True
        with self._browse(self._crawl) as admin:
            admin.log_in()

    def _read_page(self, number: int) -> tuple[Rows, int]:
        params = {**self._window, "page": str(number), "per_page": str(PER_PAGE)}
        content = self._get(params)
        while content is None or (number == 1 and not orders_of(content)[0] and not self._is_alive()):
            self._renew_session()  # raises the second time
            content = self._get(params)
        items, pages = orders_of(content)
        self._has_read = True
        return {_sno(item): item for item in items}, pages

    def _get(self, params: Mapping[str, str]) -> bytes | None:
        """The body of a reply with orders; None if the session has ended."""
        with self._crawl.request("GET", self._orders, params=params, headers=self._headers()) as response:
            body = Body(response)
            content = b"".join(iter(lambda: body.read(2**16), b""))
            judged = classify_reply(response.status_code, response.headers, content, self._crawl.now())
        if isinstance(judged, CrawlEnded):
            raise judged
        return None if judged is Sight.EXPIRED else content

    def _is_alive(self) -> bool:
        with self._browse(self._crawl) as admin:
            admin.enter()
            return admin.is_alive()

    def _headers(self) -> dict[str, str]:
        return {
            "Authorization": f"JWT {self._crawl.credentials['token']}",
            "Origin": self._base,
            "Referer": f"{self._base}/",
        }


def _sno(item: Mapping[str, Any]) -> str:
    sno = item.get("sno")
    if isinstance(sno, bool) or not isinstance(sno, int | str) or not str(sno):
        raise Bug("UnexpectedReply", "an order item has no sno", snapshot=redact_value(dict(item)))
    return str(sno)
