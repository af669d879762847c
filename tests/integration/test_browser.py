"""Pages of the pool on a real, supervised Chrome: each alone, bounded in time, and gone at its end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import Any

import pytest
import requests
from fleet import until
from http_proxy import HttpProxy
from prometheus_client import REGISTRY
from scripted_shop import Reply, Request, ScriptedShop
from selenium.webdriver.remote.remote_connection import RemoteConnection
from selenium.webdriver.remote.webdriver import WebDriver
from supervised import Supervised
from urllib3 import HTTPResponse

from crawlfleet.browser.cdp import Cdp
from crawlfleet.browser.chrome import Chrome
from crawlfleet.browser.health import Status
from crawlfleet.browser.keyhole import Keyhole
from crawlfleet.browser.page import Page
from crawlfleet.browser.pool import UNUSABLE_S, Pool
from crawlfleet.errors import Blocked, Bug, ChromeUnusable, Crashed, Interrupted, Retry
from crawlfleet.sources.http import Connections

Open = Callable[..., AbstractContextManager[Page]]

PAGES = {
    "/": "<title>shop</title><h1>주문 목록</h1><td>홍길동 010-1234-5678</td><img src=/a.png><img src=/b.jpg>",
    "/pictures": "<title>pictures</title><link rel=icon href=/i.ico><img src=/a.png><img srcset='/s.webp 2x'><picture><source srcset=/p.avif>"
    "<img src=/b.jpg></picture><div style='background:url(/bg.gif)'>x</div><img src=/v.svg><input type=image src=/n.png>"
    "<style>@font-face { font-family: far; src: url(/far.woff2) } p { font-family: far }</style><p>가나다</p><video poster=/poster.jpg>",
    "/strict": "<title>strict</title>",
    "/served": "<title>served</title><script>navigator.serviceWorker.register('/posts.js').then(() => navigator.serviceWorker.ready)"
    ".then(() => { document.title = 'ready' })</script>",
    "/posts.js": "self.addEventListener('activate', event => event.waitUntil(clients.claim()));"
    "self.addEventListener('fetch', event => event.respondWith(fetch(event.request)))",
    "/hangs": "<title>hangs</title><script>while (true);</script>",
    "/alert": "<title>alert</title><script>alert('hello')</script>",
    "/opens": "<title>opens</title><a onclick=\"window.open('/opened'); this.textContent = 'opened'\">more</a>",
    "/opened": "<title>opened</title>",
    "/worker.js": "self.addEventListener('fetch', () => {})",
}


def _answer(request: Request) -> Reply:
    if request.path == "/loop":
        return Reply(302, b"", {"Location": "/loop"})
    if request.path == "/file":
        headers = {"Content-Type": "application/zip", "Content-Disposition": "attachment; filename=x.zip"}
        return Reply(200, b"PK", headers)
    if request.path == "/cached":
        return Reply(200, b"cached", {"Content-Type": "text/plain", "Cache-Control": "max-age=3600"})
    if request.path == "/strict":
        headers = {"Content-Type": "text/html", "Content-Security-Policy": "script-src 'self'"}
        return Reply(200, PAGES["/strict"].encode(), headers)
    kind = "text/javascript" if request.path.endswith(".js") else "text/html; charset=utf-8"
    return Reply(200, PAGES.get(request.path, "").encode(), {"Content-Type": kind})


@pytest.fixture
def site() -> Iterator[ScriptedShop]:
    with ScriptedShop(_answer) as site:
        yield site


@pytest.fixture
def sockets() -> Iterator[Connections]:
    connections = Connections()
    yield connections
    connections.close()


@pytest.fixture
def open_page(pool: Pool, sockets: Connections) -> Open:
    """A page; it is never told to stop unless the test shuts `sockets`."""

    def open_page(proxy: str | None = None) -> AbstractContextManager[Page]:
        return pool.page(proxy, sockets, lambda: None, lambda: None)

    return open_page


def free_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def tended(pool: Pool) -> Pool:
    pool.tend()
    return pool


def contexts(chrome: Supervised) -> int:
    return int(chrome.ready()["contexts"])


# A page.


def test_a_page_is_korean_in_seoul_and_hides_nothing(open_page: Open, site: ScriptedShop) -> None:
    with open_page() as page:
        page.go(site.url + "/")
        seen = page.read(
            "return [navigator.languages.join(), Intl.DateTimeFormat().resolvedOptions().timeZone,"
            " navigator.webdriver, navigator.userAgent.includes('HeadlessChrome')]"
        )
    assert seen == ["ko-KR,ko", "Asia/Seoul", True, True]


def test_images_and_fonts_are_not_even_asked_for(open_page: Open, site: ScriptedShop) -> None:
    with open_page() as page:
        page.go(site.url + "/pictures")
        page.read("new Image().src = '/later.png'")
        page.settle("return document.readyState === 'complete'", within_s=10)
        page.read("fetch('/end').then(() => { document.title = 'end' })")
        page.settle("return document.title === 'end'", within_s=10)
    assert site.paths() == ["/pictures", "/end"]


def test_settling_returns_the_first_true_value_or_none(open_page: Open, site: ScriptedShop) -> None:
    with open_page() as page:
        page.go(site.url + "/")
        page.read("setTimeout(() => { document.title = 'drawn' }, 100)")
        assert (
            page.settle("return document.title === arguments[0] && document.title", "drawn", within_s=10)
            == "drawn"
        )
        assert page.settle("return false", within_s=0.1) is None


def test_a_page_that_forbids_scripts_from_text_is_read_all_the_same(
    open_page: Open, site: ScriptedShop
) -> None:
    with open_page() as page:
        page.go(site.url + "/strict")
        assert page.settle("return document.title + arguments[0]", "er", within_s=10) == "stricter"


def test_a_likeness_shows_a_page_without_its_words(open_page: Open, site: ScriptedShop) -> None:
    with open_page() as page:
        page.go(site.url + "/")
        html, picture = page.likeness()
    assert "주문 목록" in html
    assert "홍길동" not in html
    assert "1234" not in html
    assert picture.startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("path", "verdict", "reason"),
    [("/loop", Retry, "Redirected"), ("/file", Bug, "NoPage")],
)
def test_what_is_no_page_has_a_verdict(
    open_page: Open, site: ScriptedShop, path: str, verdict: type[Exception], reason: str
) -> None:
    with open_page() as page, pytest.raises(verdict, match=reason):
        page.go(site.url + path)


def test_a_shop_that_is_down_is_not_the_browsers_fault(open_page: Open) -> None:
    with open_page() as page, pytest.raises(Retry, match="ConnectFailed"):
        page.go(f"http://127.0.0.1:{free_port()}/")


def test_an_alert_does_not_stop_a_crawl(open_page: Open, site: ScriptedShop) -> None:
    with open_page() as page:
        page.go(site.url + "/alert")
        assert page.read("return document.title") == "alert"


def test_a_page_that_goes_elsewhere_by_itself_is_read_again_later(
    open_page: Open, site: ScriptedShop
) -> None:
    with open_page() as page:
        page.go(site.url + "/opened")
        with pytest.raises(Retry, match="PageLeft"):
            page.settle("location.assign('/')", within_s=20)


def test_a_window_that_a_page_opens_is_not_the_crawls_and_ends_with_it(
    open_page: Open, site: ScriptedShop, chrome: Supervised
) -> None:
    behind = Cdp(chrome.ready()["cdp"])

    def pages() -> list[str]:
        targets = behind.call("Target.getTargets")["targetInfos"]
        return [target["url"] for target in targets if target["type"] == "page"]

    idle = pages()
    with open_page() as page:
        page.go(site.url + "/opens")
        page.driver.find_element("css selector", "a").click()
        until(lambda: f"{site.url}/opened" in pages(), "the other window")
        assert page.read("return [document.title, document.body.textContent.trim()]") == ["opens", "opened"]
        page.go(site.url + "/")
        assert page.read("return document.title") == "shop"
    until(lambda: pages() == idle, "both windows to be gone")
    behind.close()


def test_a_missing_button_is_named(open_page: Open, site: ScriptedShop) -> None:
    with open_page() as page:
        page.go(site.url + "/")
        with pytest.raises(Bug, match=r"button\.next"):
            page.press("button.next")


# Its way out.


def test_a_page_leaves_by_its_proxy_with_its_credentials(open_page: Open, site: ScriptedShop) -> None:
    with HttpProxy("seoul", ("user", "p@ss:word")) as proxy:
        with open_page(proxy.url.replace("p@ss:word", "p%40ss%3Aword")) as page:
            page.go(site.url + "/")
            page.go(site.url + "/")
            assert page.read("return document.title") == "shop"
        assert (proxy.requests, proxy.refused) == (2, 1)


def test_two_pages_at_once_leave_by_two_proxies(open_page: Open, site: ScriptedShop) -> None:
    with (
        HttpProxy("one") as one,
        HttpProxy("two") as two,
        open_page(one.url) as first,
        open_page(two.url) as second,
    ):
        first.go(site.url + "/")
        second.go(site.url + "/")
        assert (one.requests, two.requests) == (1, 1)


def test_a_proxy_that_wants_other_credentials_blocks_the_egress(open_page: Open, site: ScriptedShop) -> None:
    with HttpProxy("seoul", ("user", "right")) as proxy:
        with (
            open_page(proxy.url.replace("right", "wrong")) as page,
            pytest.raises(Blocked, match="ProxyRefused"),
        ):
            page.go(site.url + "/")
        assert proxy.requests == 0
    assert site.paths() == []


def test_a_proxy_that_is_down_blocks_the_egress(open_page: Open, site: ScriptedShop) -> None:
    with open_page(f"http://127.0.0.1:{free_port()}") as page, pytest.raises(Blocked, match="ProxyRefused"):
        page.go(site.url + "/")
    assert site.paths() == []


# Alone.

_LEAVE_TRACES = """
const done = arguments[0];
(async () => {
    document.cookie = 'seller=one; max-age=3600';
    localStorage.setItem('seller', 'one');
    sessionStorage.setItem('seller', 'one');
    await new Promise(kept => {
        const opening = indexedDB.open('seller', 1);
        opening.onupgradeneeded = () => opening.result.createObjectStore('one');
        opening.onsuccess = () => { opening.result.close(); kept(); };
    });
    await (await caches.open('seller')).put('/one', new Response('one'));
    await navigator.serviceWorker.register('/worker.js');
    await (await fetch('/cached')).text();
})().then(() => done('left'), error => done(String(error)));
"""

_FIND_TRACES = """
const done = arguments[0];
(async () => [
    document.cookie, localStorage.length, sessionStorage.length, (await indexedDB.databases()).length,
    (await caches.keys()).length, (await navigator.serviceWorker.getRegistrations()).length,
])().then(done, error => done(String(error)));
"""
NOTHING = ["", 0, 0, 0, 0, 0]


def traces(page: Page, site: ScriptedShop) -> Any:
    page.go(site.url + "/")
    return page.driver.execute_async_script(_FIND_TRACES)


def test_no_seller_sees_anything_of_another_at_once_or_later(open_page: Open, site: ScriptedShop) -> None:
    with open_page() as one, open_page() as beside:
        one.go(site.url + "/")
        assert one.driver.execute_async_script(_LEAVE_TRACES) == "left"
        assert traces(one, site) == ["seller=one", 1, 1, 1, 1, 1]
        assert traces(beside, site) == NOTHING
    with open_page() as later:
        assert traces(later, site) == NOTHING


def test_no_seller_is_served_from_the_cache_of_another(open_page: Open, site: ScriptedShop) -> None:
    for _ in range(2):
        with open_page() as page:
            page.go(site.url + "/")
            for _ in range(2):
                assert (
                    page.read(
                        "const r = new XMLHttpRequest(); r.open('GET', '/cached', false); r.send(); return r.responseText"
                    )
                    == "cached"
                )
    assert site.paths().count("/cached") == 2


def test_no_page_may_look_through_a_keyhole(open_page: Open, chrome: Supervised, site: ScriptedShop) -> None:
    """Whoever knew its port could otherwise ask Chrome for everybody's cookies."""
    cdp = Cdp(chrome.ready()["cdp"])
    context = chrome.cdp().context()
    with closing(cdp), Keyhole(cdp, context, "") as keyhole, open_page() as page:
        page.go(site.url + "/")
        look = (
            "const done = arguments[1], line = new WebSocket('ws://' + arguments[0]);"
            "line.onopen = () => done('open'); line.onerror = () => done('refused');"
        )
        assert page.driver.execute_async_script(look, keyhole.address) == "refused"


