"""One crawl's page: ordinary Selenium on the one window of its browser context (`context`), which nobody else has.

Every command ends in time: the page's own time-outs, a limit on chromedriver's answer, and `Connections.shut`, which
ends a command from outside. Foreign errors become verdicts here.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.resources import files
from typing import Any

import requests
import urllib3.exceptions as u3
from selenium import webdriver
from selenium.common.exceptions import (
    JavascriptException,
    TimeoutException,
    UnexpectedAlertPresentException,
    WebDriverException,
)
from selenium.webdriver.common.proxy import Proxy, ProxyType
from selenium.webdriver.remote.client_config import ClientConfig
from selenium.webdriver.remote.remote_connection import RemoteConnection
from selenium.webdriver.remote.webdriver import WebDriver

from crawlfleet.browser.cdp import Cdp, CdpFailed, CdpLate
from crawlfleet.browser.chrome import ask
from crawlfleet.browser.context import Context
from crawlfleet.browser.posts import Answer, Posts, Send
from crawlfleet.errors import Bug, Crashed, CrawlEnded, Retry
from crawlfleet.metrics import COMMAND_TIMEOUTS
from crawlfleet.sources.http import Connections, known_pools, proxy_refused

LOAD_S = 25.0
SCRIPT_S = 22.0
COMMAND_S = 25.0
"""Longer than a script may take: past it chromedriver itself is stuck, mostly behind a page that hangs."""
STUCK = "DriverStuck"
HANGS_S = 1.0
_SETTLE = files(__package__).joinpath("settle.js").read_text()
_REDACT = files(__package__).joinpath("redact.js").read_text()
QUIT_S = 1.5
"""With `context.DISPOSE_S`: how long after its end a crawl may still hold its slot."""

_UNREACHABLE = (
    "ERR_CONNECTION",
    "ERR_NAME_NOT_RESOLVED",
    "ERR_ADDRESS",
    "ERR_TIMED_OUT",
    "ERR_EMPTY_RESPONSE",
    "ERR_NETWORK",
    "ERR_INTERNET",
)
_PROXY = ("ERR_PROXY", "ERR_TUNNEL", "ERR_UNEXPECTED_PROXY_AUTH", "ERR_INVALID_AUTH")


def attach(webdriver_url: str, chrome_address: str, context: Context, connections: Connections) -> WebDriver:
    """Selenium on the context's window; it finds Chrome at HOST:PORT. Its sockets are known to `connections`."""
    options = webdriver.ChromeOptions()
    options.debugger_address = chrome_address
    options.page_load_strategy = "eager"
    options.unhandled_prompt_behavior = "dismiss"
    options.timeouts = {"pageLoad": round(LOAD_S * 1000), "script": round(SCRIPT_S * 1000)}
    config = ClientConfig(
        remote_server_addr=webdriver_url,
        timeout=round(COMMAND_S),
        proxy=Proxy({"proxyType": ProxyType.DIRECT}),
        init_args_for_pool_manager={"init_args_for_pool_manager": {"retries": False}},
    )
    remote = RemoteConnection(client_config=config)
    remote._conn.pool_classes_by_scheme = known_pools(connections)
    driver = webdriver.Remote(command_executor=remote, options=options)
    try:
        if driver.current_window_handle != context.target:
            raise Crashed("WrongWindow", "the browser handed out a window that is not this crawl's")
    except BaseException:
        quit_session(webdriver_url, driver)
        raise
    return driver


def sessions(webdriver_url: str) -> list[str]:
    """The Selenium sessions that chromedriver holds."""
    try:
        reply = ask("GET", f"{webdriver_url}/sessions", QUIT_S).json()
        return [session["id"] for session in reply["value"]]
    except (requests.RequestException, KeyError, TypeError):
        return []


def quit_session(webdriver_url: str, driver: WebDriver) -> bool:
    """End the Selenium session, not its Chrome, by a connection of its own; False if chromedriver does not answer."""
    try:
        return ask("DELETE", f"{webdriver_url}/session/{driver.session_id}", QUIT_S).ok
    except requests.RequestException:
        return False
    finally:
        with suppress(OSError):
            driver.command_executor.close()  # type: ignore[union-attr]  # always our RemoteConnection


