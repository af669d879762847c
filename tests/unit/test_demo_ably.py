"""The stand-in ably keeps its contract over real sockets, and its traps spoil it as said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from crawlfleet.demo.ably.config import AblyConfig
from crawlfleet.demo.ably.orders import COLUMNS, expected_items
from crawlfleet.demo.ably.sellers import Session, demo_accounts, email, password, session_token
from crawlfleet.demo.ably.shop import COOKIE, AblyShop
from crawlfleet.demo.ably.traps import AblyTraps
from crawlfleet.demo.ably.witness import AblyCounters
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.tokens import demo_accounts as cafe24_accounts
from crawlfleet.demo.korea import KST
from crawlfleet.demo.server import ShopServer
from crawlfleet.demo.violations import Agreement

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=KST)
WEEK = {"start_date": "2026-11-13", "end_date": "2026-11-20"}
TIMEOUT_S = 10
HANGUL = re.compile("[가-힣]")


class Bench:
    """A served shop with a clock that a test moves, and one client of it that keeps its cookies."""

    def __init__(self, **config: Any) -> None:
        self.config = AblyConfig(**config)
        self.elapsed_s = 0.0
        self.shop = AblyShop(self.config, now=self.now, clock=lambda: self.elapsed_s)
        self.server = ShopServer(self.shop)
        self.client = requests.Session()
        self.client.trust_env = False

    def now(self) -> datetime:
        return NOON + timedelta(seconds=self.elapsed_s)

    @property
    def counters(self) -> AblyCounters:
        return self.shop.witness.counters()

    def token(self, number: int = 0, seller: str = "demo1") -> str:
        """The token of a session; 0 is the one that the seller gave."""
        return session_token(self.config, Session(seller, number))

    def log_in(self, word: str | None = None, seller: str = "demo1") -> requests.Response:
        word = password(self.config, seller) if word is None else word
        form = {"email": email(seller), "password": word}
        return self.client.post(f"{self.server.url}/seller/login/", json=form, timeout=TIMEOUT_S)

    def visit(self, path: str, token: str | None = None, **kwargs: Any) -> requests.Response:
        """A page, with the client's cookies or with that token alone; redirects are not followed."""
        cookies = {COOKIE: token} if token else None
        return self.client.get(
            self.server.url + path, cookies=cookies, allow_redirects=False, timeout=TIMEOUT_S, **kwargs
        )

    def orders(self, page: int = 1, token: str | None = None, **query: Any) -> requests.Response:
        """One page of the API."""
        headers = {"Authorization": f"JWT {token or self.token()}"}
        return self.client.get(
            f"{self.server.url}/seller/order_items/",
            params={**WEEK, "page": page, **query},
            headers=headers,
            timeout=TIMEOUT_S,
        )

    def follow(self, path: str, token: str | None = None) -> list[str]:
        """The paths that a browser passes from there on."""
        passed = [path]
        while location := self.visit(passed[-1], token).headers.get("Location"):
            passed.append(location)
        return passed


@pytest.fixture
def served() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def bench(served: ExitStack) -> Bench:
    return opened(served)


def opened(served: ExitStack, **config: Any) -> Bench:
    bench = Bench(**config)
    served.enter_context(bench.server)
    served.enter_context(bench.client)
    return bench


def read(reply: requests.Response, status: int = 200) -> Any:
    assert reply.status_code == status, reply.text
    return reply.json()


def numbers(reply: requests.Response) -> list[int]:
    return [item["sno"] for item in read(reply)["order_items"]]


# --- Login and pages ----------------------------------------------------------------------------------


def test_a_login_brings_a_token_and_a_cookie_for_all_pages(bench: Bench) -> None:
    reply = bench.log_in()
    token = read(reply)["token"]
    assert reply.headers["Set-Cookie"] == f"{COOKIE}={token}; Path=/"
    assert bench.visit("/dashboard").status_code == 200
    assert numbers(bench.orders(token=token))


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"email": "nobody@example.org", "password": "x"}'])
def test_a_login_that_names_no_seller_is_refused(bench: Bench, body: str) -> None:
    reply = bench.client.post(f"{bench.server.url}/seller/login/", data=body, timeout=TIMEOUT_S)
    assert HANGUL.search(read(reply, 401)["detail"])