def test_selenium_sees_no_window_but_its_own(open_page: Open, site: ScriptedShop) -> None:
    with open_page() as one, open_page() as other:
        other.go(site.url + "/")
        assert one.driver.window_handles == [one.driver.current_window_handle]
        assert other.driver.window_handles == [other.driver.current_window_handle]


def test_nothing_is_left_of_a_page(chrome: Supervised, open_page: Open, site: ScriptedShop) -> None:
    for _ in range(3):
        with open_page() as page:
            page.go(site.url + "/")
    until(lambda: contexts(chrome) == 0, "the contexts to be gone")


def test_contexts_of_a_worker_that_dies_go_with_it(chrome: Supervised, pool: Pool, open_page: Open) -> None:
    with open_page():
        until(lambda: contexts(chrome) == 1, "one context")
        pool.close()
        until(lambda: contexts(chrome) == 0, "the contexts to be gone")


# What a page posts at a login.

POST = """
window.said = 0;
fetch(arguments[1] || '/login', {method: 'POST', body: arguments[0]}).then(() => { window.said = 'answered' }, () => { window.said = 'failed' });
"""
DRAWN = "return document.title"
SAID = "return window.said"


class HeldSend:
    """Sends nothing: counts, and answers 200 once it may."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.may_answer = threading.Event()

    def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> requests.Response:
        self.sent.append((url, body))
        self.may_answer.wait(60)
        response = requests.Response()
        response.status_code = 200
        response.raw = HTTPResponse(BytesIO(b"{}"), headers={"Content-Type": "application/json"}, status=200)
        return response


@pytest.fixture
def page(open_page: Open, site: ScriptedShop) -> Iterator[Page]:
    """One that has come in."""
    with open_page() as page:
        page.go(site.url + "/")
        page.settle(DRAWN, within_s=10)
        yield page


@pytest.fixture
def send() -> Iterator[HeldSend]:
    send = HeldSend()
    yield send
    send.may_answer.set()


def test_a_post_that_is_not_answered_in_time_never_leaves_chrome(
    page: Page, site: ScriptedShop, send: HeldSend
) -> None:
    with suppress(Retry), page.posts_by(send):
        page.read(POST, "secret")
        until(lambda: send.sent, "the post to be taken over")
        raise Retry("LoginUnclear")
    assert page.settle(SAID, within_s=10) == "failed"
    page.read(POST, "secret")
    assert page.settle(SAID, within_s=10) == "failed"
    assert len(send.sent) == 1
    assert "/login" not in site.paths()


def test_what_a_page_posts_again_by_itself_is_not_sent_again(
    page: Page, site: ScriptedShop, send: HeldSend
) -> None:
    send.may_answer.set()
    with page.posts_by(send):
        seen = []
        for body, address in (("secret", "/login"), ("secret again", "/login?2"), ("번호", "/other")):
            page.read(POST, body, address)
            seen.append(page.settle(SAID, within_s=10))
    page.read(POST, "later")
    assert page.settle(SAID, within_s=10) == "answered"
    assert seen == ["answered", "failed", "answered"]
    assert [body for _, body in send.sent] == [b"secret", "번호".encode()]
    assert site.paths().count("/login") == 1


def test_a_post_that_is_out_when_the_login_has_succeeded_fails_and_later_ones_go_their_way(
    page: Page, site: ScriptedShop, send: HeldSend
) -> None:
    with page.posts_by(send):
        page.read(POST, "counter")
        until(lambda: send.sent, "the post to be taken over")
    assert page.settle(SAID, within_s=10) == "failed"
    assert site.paths() == ["/"]
    page.read(POST, "later", "/orders")
    assert page.settle(SAID, within_s=10) == "answered"
    assert site.paths() == ["/", "/orders"]


def test_asked_for_the_answers_a_page_posts_no_more_until_its_login_has_succeeded(
    page: Page, site: ScriptedShop, send: HeldSend
) -> None:
    send.may_answer.set()
    with page.posts_by(send):
        page.read(POST, "secret")
        assert page.settle(SAID, within_s=10) == "answered"
        assert page.answers() == [200]
        page.read(POST, "late", "/other")
        assert page.settle(SAID, within_s=10) == "failed"
    page.read(POST, "later")
    assert page.settle(SAID, within_s=10) == "answered"
    assert site.paths() == ["/", "/login"]


def test_a_login_that_finds_chrome_gone_has_crashed(pool: Pool, page: Page, send: HeldSend) -> None:
    pool.close()
    with pytest.raises(Crashed, match="BrowserLost"), page.posts_by(send):
        pass


@pytest.mark.parametrize("body", ["null", "new Uint8Array([0, 255, 10])"], ids=["none", "binary"])
def test_a_post_is_sent_as_the_page_made_it(
    page: Page, site: ScriptedShop, send: HeldSend, body: str
) -> None:
    send.may_answer.set()
    with page.posts_by(send):
        page.read(POST.replace("arguments[0]", body))
        assert page.settle(SAID, within_s=10) == "answered"
    assert [sent for _, sent in send.sent] == [{"null": b""}.get(body, b"\x00\xff\n")]


def test_a_post_of_a_page_with_a_service_worker_is_taken_over_too(
    open_page: Open, site: ScriptedShop, send: HeldSend
) -> None:
    """Chrome would show the worker's request to nobody, and post it again by itself."""
    send.may_answer.set()
    with open_page() as page:
        page.go(site.url + "/served")
        page.settle("return document.title === 'ready' && navigator.serviceWorker.controller", within_s=10)
        with page.posts_by(send):
            page.read(POST, "secret")
            assert page.settle(SAID, within_s=10) == "answered"
    assert len(send.sent) == 1
    assert "/login" not in site.paths()