class Page:
    """Implements `sources.Page`. `turn` waits for the crawl's turn at its egress, `check` ends a crawl that must not go on."""

    def __init__(
        self,
        driver: WebDriver,
        cdp: Cdp,
        context: Context,
        *,
        turn: Callable[[], None],
        check: Callable[[], None],
    ) -> None:
        self.driver = driver
        self._cdp = cdp
        self._context = context
        self._turn = turn
        self._check = check
        self._posts: Posts | None = None

    def go(self, url: str) -> None:
        self._turn()
        with self._verdicts():  # not by chromedriver, which does not tell a page that failed to load
            reply = self._cdp.call(
                "Page.navigate",
                {"url": url},
                session=self._context.session,
                timeout_s=LOAD_S,
                check=self._check,
            )
        if self._context.refused.is_set():
            raise proxy_refused()
        if reply.get("isDownload"):
            raise Bug("NoPage", "the shop answered with a download where a page was expected")
        if error := reply.get("errorText"):
            raise _of_navigation(str(error).removeprefix("net::"))

    def press(self, css: str) -> None:
        self._turn()
        script = "const e = document.querySelector(arguments[0]); e && e.click(); return Boolean(e)"
        if self.read(script, css) is False:  # None: an alert cut the script short, after the click perhaps
            raise Bug("NothingToPress", f"the page has no {css}", never_sent=True)

    def read(self, script: str, *arguments: Any) -> Any:
        self._check()
        with self._verdicts():
            return self.driver.execute_script(script, *arguments)

    def settle(self, script: str, *arguments: Any, within_s: float) -> Any:
        self._check()
        began = time.monotonic()
        with self._verdicts():
            try:
                return self.driver.execute_async_script(
                    _SETTLE.replace("/*LOOK*/", script), list(arguments), round(within_s * 1000)
                )
            except TimeoutException:  # chromedriver says so, at once, of a script whose page has gone
                if time.monotonic() - began < within_s:
                    raise Retry("PageLeft", "the page went elsewhere while it was read") from None
                raise

    def set_cookie(self, url: str, name: str, value: str) -> None:
        with self._verdicts():
            self._call("Network.setCookie", url=url, name=name, value=value)

    def delete_cookie(self, url: str, name: str) -> None:
        with self._verdicts():
            self._call("Network.deleteCookies", url=url, name=name)

    def cookie(self, name: str) -> str | None:
        with self._verdicts():
            found = self.driver.get_cookie(name)
        return None if found is None else str(found["value"])

    @contextmanager
    def posts_by(self, send: Send) -> Iterator[None]:
        """While entered, what this page posts is sent by `send`, once."""
        self._posts = Posts(self._cdp, self._context, send, self._check)
        with ExitStack() as entered:
            with self._verdicts():
                entered.enter_context(self._posts)
            yield

    def answers(self) -> list[Answer]:
        return self._posts.seal() if self._posts else []

    def likeness(self) -> tuple[str, bytes]:
        with self._verdicts():
            html = str(self.driver.execute_script(_REDACT))
            shot = self._call("Page.captureScreenshot", format="jpeg", quality=40)
        return html, base64.b64decode(shot["data"])

    @contextmanager
    def _verdicts(self) -> Iterator[None]:
        """As `verdicts`; where chromedriver is stuck, the page is asked whether it is its fault."""
        try:
            with verdicts(self._check):
                yield
        except Crashed as crashed:
            if crashed.reason == STUCK and self._hangs():
                raise Retry(
                    "PageHangs", "the page does not answer: a script of it runs without end"
                ) from None
            raise

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._cdp.call(method, params, session=self._context.session, check=self._check)

    def _hangs(self) -> bool:
        try:
            self._cdp.call(
                "Runtime.evaluate", {"expression": "1"}, session=self._context.session, timeout_s=HANGS_S
            )
        except CdpLate:
            return True
        except CdpFailed:
            return False
        return False


@contextmanager
def verdicts(check: Callable[[], None]) -> Iterator[None]:
    """Translate what Selenium and Chrome raise. A command that `Connections.shut` has ended raises why first (`check`)."""
    try:
        yield
    except (WebDriverException, u3.HTTPError, requests.RequestException, OSError, CdpFailed) as exc:
        check()
        raise _verdict(exc) from None  # the chain may show a page's address and what was typed there


def _verdict(exc: Exception) -> CrawlEnded:
    words = str(getattr(exc, "msg", None) or exc)
    if isinstance(exc, UnexpectedAlertPresentException):
        return Retry("Alert", "the page opened an alert in the middle of a command")
    if isinstance(exc, u3.ReadTimeoutError):
        COMMAND_TIMEOUTS.inc()
        return Crashed(STUCK, f"chromedriver did not answer within {COMMAND_S:.0f} s")
    if isinstance(exc, CdpLate | TimeoutException):
        COMMAND_TIMEOUTS.inc()
        return Retry("PageTimeout", f"the page took longer than {LOAD_S:.0f} s")
    if isinstance(exc, JavascriptException):
        return Bug("ScriptFailed", "a script on the page failed; the page is not as the adapter expects it")
    if "crash" in words:
        return Crashed("TabCrashed", "the page crashed its renderer, perhaps for lack of memory")
    return Crashed("BrowserLost", f"the browser ended or lost the page ({type(exc).__name__})")


def _of_navigation(name: str) -> CrawlEnded:
    """By Chromium's net_error_list.h."""
    if name.startswith(_PROXY):
        return proxy_refused()
    if name.startswith(_UNREACHABLE):
        return Retry(
            "ConnectFailed", f"the shop could not be reached ({name}); check that it is up and its baseURL"
        )
    if name.startswith("ERR_TOO_MANY_REDIRECTS"):
        return Retry("Redirected", "the shop redirects without end")
    # Among the rest ERR_ABORTED: the shop answered nothing (204), or this Chrome is just being ended.
    return Retry("PageFailed", f"the page could not be loaded ({name})")