def test_a_password_is_good_for_its_own_seller_only(bench: Bench) -> None:
    assert bench.log_in(password(bench.config, "demo2")).status_code == 401
    assert bench.log_in("Pw0-000000000000").status_code == 401


def test_a_new_password_replaces_the_old_one(bench: Bench) -> None:
    assert bench.log_in(password(bench.config, "demo1", 1)).status_code == 200
    assert bench.log_in(password(bench.config, "demo1")).status_code == 401


def test_a_new_session_leaves_the_old_one_alive(bench: Bench) -> None:
    first, second = (read(bench.log_in())["token"] for _ in range(2))
    assert first != second
    assert [bench.orders(token=token).status_code for token in (first, second)] == [200, 200]


def test_a_shop_that_starts_anew_takes_old_tokens(served: ExitStack, bench: Bench) -> None:
    token = read(bench.log_in())["token"]
    assert opened(served).orders(token=token).status_code == 200
    assert opened(served, seed="other").orders(token=token).status_code == 401


def test_the_login_page_has_the_fields_that_are_known(bench: Bench) -> None:
    page = bench.visit("/login").text
    assert all(part in page for part in ('name="email"', 'name="password"', 'type="submit"'))


def test_who_is_logged_in_sees_no_login_page(bench: Bench) -> None:
    bench.log_in()
    assert bench.follow("/login") == ["/login", "/dashboard"]


@pytest.mark.parametrize("path", ["/", "/dashboard", "/orders", "/captcha"])
def test_without_a_session_every_page_leads_to_the_login(bench: Bench, path: str) -> None:
    assert bench.follow(path)[-1] == "/login"


def test_a_foreign_cookie_is_no_session(bench: Bench) -> None:
    assert bench.follow("/dashboard", "a.b.c") == ["/dashboard", "/login"]
    assert bench.visit("/dashboard", bench.token().replace(".", "x")).status_code == 302


def test_the_dashboard_names_the_seller(bench: Bench) -> None:
    assert (
        '<span class="seller-name">demo7</span>'
        in bench.visit("/dashboard", bench.token(seller="demo7")).text
    )


def test_the_order_page_is_a_shell_that_holds_no_order(bench: Bench) -> None:
    page = bench.visit("/orders", bench.token(), params=WEEK).text
    assert "/static/orders.js" in page
    assert not any(number in page for _, number in bench.shop.expected_items("demo1", 7))


def test_the_order_page_draws_the_columns_of_the_truth(bench: Bench) -> None:
    page = bench.visit("/orders", bench.token()).text
    options = json.loads(re.findall(r'<script id="options"[^>]*>(.*?)</script>', page)[0])
    assert list(options["columns"]) == list(COLUMNS)
    assert (options["rowsPerPage"], options["drawDelayMs"]) == (50, 300)


def test_a_page_that_is_not_there_is_not_found(bench: Bench) -> None:
    assert bench.visit("/nowhere").status_code == 404
    assert bench.visit("/static/shop.py").status_code == 404


# --- What a page loads --------------------------------------------------------------------------------


def test_the_scripts_are_served_and_the_big_one_is_as_big_as_a_real_one(bench: Bench) -> None:
    sizes = [len(bench.visit(f"/static/{name}").content) for name in ("orders.js", "login.js", "vendor.js")]
    assert min(sizes) > 500
    assert 380_000 < sizes[2] < 390_000


def test_thumbnails_are_always_the_same_pictures_and_are_counted(served: ExitStack, bench: Bench) -> None:
    pictures = [bench.visit(f"/img/{no}.jpg") for no in (1, 2, 1)]
    assert pictures[0].content == pictures[2].content != pictures[1].content
    assert pictures[0].headers["Content-Type"] == "image/jpeg"
    assert 33_000 < len(pictures[0].content) < 35_000
    assert opened(served).visit("/img/1.jpg").content == pictures[0].content
    assert (bench.counters.images, bench.counters.violations()) == (3, 0)


# --- The API and the truth ----------------------------------------------------------------------------