def test_a_page_behind_a_proxy_posts_by_the_worker_too(
    open_page: Open, site: ScriptedShop, send: HeldSend
) -> None:
    send.may_answer.set()
    with HttpProxy("seoul", ("user", "secret")) as proxy, open_page(proxy.url) as page:
        page.go(site.url + "/")
        page.settle(DRAWN, within_s=10)
        with page.posts_by(send):
            page.read(POST, "secret")
            assert page.settle(SAID, within_s=10) == "answered"
        assert len(send.sent) == 1
        page.read(POST, "later")
        assert page.settle(SAID, within_s=10) == "answered"
    assert site.paths().count("/login") == 1


def test_a_page_posts_nothing_after_a_login_that_failed(
    page: Page, site: ScriptedShop, send: HeldSend
) -> None:
    send.may_answer.set()
    with suppress(Retry), page.posts_by(send):
        page.read(POST, "secret")
        assert page.settle(SAID, within_s=10) == "answered"
        raise Retry("LoginUnclear")
    page.read(POST, "secret")
    assert page.settle(SAID, within_s=10) == "failed"
    assert len(send.sent) == 1
    assert "/login" not in site.paths()


def test_a_post_that_was_taken_over_ends_with_its_worker(
    chrome: Supervised, pool: Pool, open_page: Open, site: ScriptedShop, send: HeldSend
) -> None:
    """Chrome sends what was stopped once nobody stops it any more; the pages have to be gone before."""
    with suppress(Crashed), ExitStack() as pages:
        for number in range(8):
            page = pages.enter_context(open_page())
            page.go(site.url + "/")
            page.settle(DRAWN, within_s=10)
            pages.enter_context(page.posts_by(send))
            page.read(POST, str(number))
        until(lambda: len(send.sent) == 8, "the posts to be taken over")
        pool.close()
        until(lambda: contexts(chrome) == 0, "the pages to be gone")
    assert len(send.sent) == 8
    assert "/login" not in site.paths()


