"""Ably's adapter on the stand-in seller admin, with a real Chrome: first one crawl, then real workers.

The shop's counters judge how passwords were treated; its truth is what a crawl has to bring.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from browser_crawl import BrowserCrawl
from fleet import Fleet, WatchedAblyShop, WorkerProcess, until
from http_proxy import HttpProxy
from supervised import Supervised

from crawlfleet.browser.page import COMMAND_S, Page
from crawlfleet.browser.pool import Pool
from crawlfleet.cli import main
from crawlfleet.demo.ably.orders import Strategy
from crawlfleet.errors import AuthFailed, Blocked, Bug, Crashed, CrawlEnded, Retry, Throttled
from crawlfleet.sources import ably
from crawlfleet.sources.ably import Ably

USER, TOKEN_USER = 3, 10


@pytest.fixture
def shop() -> Iterator[WatchedAblyShop]:
    with WatchedAblyShop(draw_delay_s=0.1) as shop:
        yield shop


# One crawl.


class Seller:
    """Crawls of one seller in this process, each in a page of its own; a session that was won is kept."""

    def __init__(self, pool: Pool, shop: WatchedAblyShop, user_id: int = USER) -> None:
        self._pool = pool
        self._shop = shop
        self._user_id = user_id
        self.credentials = shop.credentials(user_id)

    def read(self, strategy: Strategy = "dom", **options: Any) -> dict[tuple[str, str], Any]:
        crawl = BrowserCrawl(self._pool, self._shop.base_url, self.credentials)
        try:
            items = list(Ably({"strategy": strategy, **options}).crawl(crawl))
        finally:
            self.credentials = crawl.credentials
            crawl.close()
        assert len({item.external_id for item in items}) == len(items), "an order item came twice"
        return {(item.kind, item.external_id): dict(item.body) for item in items}

    def ending(self, strategy: Strategy = "dom", **options: Any) -> CrawlEnded:
        with pytest.raises(CrawlEnded) as raised:
            self.read(strategy, **options)
        return raised.value

    def truth(self, strategy: Strategy = "dom") -> dict[tuple[str, str], Any]:
        return self._shop.truth([self._user_id], strategy=strategy)[self._user_id]


@pytest.fixture
def seller(pool: Pool, shop: WatchedAblyShop) -> Seller:
    return Seller(pool, shop)


BOTH = pytest.mark.parametrize("strategy", ["dom", "http"])


@BOTH
def test_all_pages_are_read(seller: Seller, shop: WatchedAblyShop, strategy: Strategy) -> None:
    assert seller.read(strategy) == seller.truth(strategy)
    assert shop.violations() == {}


@BOTH
def test_a_session_is_used_until_the_shop_ends_it(
    seller: Seller, shop: WatchedAblyShop, strategy: Strategy
) -> None:
    for _ in range(2):
        seller.read(strategy)
    assert len(shop.seen("login")) == 1
    shop.shop.end_sessions(f"demo{USER}")
    assert seller.read(strategy) == seller.truth(strategy)
    assert len(shop.seen("login")) == 2
    assert shop.violations() == {}


@BOTH
def test_a_seller_with_a_token_only_needs_no_login(
    pool: Pool, shop: WatchedAblyShop, strategy: Strategy
) -> None:
    seller = Seller(pool, shop, TOKEN_USER)
    assert seller.read(strategy) == seller.truth(strategy)
    assert shop.seen("login page") == []
    shop.shop.end_sessions(f"demo{TOKEN_USER}")
    ended = seller.ending(strategy)
    assert isinstance(ended, AuthFailed)
    assert ended.reason == "SessionExpired"


@BOTH
def test_an_empty_shop_is_empty(pool: Pool, strategy: Strategy) -> None:
    with WatchedAblyShop(orders_per_seller=0) as shop:
        assert Seller(pool, shop).read(strategy) == {}
        assert shop.violations() == {}


@pytest.mark.parametrize(
    "trap", [{"popup": True}, {"alert": True}, {"slow_table_s": 2}, {"huge_page_bytes": 20_000_000}], ids=str
)
def test_a_page_in_a_state_is_read_all_the_same(
    seller: Seller, shop: WatchedAblyShop, trap: dict[str, Any]
) -> None:
    shop.shop.switches.switch({"all": trap})
    assert seller.read() == seller.truth()


@BOTH
def test_orders_that_come_in_meanwhile_hide_none(
    seller: Seller, shop: WatchedAblyShop, strategy: Strategy
) -> None:
    shop.shop.switches.switch({"all": {"moving_orders": True}})
    truth = seller.truth(strategy)
    seen = seller.read(strategy)
    assert {key: seen.get(key) for key in truth} == truth


@BOTH
def test_orders_that_vanish_meanwhile_hide_none_in_the_end(
    seller: Seller, shop: WatchedAblyShop, strategy: Strategy
) -> None:
    """The list moves with every page, until twenty have gone: such a crawl is given up, and a later one is complete."""
    shop.shop.switches.switch({"all": {"vanishing_orders": True}})
    for _ in range(5):
        with suppress(Retry):
            seen = seller.read(strategy)
            break
    truth = seller.truth(strategy)
    assert {key: seen.get(key) for key in truth} == truth


@pytest.mark.parametrize(
    ("strategy", "trap", "verdict", "reason"),
    [
        ("dom", "wall_302", AuthFailed, "LoginLoop"),
        ("dom", "wall_200", AuthFailed, "LoginLoop"),
        ("dom", "api_401", AuthFailed, "LoginLoop"),
        ("dom", "silent_logout", AuthFailed, "LoginLoop"),
        ("dom", "revoke_mid_job", Retry, "LoggedOut"),
        ("dom", "maintenance", Throttled, "Maintenance"),
        ("dom", "maintenance_200", Throttled, "Maintenance"),
        ("dom", "always_429", Throttled, "TooManyRequests"),
        ("dom", "error_in_200", Retry, "ServerError"),
        ("dom", "html_200", Retry, "ServerError"),
        ("dom", "empty_body", Retry, "ServerError"),
        ("dom", "unknown_reply", Retry, "ServerError"),
        ("dom", "download", Bug, "NoPage"),
        ("dom", "endless_redirect", Retry, "Redirected"),
        ("dom", "crash_renderer", Crashed, "TabCrashed"),
        ("http", "api_401", AuthFailed, "LoginLoop"),
        ("http", "silent_logout", AuthFailed, "LoginLoop"),
        ("http", "always_429", Throttled, "TooManyRequests"),
        ("http", "error_in_200", Bug, "UnexpectedReply"),
        ("http", "html_200", AuthFailed, "LoginLoop"),
        ("http", "empty_body", Bug, "UnexpectedReply"),
        ("http", "unknown_reply", Bug, "UnexpectedReply"),
    ],
)
def test_what_is_no_list_of_orders_is_never_an_empty_one(
    seller: Seller,
    shop: WatchedAblyShop,
    strategy: Strategy,
    trap: str,
    verdict: type[CrawlEnded],
    reason: str,
) -> None:
    shop.shop.switches.switch({"all": {trap: True}})
    ended = seller.ending(strategy)
    assert (type(ended), ended.reason) == (verdict, reason)
    assert shop.violations().keys() <= {"before_retry_after"}


@BOTH
def test_a_ban_page_blocks_the_egress(seller: Seller, shop: WatchedAblyShop, strategy: Strategy) -> None:
    shop.shop.switches.switch({"all": {"ban_s": 60.0}})
    ended = seller.ending(strategy)
    assert isinstance(ended, Blocked)
    assert shop.seen("login") == []


@pytest.mark.parametrize(
    ("trap", "reason"),
    [("wrong_password", "LoginRefused"), ("captcha", "Captcha"), ("two_factor", "TwoFactor")],
)
@BOTH
def test_a_login_that_needs_a_person_parks_the_account(
    seller: Seller, shop: WatchedAblyShop, strategy: Strategy, trap: str, reason: str
) -> None:
    shop.shop.switches.switch({"all": {trap: True}})
    ended = seller.ending(strategy)
    assert (type(ended), ended.reason) == (AuthFailed, reason)
    assert len(shop.seen("login")) == 1
    assert shop.violations() == {}


def test_an_unknown_page_is_kept_without_its_words(seller: Seller, shop: WatchedAblyShop) -> None:
    shop.shop.switches.switch({"all": {"unknown_page": True}})
    ended = seller.ending()
    assert isinstance(ended, Bug)
    assert ended.reason == "UnknownPage"
    assert ended.snapshot is not None
    assert "<h1>" in ended.snapshot
    assert ended.picture is not None
    assert ended.picture.startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("email", "options.selectors"),
        ("submit", "the page has no .nowhere"),
        ("pagination", "options.selectors.pagination"),
        ("head", "options.selectors.head"),
        ("row", "options.selectors"),
    ],
)
def test_wrong_selectors_are_told_as_such(
    seller: Seller, shop: WatchedAblyShop, name: str, said: str
) -> None:
    ended = seller.ending(selectors={name: ".nowhere"})
    assert isinstance(ended, Bug)
    assert said in ended.detail
    assert shop.violations() == {}


def test_a_login_whose_reply_is_lost_is_submitted_once(seller: Seller, shop: WatchedAblyShop) -> None:
    """Chrome alone would post it again, up to three times."""
    shop.switch(lose_login_reply=True)
    ended = seller.ending()
    assert ended.reason == "LoginUnclear"
    assert not ended.never_sent
    assert len(shop.seen("login")) == 1


def test_a_login_that_could_not_be_sent_may_be_repeated(
    seller: Seller, shop: WatchedAblyShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise Retry("ConnectFailed", never_sent=True)

    monkeypatch.setattr(BrowserCrawl, "_post", refuse)
    ended = seller.ending()
    assert (ended.reason, ended.never_sent) == ("ConnectFailed", True)
    assert shop.seen("login") == []


def test_a_login_whose_reply_comes_too_late_is_submitted_once(
    seller: Seller, shop: WatchedAblyShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chrome would post by itself what has been taken over, once nobody stops it any more."""
    gate, press = shop.gate("login"), Page.press

    def press_and_see_it_sent(page: Page, css: str) -> None:
        press(page, css)
        gate.wait()

    monkeypatch.setattr(Page, "press", press_and_see_it_sent)
    monkeypatch.setattr(ably, "LOGIN_S", 0.5)
    ended = seller.ending()
    gate.open()
    assert (ended.reason, ended.never_sent) == ("LoginUnclear", False)
    assert len(shop.seen("login")) == 1