def test_paging_brings_exactly_the_expected_items(served: ExitStack) -> None:
    bench = opened(served, orders_per_seller=130)
    pages = [read(bench.orders(page)) for page in (1, 2, 3)]
    got = {("order_item", str(item["sno"])): item for page in pages for item in page["order_items"]}
    assert got == bench.shop.expected_items("demo1", 7)
    assert [page["max_page_number"] for page in pages] == [3, 3, 3]
    assert [len(page["order_items"]) for page in pages] == [50, 50, 30]


def test_what_a_page_shows_is_the_text_of_its_columns(bench: Bench) -> None:
    items = bench.shop.expected_items("demo1", 7)
    drawn = bench.shop.expected_items("demo1", 7, "dom")
    assert drawn == {key: {name: str(body[name]) for name in COLUMNS} for key, body in items.items()}


def test_the_truth_is_the_same_for_the_same_seed_seller_and_day_only() -> None:
    truths = [
        expected_items(AblyConfig(seed=seed), seller, 7, NOON.date() + timedelta(days=days))
        for seed, seller, days in (
            ("demo", "demo1", 0),
            ("demo", "demo1", 0),
            ("other", "demo1", 0),
            ("demo", "demo2", 0),
            ("demo", "demo1", 1),
        )
    ]
    assert truths[0] == truths[1]
    assert all(truth != truths[0] for truth in truths[2:])


def test_no_two_sellers_have_an_order_in_common() -> None:
    truths = [expected_items(AblyConfig(), f"demo{no}", 7, NOON.date()) for no in range(1, 101)]
    assert len({key for truth in truths for key in truth}) == 100 * AblyConfig().orders_per_seller


def test_the_truth_of_fewer_days_holds_fewer_orders() -> None:
    sizes = [len(expected_items(AblyConfig(), "demo1", days, NOON.date())) for days in (0, 3, 6, 7)]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]


def test_an_order_item_has_the_known_keys_and_speaks_korean(bench: Bench) -> None:
    item = read(bench.orders())["order_items"][0]
    assert {"sno", "order_sno", "goods_sno", "ea", "ordered_at", "invoice"} <= item.keys()
    assert all(HANGUL.search(item[key]) for key in ("goods_name", "buyer_name", "receiver_addr"))
    assert item["checked_at"] == "2026-11-20T00:00:00+09:00"


def test_orders_come_newest_first(bench: Bench) -> None:
    times = [item["checked_at"] for item in read(bench.orders(per_page=100))["order_items"]]
    assert times == sorted(times, reverse=True)


def test_both_days_of_the_window_are_in_it(bench: Bench) -> None:
    """Cutting a week at any day loses no order and doubles none."""
    whole = numbers(bench.orders(per_page=100))
    early = numbers(bench.orders(start_date="2026-11-13", end_date="2026-11-16"))
    late = numbers(bench.orders(start_date="2026-11-17", end_date="2026-11-20"))
    assert late + early == whole
    assert early


def test_after_the_last_page_there_is_nothing(bench: Bench) -> None:
    assert read(bench.orders(3)) == {"order_items": [], "max_page_number": 2}


def test_a_seller_without_orders_has_one_empty_page(served: ExitStack) -> None:
    bench = opened(served, orders_per_seller=0)
    assert read(bench.orders()) == {"order_items": [], "max_page_number": 1}
    assert bench.visit("/dashboard", bench.token()).status_code == 200


@pytest.mark.parametrize(
    ("query", "status"),
    [
        pytest.param({"per_page": 100}, 200, id="per-page-max"),
        pytest.param({"per_page": 101}, 422, id="per-page-above"),
        pytest.param({"page": 0}, 422, id="page-zero"),
        pytest.param({"page": "x"}, 422, id="page-no-number"),
        pytest.param({"start_date": "2026-11-21"}, 422, id="start-after-end"),
        pytest.param({"start_date": "20261113"}, 422, id="not-a-date"),
        pytest.param({"start_date": "2026-11-31", "end_date": "2026-12-31"}, 422, id="no-such-day"),
        pytest.param({"end_date": "2026-11-20 10:00:00"}, 422, id="not-a-day"),
        pytest.param({"end_date": ""}, 422, id="no-end"),
        pytest.param({"order": "-checked_at", "date_type": "checked_at"}, 200, id="known-words"),
        pytest.param({"order": "checked_at"}, 422, id="order-unknown"),
        pytest.param({"offset": 50}, 422, id="parameter-unknown"),
    ],
)
def test_parameters_have_limits(bench: Bench, query: dict[str, Any], status: int) -> None:
    reply = bench.orders(**query)
    assert reply.status_code == status
    assert status == 200 or read(reply, 422)["detail"]