# Bounded.


def test_a_hung_page_holds_up_nobody_else(open_page: Open, site: ScriptedShop) -> None:
    with open_page() as hung:
        hung.go(site.url + "/hangs")
        with open_page() as page:
            page.go(site.url + "/")
            assert page.read("return document.title") == "shop"


def test_a_page_that_hangs_is_told_from_a_driver_that_is_stuck(open_page: Open, site: ScriptedShop) -> None:
    with open_page() as page:
        page.go(site.url + "/hangs")
        remote = page.driver.command_executor
        assert isinstance(remote, RemoteConnection)
        remote.client_config.timeout = 2  # from here on: a busy chromedriver may need longer to attach
        with pytest.raises(Retry, match="PageHangs"):
            page.read("return 1")


def test_a_command_is_ended_from_outside(
    chrome: Supervised, open_page: Open, sockets: Connections, site: ScriptedShop
) -> None:
    with open_page() as page:
        page.go(site.url + "/hangs")
        threading.Timer(0.2, sockets.shut).start()
        with pytest.raises(Crashed):
            page.read("return 1")
    until(lambda: contexts(chrome) == 0, "the contexts to be gone")


def test_a_crashed_page_is_told_at_once(chrome: Supervised, open_page: Open, site: ScriptedShop) -> None:
    with open_page() as page, open_page() as other:
        page.go(site.url + "/")
        other.go(site.url + "/")
        page._cdp.tell("Page.crash", {}, session=page._context.session)
        with pytest.raises(Crashed, match="TabCrashed"):
            page.read("return 1")
        assert other.read("return document.title") == "shop"
    until(lambda: contexts(chrome) == 0, "the contexts to be gone")


