"""A browser context: one seller's cookies, caches, storages and way out, with one page in it.

Made and ended over the DevTools protocol, which WebDriver has no words for. Downloads are refused, alerts dismissed. That pages
are Korean, in Seoul, and without images is Chrome's own setting (`launch.chrome_command`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from crawlfleet.browser.cdp import Cdp, CdpFailed

DISPOSE_S = 2.5
WINDOW = {"width": 1280, "height": 800}


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


def open_context(cdp: Cdp, proxy: str | None, check: Callable[[], None] = lambda: None) -> Context:
    """A fresh context that leaves by `proxy` (a URL, credentials and all). Raises CdpFailed, and what `check` raises."""
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
        return _open_page(cdp, context, proxy, partial(cdp.call, check=check))
    except BaseException:
        dispose(cdp, context)
        raise


def dispose(cdp: Cdp, context: str) -> bool:
    """End the context and its pages, hung ones too; False if Chrome did not say that it has."""
    try:
        cdp.call("Target.disposeBrowserContext", {"browserContextId": context}, timeout_s=DISPOSE_S)
    except CdpFailed:
        return cdp.is_lost
    return True


def _open_page(cdp: Cdp, context: str, proxy: str | None, call: Callable[..., dict[str, Any]]) -> Context:
    target = call("Target.createTarget", {"url": "about:blank", "browserContextId": context, **WINDOW})[
        "targetId"
    ]
    session = call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
    call("Browser.setDownloadBehavior", {"behavior": "deny", "browserContextId": context})
    call("Page.enable", session=session)
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
    stop_documents(cdp, session)


def stop_documents(cdp: Cdp, session: str) -> None:
    """Stop documents alone, for as long as it takes to see whether a proxy asks."""

    def stopped(event: dict[str, Any]) -> None:
        cdp.tell("Fetch.continueRequest", {"requestId": event["requestId"]}, session=session)

    cdp.on("Fetch.requestPaused", session, stopped)
    patterns = [{"urlPattern": "*", "resourceType": "Document"}]
    cdp.call("Fetch.enable", {"handleAuthRequests": True, "patterns": patterns}, session=session)