@pytest.mark.parametrize("header", ["", "JWT", "JWT a.b.c", "Bearer {token}", "{token}"])
def test_the_api_takes_a_living_token_only(bench: Bench, header: str) -> None:
    headers = {"Authorization": header.format(token=bench.token())}
    url = f"{bench.server.url}/seller/order_items/"
    reply = bench.client.get(url, params=WEEK, headers=headers, timeout=TIMEOUT_S)
    assert HANGUL.search(read(reply, 401)["detail"])


# --- Traps: sessions ----------------------------------------------------------------------------------


def test_a_revoked_token_is_good_for_nothing(bench: Bench) -> None:
    bench.server.switch(revoke_tokens=True)
    assert bench.orders().status_code == 401
    assert bench.follow("/orders", bench.token()) == ["/orders", "/login"]


def test_the_api_may_refuse_a_session_that_the_pages_take(bench: Bench) -> None:
    bench.server.switch(api_401=True)
    assert bench.orders().status_code == 401
    assert bench.visit("/orders", bench.token()).status_code == 200


def test_a_session_may_be_revoked_after_its_first_page(bench: Bench) -> None:
    """Once an account: the session after the next login lasts."""
    bench.server.switch(revoke_mid_job=True)
    assert [bench.orders(page).status_code for page in (1, 2)] == [200, 401]
    token = read(bench.log_in())["token"]
    assert [bench.orders(page, token).status_code for page in (1, 2)] == [200, 200]


def test_a_silent_logout_looks_like_a_shop_without_orders(bench: Bench) -> None:
    bench.server.switch(silent_logout=True)
    assert read(bench.orders()) == {"order_items": [], "max_page_number": 1}
    assert bench.visit("/orders", bench.token()).status_code == 200
    assert bench.follow("/dashboard", bench.token()) == ["/dashboard", "/login"]


def test_a_silent_logout_may_come_between_two_pages(bench: Bench) -> None:
    bench.server.switch(silent_logout_mid_job=True)
    assert [len(numbers(bench.orders(page))) for page in (1, 2)] == [50, 0]
    token = read(bench.log_in())["token"]
    assert [len(numbers(bench.orders(page, token))) for page in (1, 2)] == [50, 10]


def test_a_person_may_log_out_everywhere(bench: Bench) -> None:
    token = read(bench.log_in())["token"]
    bench.shop.end_sessions("demo1")
    assert [bench.orders(token=t).status_code for t in (token, bench.token())] == [401, 401]
    assert bench.orders(token=read(bench.log_in())["token"]).status_code == 200


# --- Traps: login -------------------------------------------------------------------------------------


def test_a_wrong_password_is_a_401(bench: Bench) -> None:
    bench.server.switch(wrong_password=True)
    assert bench.log_in().status_code == 401


def test_a_lost_login_reply_took_effect(bench: Bench) -> None:
    bench.server.switch(lose_login_reply=True)
    with pytest.raises(requests.exceptions.ConnectionError):
        bench.log_in()
    assert bench.orders(token=bench.token(1)).status_code == 200


@pytest.mark.parametrize(("trap", "path"), [("captcha", "/captcha"), ("two_factor", "/two-factor")])
def test_a_challenge_comes_after_the_login_and_never_goes_away(bench: Bench, trap: str, path: str) -> None:
    bench.server.switch(**{trap: True})
    token = read(bench.log_in())["token"]
    for page in ("/dashboard", "/orders"):
        assert bench.follow(page) == [page, path]
    assert bench.follow("/login") == ["/login", "/dashboard", path]
    assert HANGUL.search(read(bench.orders(token=token), 403)["detail"])


def test_a_challenge_is_for_those_who_log_in(bench: Bench) -> None:
    bench.server.switch(captcha=True)
    assert bench.orders().status_code == 200
    assert bench.follow("/captcha", bench.token()) == ["/captcha", "/dashboard"]


# --- Traps: pages -------------------------------------------------------------------------------------