@pytest.mark.parametrize("program", ["chromium", "chromedriver"])
def test_after_a_kill_the_crawl_is_told_and_the_next_one_finds_a_new_browser(
    chrome: Supervised, pool: Pool, open_page: Open, site: ScriptedShop, program: str
) -> None:
    before = chrome.ready()["generation"]
    with open_page() as page:
        page.go(site.url + "/")
        os.kill(chrome.pid_of(program), signal.SIGKILL)
        with pytest.raises(Crashed):
            page.read("return 1")
    chrome.ready(before + 1)
    until(lambda: tended(pool).is_able, "the pool to be able again")
    with open_page() as page:
        page.go(site.url + "/")


def test_while_there_is_no_browser_a_crawl_goes_back_uncharged(
    chrome: Supervised, pool: Pool, open_page: Open
) -> None:
    before = chrome.ready()["generation"]
    os.kill(chrome.pid_of("chromium"), signal.SIGKILL)
    until(lambda: not pool.is_able, "the pool to notice")  # untended, it does not see the next one
    with pytest.raises(Interrupted, match="BrowserUnavailable"), open_page():
        pass
    chrome.ready(before + 1)


# Recycled.


def test_after_so_many_crawls_chrome_is_started_afresh_once_the_last_one_has_ended(
    chrome: Supervised, sockets: Connections
) -> None:
    before = chrome.ready()["generation"]
    pool = Pool(Chrome(chrome.url), recycle_jobs=2)
    pool.start(threading.Event().wait)
    with pool.page(None, sockets, lambda: None, lambda: None):
        with pool.page(None, sockets, lambda: None, lambda: None):
            pass
        pool.tend()
        assert not pool.is_able
        assert chrome.ready()["generation"] == before
    until(lambda: tended(pool) and chrome.ready()["generation"] > before, "a fresh Chrome")
    until(lambda: tended(pool).is_able, "the pool to be able again")
    pool.close()