def test_a_login_form_whose_scripts_do_not_come_is_left_alone(
    seller: Seller, shop: WatchedAblyShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them the browser would send it as it stands: with the password in the address.

    On a busy machine chromedriver itself may wait for the page, until its command's deadline: DriverStuck.
    """
    gate = shop.gate("static")
    with monkeypatch.context() as impatient:
        impatient.setattr(ably, "SETTLE_S", 1.0)
        assert seller.ending().reason in ("PageTimeout", "DriverStuck")
    gate.open()
    assert len(shop.seen("login page")) == 1
    assert seller.read() == seller.truth()


def test_an_old_session_is_not_taken_for_a_new_one(seller: Seller, shop: WatchedAblyShop) -> None:
    seller.read()
    shop.shop.end_sessions(f"demo{USER}")
    shop.switch(lose_login_reply=True)
    assert seller.ending().reason == "LoginUnclear"


@pytest.mark.parametrize(
    ("trap", "reason"), [({"ban_s": 60.0}, "BanPage"), ({"maintenance": True}, "Maintenance")]
)
def test_a_login_that_was_not_judged_may_be_repeated(
    seller: Seller, shop: WatchedAblyShop, trap: dict[str, Any], reason: str
) -> None:
    shop.switch_account(f"demo{USER}", **trap)
    ended = seller.ending()
    assert (ended.reason, ended.never_sent) == (reason, True)


# Real workers.


@pytest.fixture
def chrome_url(chrome: Supervised) -> str:
    chrome.ready()
    return chrome.url


def start(fleet: Fleet, chrome_url: str, *, drain_s: int = 120) -> WorkerProcess:
    return fleet.start(CRAWLFLEET_CHROME_URL=chrome_url, CRAWLFLEET_DRAIN_SECONDS=str(drain_s))


@BOTH
def test_a_fleet_brings_the_truth_of_every_seller(
    fleet: Fleet, shop: WatchedAblyShop, chrome_url: str, strategy: Strategy
) -> None:
    users = range(1, 13)
    fleet.ably(shop, users=users, maxConcurrent=5, options={"strategy": strategy})
    fleet.plan()
    worker = start(fleet, chrome_url)
    assert worker.exit_code() == 0, worker.text()[-3000:]
    assert set(fleet.tasks().values()) == {("ok", "ok")}
    assert fleet.items() == shop.truth(users, strategy=strategy)
    assert shop.violations() == {}
    assert shop.shop.witness.counters().as_dict()["images"] == 0


STEPS = {"login page": "ok", "login": "dead", "dashboard": "dead", "orders": "ok", "order_items": "ok"}
"""Where a worker is killed → what becomes of the account: only while its password may be on its way nobody can know."""


def test_a_worker_killed_at_any_step_of_a_login_never_submits_a_password_again(
    fleet: Fleet, shop: WatchedAblyShop, chrome_url: str
) -> None:
    """One account is held at each step, whichever comes there first."""
    fleet.ably(shop, users=range(1, len(STEPS) + 1))
    fleet.plan()
    gates = {step: shop.gate(step, most=1) for step in STEPS}
    first = start(fleet, chrome_url)
    for gate in gates.values():
        gate.wait()
    first.kill()
    for gate in gates.values():
        gate.open()
    fleet.expire()
    second = start(fleet, chrome_url)
    assert second.exit_code(220) == 0, second.text()[-3000:]
    assert {name: count for name, count in shop.violations().items() if "password" in name} == {}
    assert sorted(state for state, _ in fleet.tasks().values()) == sorted(STEPS.values())
    dead = {f"demo{user}" for user, (state, _) in fleet.tasks().items() if state == "dead"}
    assert dead == {gates[step].held[0].account for step, state in STEPS.items() if state == "dead"}
    assert {("crashed", "WorkerLost"), ("auth", "LoginInterrupted")} <= fleet.all_failures()


@pytest.mark.parametrize("way_out", ["direct", "proxy"])
def test_a_login_whose_reply_is_lost_is_not_submitted_again_by_any_worker(
    fleet: Fleet, shop: WatchedAblyShop, chrome_url: str, way_out: str
) -> None:
    shop.switch(lose_login_reply=True)
    with HttpProxy("seoul", ("user", "secret")) as proxy:
        egresses = {"proxies": {"seoul": proxy.url}} if way_out == "proxy" else {}
        fleet.ably(shop, users=[USER], **egresses)
        fleet.plan()
        assert start(fleet, chrome_url).exit_code() == 0
    assert fleet.tasks() == {USER: ("dead", "auth")}
    assert fleet.failures(USER) == [("auth", "LoginInterrupted")]
    assert len(shop.seen("login")) == 1


@BOTH
def test_a_shop_that_ends_each_session_at_once_sees_the_password_once(
    fleet: Fleet, shop: WatchedAblyShop, chrome_url: str, strategy: Strategy
) -> None:
    shop.switch(wall_302=True, api_401=True)
    fleet.ably(shop, users=[USER], options={"strategy": strategy}, budgets={"retry": 2})
    fleet.plan()
    assert start(fleet, chrome_url).exit_code() == 0
    assert fleet.failures(USER) == [("auth", "LoginLoop")]
    assert len(shop.seen("login")) == 1


def test_a_login_that_is_drained_out_is_finished_first(
    fleet: Fleet, shop: WatchedAblyShop, chrome_url: str
) -> None:
    fleet.ably(shop, users=[USER])
    fleet.plan()
    gate = shop.gate("login", most=1)
    worker = start(fleet, chrome_url, drain_s=1)
    gate.wait()
    worker.send(signal.SIGTERM)
    until(lambda: fleet.scalar("select unable <> '{}' from worker"), "the drain to be told")
    gate.open()
    assert worker.exit_code() == 75
    assert "token" in fleet.credentials(USER, "ably")
    assert fleet.scalar("select state::text from account") == "ok"


IMPATIENT = """
import signal
import sys
from crawlfleet.browser import pool
from crawlfleet.cli import main
signal.signal(signal.SIGUSR1, lambda *_: setattr(pool, "UNUSABLE_S", 3.0))
sys.exit(main(["worker"]))
"""
"""It waits no longer than that for Chrome once it is told by SIGUSR1."""


def test_a_worker_whose_chrome_stays_away_leaves_its_work_to_the_next(
    fleet: Fleet, shop: WatchedAblyShop, chrome: Supervised, chrome_url: str
) -> None:
    fleet.ably(shop, users=[USER])
    fleet.plan()
    gate = shop.gate("orders", most=1)
    worker = fleet.start(program=IMPATIENT, CRAWLFLEET_CHROME_URL=chrome_url)
    gate.wait()
    worker.send(signal.SIGUSR1)
    chrome.process.terminate()
    gate.open()
    assert worker.exit_code() == 69, worker.text()[-3000:]
    [said] = worker.events("Chrome has been away for too long; a new process takes over")
    assert "crawlfleet chrome" in said["why"]
    chrome.start_again()
    assert start(fleet, chrome_url).exit_code() == 0
    assert fleet.items() == shop.truth([USER], strategy="dom")
    assert shop.violations() == {}


def test_a_page_that_hangs_ends_at_its_deadline_and_others_go_on(
    fleet: Fleet, shop: WatchedAblyShop, chrome_url: str
) -> None:
    """Chromedriver alone would wait for it until COMMAND_S. The others have a source, and time, of their own."""
    shop.switch_account(f"demo{USER}", hang=True)
    fleet.ably(shop, users=[USER], jobTimeoutSeconds=10, budgets={"retry": 0})
    others = [user for user in range(1, 6) if user != USER]
    elsewhere = shop.base_url.replace("127.0.0.1", "localhost")
    fleet.declare("others", adapter="ably", baseURL=elsewhere, maxConcurrent=4)
    fleet.add_accounts("others", [(user, shop.credentials(user)) for user in others])
    fleet.plan()
    worker = start(fleet, chrome_url)
    assert worker.exit_code() == 0, worker.text()[-3000:]
    assert fleet.tasks() == {u: ("dead", "retry") if u == USER else ("ok", "ok") for u in range(1, 6)}
    assert fleet.failures(USER) == [("retry", "Deadline")]
    [hung] = [event for event in worker.events("crawled") if event["user_id"] == USER]
    assert hung["ms"] < COMMAND_S * 1000


def test_why_writes_the_kept_page_into_a_folder(
    fleet: Fleet, shop: WatchedAblyShop, chrome_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.shop.switches.switch({"all": {"unknown_page": True}})
    fleet.ably(shop, users=[USER])
    fleet.plan()
    assert start(fleet, chrome_url).exit_code() == 0
    assert main(["why", str(USER), "--database-url", fleet.url]) == 0
    assert "--save DIR" in capsys.readouterr().out
    assert main(["why", str(USER), "--database-url", fleet.url, "--save", str(tmp_path / "pages")]) == 0
    files = sorted(path.suffix for path in (tmp_path / "pages").iterdir())
    assert files == [".html", ".jpg"]
    assert str(tmp_path / "pages") in capsys.readouterr().out