def test_a_wall_leads_to_the_login_page(bench: Bench) -> None:
    bench.server.switch(wall_302=True)
    assert bench.follow("/orders", bench.token()) == ["/orders", "/login"]
    assert bench.orders().status_code == 200


def test_a_wall_may_be_the_login_page_itself(bench: Bench) -> None:
    bench.server.switch(wall_200=True)
    page = bench.visit("/orders", bench.token())
    assert (page.status_code, page.text) == (200, bench.visit("/login").text)
    assert bench.follow("/dashboard", bench.token()) == ["/dashboard", "/login"]


@pytest.mark.parametrize(
    ("trap", "option", "value"),
    [
        ({"popup": True}, "popup", True),
        ({"alert": True}, "alert", True),
        ({"hang": True}, "hang", True),
        ({"crash_renderer": True}, "crash", True),
        ({"slow_table_s": 20}, "drawDelayMs", 20_000),
    ],
)
def test_what_scripts_do_the_page_tells_them(
    bench: Bench, trap: dict[str, Any], option: str, value: object
) -> None:
    bench.server.switch(**trap)
    page = bench.visit("/orders", bench.token()).text
    assert json.loads(re.findall(r'<script id="options"[^>]*>(.*?)</script>', page)[0])[option] == value


def test_a_huge_page_arrives_whole(bench: Bench) -> None:
    bench.server.switch(huge_page_bytes=3_000_000)
    assert len(bench.visit("/orders", bench.token()).content) > 3_000_000
    reply = bench.orders()
    assert len(reply.content) > 3_000_000
    assert len(numbers(reply)) == 50


def test_a_download_comes_instead_of_the_page(bench: Bench) -> None:
    bench.server.switch(download=True)
    assert "attachment" in bench.visit("/orders", bench.token()).headers["Content-Disposition"]


def test_a_redirect_never_ends(bench: Bench) -> None:
    bench.server.switch(endless_redirect=True)
    with pytest.raises(requests.exceptions.TooManyRedirects):
        bench.client.get(f"{bench.server.url}/orders", cookies={COOKIE: bench.token()}, timeout=TIMEOUT_S)


def test_an_unknown_page_has_nothing_of_the_known_ones(bench: Bench) -> None:
    bench.server.switch(unknown_page=True)
    page = bench.visit("/orders", bench.token())
    assert page.status_code == 200
    assert "script" not in page.text