def test_a_worker_that_finds_a_used_chrome_starts_it_afresh(
    chrome: Supervised, pool: Pool, open_page: Open
) -> None:
    before = chrome.ready()["generation"]
    with open_page():
        newcomer = Pool(Chrome(chrome.url))
        newcomer.start(threading.Event().wait)
        newcomer.close()
    assert chrome.ready()["generation"] == before + 1


def test_a_worker_that_finds_no_chrome_says_where_it_looked() -> None:
    passed_s = 0.0

    def wait(seconds: float) -> None:
        nonlocal passed_s
        passed_s += 10 * seconds

    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ChromeUnusable, match=url):
        Pool(Chrome(url), clock=lambda: passed_s).start(wait)
    assert passed_s > UNUSABLE_S


def test_a_chrome_that_is_old_is_started_afresh(chrome: Supervised) -> None:
    before = chrome.ready()["generation"]
    pool = Pool(Chrome(chrome.url), recycle_age_s=0)
    until(lambda: tended(pool) and chrome.ready()["generation"] > before, "a younger Chrome")
    pool.close()


class SwollenChrome(Chrome):
    """The real one; once `is_full` its memory is said to be nearly full."""

    is_full = False

    def status(self) -> Status | None:
        seen = super().status()
        return replace(seen, memory_mb=900, limit_mb=1000) if seen and self.is_full else seen


