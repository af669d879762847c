"""A browser context: one seller's cookies, caches, storages and way out, with one page in it.

Made and ended over the DevTools protocol, which WebDriver has no words for. Downloads are refused, alerts dismissed. That pages
are Korean, in Seoul, and without images is Chrome's own setting (`launch.chrome_command`).
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from crawlfleet.browser.cdp import Cdp, CdpFailed

DISPOSE_S = 2.5
WINDOW = {"width": 1280, "height": 800}
_CAN_POST = ("Document", "XHR", "Fetch", "Ping", "Other")
"""The kinds of requests that a page may post."""

Send = Callable[[str, Mapping[str, str], bytes], requests.Response]
"""Post to a URL with these headers and this body, without anybody sending it a second time."""

_OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding", "connection")


@dataclass(frozen=True)
class Context:
    """One browser context with one page: `target` names the page's window, `session` is our line to it.

    `refused` is set once its proxy has refused our credentials.
    """

    context: str
    target: str
    session: str
    has_proxy: bool
    refused: threading.Event


def open_context(cdp: Cdp, proxy: str | None) -> Context:
    """A fresh context that leaves by `proxy` (a URL, credentials and all). Raises CdpFailed."""
    wanted: dict[str, Any] = {"disposeOnDetach": True}
    if proxy:
        parts = urlsplit(proxy)
        # Chrome would go round a proxy for loopback addresses, where shops and proxies of tests are.
        wanted |= {
            "proxyServer": f"{parts.scheme}://{parts.hostname}:{parts.port}",
            "proxyBypassList": "<-loopback>",
        }
    context = cdp.call("Target.createBrowserContext", wanted)["browserContextId"]
    try:
        return _open_page(cdp, context, proxy)
    except CdpFailed:
        dispose(cdp, context)
        raise


def dispose(cdp: Cdp, context: str) -> bool:
    """End the context and its pages, hung ones too; False if Chrome did not say that it has."""
    try:
        cdp.call("Target.disposeBrowserContext", {"browserContextId": context}, timeout_s=DISPOSE_S)
    except CdpFailed:
        return cdp.is_lost
    return True


def _open_page(cdp: Cdp, context: str, proxy: str | None) -> Context:
    target = cdp.call("Target.createTarget", {"url": "about:blank", "browserContextId": context, **WINDOW})[
        "targetId"
    ]
    session = cdp.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
    cdp.call("Browser.setDownloadBehavior", {"behavior": "deny", "browserContextId": context})
    cdp.call("Page.enable", session=session)
    cdp.on("Page.javascriptDialogOpening", session, lambda _: _dismiss(cdp, session))
    opened = Context(context, target, session, bool(proxy), threading.Event())
    if proxy:
        _answer_proxy(
            cdp, opened, unquote(urlsplit(proxy).username or ""), unquote(urlsplit(proxy).password or "")
        )
    return opened


def _dismiss(cdp: Cdp, session: str) -> None:
    """An alert would hold up the page's scripts, and ours."""
    cdp.tell("Page.handleJavaScriptDialog", {"accept": False}, session=session)


def _answer_proxy(cdp: Cdp, opened: Context, username: str, password: str) -> None:
    """Give the proxy its credentials when it asks. Once it has them Chrome sends them by itself, so that only
    documents have to be stopped on their way; asked a second time for one request, they were wrong."""
    asked: set[str] = set()
    session = opened.session

    def challenged(event: dict[str, Any]) -> None:
        known, request = event["authChallenge"].get("source") == "Proxy", event["requestId"]
        answer = {"response": "CancelAuth"}
        if known and username and request not in asked:
            asked.add(request)
            answer = {"response": "ProvideCredentials", "username": username, "password": password}
        elif known:
            opened.refused.set()
        cdp.tell(
            "Fetch.continueWithAuth", {"requestId": request, "authChallengeResponse": answer}, session=session
        )

    cdp.on("Fetch.authRequired", session, challenged)
    _stop_documents(cdp, session)


def _stop_documents(cdp: Cdp, session: str) -> None:
    def stopped(event: dict[str, Any]) -> None:
        cdp.tell("Fetch.continueRequest", {"requestId": event["requestId"]}, session=session)

    cdp.on("Fetch.requestPaused", session, stopped)
    patterns = [{"urlPattern": "*", "resourceType": "Document"}]
    cdp.call("Fetch.enable", {"handleAuthRequests": True, "patterns": patterns}, session=session)