# --- Traps: everything --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trap", "status", "start"),
    [
        ({"always_429": True}, 429, '{"detail"'),
        ({"throttle_once": True}, 429, '{"detail"'),
        ({"error_500": 1}, 500, '{"detail"'),
        ({"html_200": True}, 200, "<!DOCTYPE html>"),
        ({"empty_body": True}, 200, ""),
        ({"error_in_200": True}, 200, '{"code"'),
        ({"unknown_reply": True}, 200, '{"result"'),
        ({"ban_s": 5}, 403, "<!DOCTYPE html>"),
        ({"maintenance": True}, 503, "<!DOCTYPE html>"),
        ({"maintenance_200": True}, 200, "<!DOCTYPE html>"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_trap_spoils_the_reply_of_the_api(
    bench: Bench, trap: dict[str, Any], status: int, start: str
) -> None:
    bench.server.switch(**trap)
    reply = bench.orders()
    assert reply.status_code == status
    assert reply.text.startswith(start)
    assert bool(reply.text) == bool(start)


@pytest.mark.parametrize(("trap", "status"), [("ban_s", 403), ("maintenance", 503), ("maintenance_200", 200)])
def test_a_ban_and_maintenance_hold_for_pages_and_logins_too(bench: Bench, trap: str, status: int) -> None:
    bench.server.switch(**{trap: True if trap != "ban_s" else 5})
    replies = [bench.visit("/login"), bench.visit("/orders", bench.token()), bench.log_in()]
    assert [reply.status_code for reply in replies] == [status] * 3
    assert all("<h1>" in reply.text and HANGUL.search(reply.text) for reply in replies)


def test_a_ban_ends(bench: Bench) -> None:
    bench.server.switch(ban_s=30)
    statuses = []
    for elapsed_s in (0, 29, 30):
        bench.elapsed_s = elapsed_s
        statuses.append(bench.orders().status_code)
    assert statuses == [403, 403, 200]


def test_throttle_once_tells_each_seller_once_to_wait(bench: Bench) -> None:
    bench.server.switch(throttle_once=True)
    replies = [bench.orders(token=bench.token(seller=s)) for s in ("demo1", "demo2", "demo1", "demo2")]
    assert [reply.status_code for reply in replies] == [429, 429, 200, 200]
    assert replies[0].headers["Retry-After"] == "1"


def test_always_429_says_each_time_when_to_come_again(bench: Bench) -> None:
    bench.server.switch(always_429=True)
    assert [bench.orders().headers["Retry-After"] for _ in range(2)] == ["1", "1"]


def test_a_slow_shop_is_slow_with_everything_but_scripts_and_images(bench: Bench) -> None:
    bench.server.switch(slow_s=60)
    assert bench.visit("/img/1.jpg").status_code == 200
    with pytest.raises(requests.exceptions.ReadTimeout):
        bench.client.get(f"{bench.server.url}/login", timeout=0.1)


def test_a_trap_may_be_set_for_one_seller(bench: Bench) -> None:
    bench.server.switch_account("demo2", api_401=True)
    assert [bench.orders(token=bench.token(seller=s)).status_code for s in ("demo1", "demo2")] == [200, 401]


def test_a_login_meets_the_traps_of_who_logs_in(bench: Bench) -> None:
    bench.log_in(seller="demo1")
    bench.server.switch_account("demo2", wrong_password=True)
    assert bench.log_in(seller="demo2").status_code == 401


def test_a_trap_of_the_other_shop_is_unknown_here(bench: Bench) -> None:
    with pytest.raises(ValueError, match="unknown traps"):
        bench.server.switch(scope_removed=True)


def test_an_order_that_comes_in_pushes_the_list_by_one(bench: Bench) -> None:
    bench.server.switch(moving_orders=True)
    first, second = numbers(bench.orders(1)), numbers(bench.orders(2))
    assert first[-1] == second[0]
    assert {str(n) for n in first + second} == {key[1] for key in bench.shop.expected_items("demo1", 7)}
    assert numbers(bench.orders())[2:] == first[:48]


def test_an_order_that_vanishes_hides_one_from_who_reads_on(bench: Bench) -> None:
    everything = numbers(bench.orders(per_page=100))
    bench.server.switch(vanishing_orders=True)
    first, second = numbers(bench.orders(1)), numbers(bench.orders(2))
    assert first + second == everything[:50] + everything[51:]
    assert {key[1] for key in bench.shop.expected_items("demo1", 7)} == {str(n) for n in everything[2:]}


# --- Accounts and what is counted ---------------------------------------------------------------------


def test_demo_accounts_are_the_people_of_the_other_shop() -> None:
    now = datetime(2026, 11, 20, tzinfo=UTC)
    ours = list(demo_accounts(100, AblyConfig(), now))
    theirs = list(cafe24_accounts(100, Cafe24Config(), now))
    assert {line["source"] for line in ours} == {"ably"}
    for key in ("user_id", "subscription", "last_login_at"):
        assert [line[key] for line in ours] == [line[key] for line in theirs]


def test_every_tenth_account_has_a_token_and_all_get_in(bench: Bench) -> None:
    accounts = list(demo_accounts(20, bench.config, datetime(2026, 11, 20, tzinfo=UTC)))
    assert [a["user_id"] for a in accounts if set(a["credentials"]) == {"token"}] == [10, 20]
    assert numbers(bench.orders(token=accounts[9]["credentials"]["token"]))
    login = accounts[0]["credentials"]
    reply = bench.client.post(f"{bench.server.url}/seller/login/", json=login, timeout=TIMEOUT_S)
    assert reply.status_code == 200


def test_a_polite_crawl_is_accused_of_nothing(bench: Bench) -> None:
    token = read(bench.log_in())["token"]
    bench.follow("/dashboard")
    bench.visit("/orders")
    for page in (1, 2, 1):
        bench.orders(page, token)
    assert (bench.counters.requests, bench.counters.violations()) == (6, 0)


def test_only_calls_of_the_api_are_paced(served: ExitStack) -> None:
    bench = opened(served, agreement=Agreement(pace_per_s=1))
    for _ in range(5):
        bench.visit("/img/1.jpg")
        bench.visit("/login")
    assert bench.counters.violations() == 0
    for _ in range(3):
        bench.orders()
    assert bench.counters.pace_exceeded == bench.counters.violations() == 1


def test_a_request_before_retry_after_is_counted(bench: Bench) -> None:
    bench.server.switch(throttle_once=True)
    bench.orders()
    bench.elapsed_s = 0.9
    bench.orders()
    bench.elapsed_s = 1.0
    bench.orders()
    assert bench.counters.before_retry_after == bench.counters.violations() == 1


def test_a_request_during_a_ban_is_counted(served: ExitStack) -> None:
    bench = opened(served, agreement=Agreement(reaction_s=0))
    bench.server.switch(ban_s=30)
    for elapsed_s in (0, 1, 31):
        bench.elapsed_s = elapsed_s
        bench.visit("/login")
    assert bench.counters.during_ban == bench.counters.violations() == 1


def test_a_password_that_was_refused_may_not_come_again(bench: Bench) -> None:
    bench.server.switch(wrong_password=True)
    bench.log_in()
    assert bench.counters.violations() == 0
    bench.log_in()
    assert bench.counters.password_after_refusal == bench.counters.violations() == 1


def test_a_new_password_may_come_after_a_refusal(bench: Bench) -> None:
    bench.server.switch(wrong_password=True)
    bench.log_in()
    bench.server.switch(wrong_password=False)
    assert bench.log_in(password(bench.config, "demo1", 1)).status_code == 200
    assert bench.counters.violations() == 0


@pytest.mark.parametrize("trap", ["captcha", "two_factor"])
def test_after_a_challenge_a_password_may_not_come_again(bench: Bench, trap: str) -> None:
    bench.server.switch(**{trap: True})
    bench.log_in()
    bench.follow("/dashboard")
    bench.log_in()
    assert bench.counters.password_after_refusal == bench.counters.violations() == 1


def test_a_password_may_not_come_again_for_a_login_whose_reply_was_lost(bench: Bench) -> None:
    bench.server.switch(lose_login_reply=True)
    with pytest.raises(requests.exceptions.ConnectionError):
        bench.log_in()
    bench.server.switch(lose_login_reply=False)
    bench.log_in()
    assert bench.counters.password_again == bench.counters.violations() == 1


def test_a_password_may_not_come_again_before_the_session_was_used(bench: Bench) -> None:
    """Neither after a crash on the way nor in a loop of logins."""
    bench.server.switch(wall_302=True)
    for _ in range(2):
        bench.log_in()
        bench.follow("/orders")
    assert bench.counters.password_again == bench.counters.violations() == 1


def test_a_password_may_come_again_when_the_session_has_ended(bench: Bench) -> None:
    bench.server.switch(revoke_mid_job=True)
    for _ in range(2):
        token = read(bench.log_in())["token"]
        bench.orders(token=token)
    assert bench.counters.violations() == 0


def test_an_answer_to_a_challenge_is_counted(bench: Bench) -> None:
    bench.server.switch(captcha=True)
    bench.log_in()
    answer = bench.client.post(f"{bench.server.url}/captcha", data={"captcha": "x7k2p"}, timeout=TIMEOUT_S)
    assert 'name="captcha"' in answer.text
    assert bench.counters.challenge_attempts == bench.counters.violations() == 1


def test_a_request_with_the_session_of_another_seller_is_counted(bench: Bench) -> None:
    bench.log_in(seller="demo1")
    bench.orders(token=bench.token(seller="demo2"))
    assert bench.counters.foreign_session == bench.counters.violations() == 1
    bench.log_in(seller="demo3")
    assert bench.counters.foreign_session == bench.counters.violations() == 2


def test_the_counters_are_served_with_those_of_every_shop(bench: Bench) -> None:
    counted = bench.visit("/_counters").json()
    assert {"requests", "account_overlap", "images", "foreign_session", "violations"} <= counted.keys()
    assert "burst_per_mall" not in counted


def test_the_traps_are_those_that_are_documented() -> None:
    """Each trap of this shop is named in its docstring."""
    own = AblyTraps.__annotations__.keys()
    assert all(re.search(rf"\b{trap}\b", AblyTraps.__doc__ or "") for trap in own)