def test_while_memory_runs_out_no_crawl_begins_and_an_idle_chrome_is_started_afresh(
    chrome: Supervised, sockets: Connections
) -> None:
    before = chrome.ready()["generation"]
    swollen = SwollenChrome(chrome.url)
    pool = Pool(swollen)
    until(lambda: tended(pool).is_able, "the pool to be able")
    with pool.page(None, sockets, lambda: None, lambda: None):
        swollen.is_full = True
        until(lambda: "memory is full (900 of 1000 MB)" in tended(pool).why(), "the pool to notice")
        assert not pool.is_able
        assert chrome.ready()["generation"] == before
    until(lambda: tended(pool) and chrome.ready()["generation"] > before, "a smaller Chrome")
    pool.close()


def test_a_chrome_that_was_not_cleaned_up_is_started_afresh_and_counted_once(
    chrome: Supervised, pool: Pool, open_page: Open
) -> None:
    """The context is ended behind the pool's back, so that Chrome does not confirm its end to the pool."""
    before = chrome.ready()["generation"]
    recycled = partial(REGISTRY.get_sample_value, "crawlfleet_browser_restarts_total", {"reason": "recycled"})
    counted = recycled() or 0
    behind = Cdp(chrome.ready()["cdp"])
    with open_page():
        (context,) = behind.call("Target.getBrowserContexts")["browserContextIds"]
        behind.call("Target.disposeBrowserContext", {"browserContextId": context})
    behind.close()
    until(lambda: tended(pool) and chrome.ready()["generation"] > before, "a clean Chrome")
    until(lambda: tended(pool).is_able, "the pool to be able again")
    assert recycled() == counted + 1


def test_a_window_that_is_not_the_crawls_own_is_not_handed_out(
    open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WebDriver, "current_window_handle", "somebody-else's")
    with pytest.raises(Crashed, match="WrongWindow"), open_page():
        pass