class Posts:
    """While entered, what a page posts is sent by `send`, once, and only one post an address: no page submits a password again.

    Chrome by itself posts again, up to three times, when a connection breaks before the reply (seen): with a password in
    it nobody could promise that it was submitted once. It also sends what it has stopped as soon as nobody stops it any
    more (seen). So if this is left by an exception, or while a reply is still out, that request fails, and so does all that
    the page posts from then on. A context that is disposed, or whose worker dies, takes what was stopped with it. To be entered once the page
    has come in: of one that is on its way Chrome stops nothing (seen).
    """

    def __init__(self, cdp: Cdp, context: Context, send: Send, answered: list[int]) -> None:
        self._cdp = cdp
        self._context = context
        self._send = send
        self._answered = answered
        self._lock = threading.Lock()
        self._taken: set[str] = set()
        self._unanswered: dict[str, dict[str, Any]] = {}
        self._left = False
        self._shut = False

    def __enter__(self) -> None:
        session = self._context.session
        self._cdp.on("Fetch.requestPaused", session, self._stopped)
        self._cdp.call(
            "Fetch.enable",
            {
                "handleAuthRequests": self._context.has_proxy,
                "patterns": [{"urlPattern": "*", "resourceType": kind} for kind in _CAN_POST],
            },
            session=session,
        )

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            cut_off = list(self._unanswered.values())
            self._left, self._shut = True, failure is not None or bool(cut_off)
        for event in cut_off:
            self._fail(event)
        if not self._shut:
            with suppress(CdpFailed):  # the page is gone: so is what was stopped of it
                self._let_go()

    def _let_go(self) -> None:
        if self._context.has_proxy:
            _stop_documents(self._cdp, self._context.session)
        else:
            self._cdp.call("Fetch.disable", session=self._context.session)

    def _stopped(self, event: dict[str, Any]) -> None:
        is_post = event["request"]["method"] == "POST"
        with self._lock:
            if is_ours := is_post and not self._left:
                self._unanswered[event["requestId"]] = event
        if is_ours:
            threading.Thread(target=self._post, args=(event,), name="post", daemon=True).start()
        elif is_post and self._shut:
            self._fail(event)
        else:
            self._tell("Fetch.continueRequest", event)

    def _post(self, event: dict[str, Any]) -> None:
        try:
            request = event["request"]
            self._take(request["url"].partition("?")[0])
            with self._send(request["url"], self._headers(request), self._body(event)) as reply:
                headers = [
                    {"name": name, "value": value}
                    for name, value in reply.raw.headers.items()
                    if name.lower() not in _OF_THE_WIRE
                ]
                content = base64.b64encode(reply.content).decode()
                answer = {"responseCode": reply.status_code, "responseHeaders": headers, "body": content}
            self._answered.append(reply.status_code)
            self._tell("Fetch.fulfillRequest", event, **answer)
        except (
            Exception
        ):  # whatever it was: to the page its request has failed, and the crawl judges the page
            self._fail(event)
        with self._lock:
            del self._unanswered[event["requestId"]]

    def _take(self, address: str) -> None:
        with self._lock:
            if self._left or address in self._taken:
                raise ValueError("posted before, or too late")
            self._taken.add(address)

    def _headers(self, request: dict[str, Any]) -> dict[str, str]:
        parts = urlsplit(request["url"])
        found = self._cdp.call(
            "Network.getCookies", {"urls": [request["url"]]}, session=self._context.session
        )["cookies"]
        cookies = "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in found)
        origin = {"Origin": f"{parts.scheme}://{parts.netloc}"}
        return {**origin, **request["headers"], **({"Cookie": cookies} if cookies else {})}

    def _body(self, event: dict[str, Any]) -> bytes:
        parts = event["request"].get("postDataEntries")
        if parts and all("bytes" in part for part in parts):
            return b"".join(base64.b64decode(part["bytes"]) for part in parts)
        data = self._cdp.call(
            "Fetch.getRequestPostData", {"requestId": event["requestId"]}, session=self._context.session
        )["postData"]
        return str(data).encode()

    def _fail(self, event: dict[str, Any]) -> None:
        self._tell("Fetch.failRequest", event, errorReason="ConnectionReset")

    def _tell(self, method: str, event: dict[str, Any], **params: Any) -> None:
        self._cdp.tell(method, {"requestId": event["requestId"], **params}, session=self._context.session)
