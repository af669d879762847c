"""What a page posts while it logs in, sent by the worker: Chrome cannot promise to send a password once (ADR 0005)."""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import requests

from crawlfleet.browser.cdp import Cdp, CdpFailed
from crawlfleet.browser.context import Context, stop_documents
from crawlfleet.errors import CrawlEnded

log = logging.getLogger(__name__)

Send = Callable[[str, Mapping[str, str], bytes], requests.Response]
"""Post to a URL with these headers and this body, without anybody sending it a second time. Called by several threads."""
Answer = int | CrawlEnded
"""What became of a post: the status of its reply, the verdict that it failed with, 0 while there is neither."""

_CAN_POST = ("Document", "XHR", "Fetch", "Ping", "Other")
"""The kinds of requests that a page may post."""
_OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding", "connection")


class Posts:
    """While entered, what the page posts is sent by `send`, once, and one post an address: no page submits a password again.

    When it is left, whatever is still out fails in the page. Left by an exception, all that the page posts from then on
    fails, too. To be entered once the page has come in: of one that is on its way Chrome stops nothing (seen). Frames
    of other sites are not covered.
    """

    def __init__(self, cdp: Cdp, context: Context, send: Send, check: Callable[[], None]) -> None:
        """`check` ends a wait for Chrome if the crawl has to end."""
        self._cdp = cdp
        self._context = context
        self._send = send
        self._check = check
        self._answers: dict[str, Answer] = {}
        self._lock = threading.Lock()
        self._addresses: set[str] = set()
        self._out: dict[str, dict[str, Any]] = {}
        self._left = False
        self._shut = False

    def __enter__(self) -> None:
        self._call("Network.enable", maxTotalBufferSize=0, maxResourceBufferSize=0)
        self._call("Network.setBypassServiceWorker", bypass=True)  # what a worker sends is not the page's
        self._cdp.on("Fetch.requestPaused", self._context.session, self._stopped)
        patterns = [{"urlPattern": "*", "resourceType": kind} for kind in _CAN_POST]
        self._call("Fetch.enable", handleAuthRequests=self._context.has_proxy, patterns=patterns)

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            self._left, self._shut, out = True, failure is not None, list(self._out.values())
        for event in out:  # first: Chrome sends what is stopped as soon as nobody stops it any more
            self._fail(event)
        if not self._shut:
            with suppress(CdpFailed):  # the page is gone: so is what was stopped of it
                self._let_go()

    def seal(self) -> list[Answer]:
        """The answers so far; from here on all that the page posts fails, unless the login succeeds."""
        with self._lock:
            self._left = self._shut = True
            return list(self._answers.values())

    def _let_go(self) -> None:
        self._call("Network.disable")
        if self._context.has_proxy:
            stop_documents(self._cdp, self._context.session)
        else:
            self._call("Fetch.disable")

    def _stopped(self, event: dict[str, Any]) -> None:
        is_post = event["request"]["method"] == "POST"
        with self._lock:
            if is_ours := is_post and not self._left:
                self._out[event["requestId"]] = event
                self._answers[event["requestId"]] = 0
        if is_ours:
            threading.Thread(target=self._post, args=(event,), name="post", daemon=True).start()
        elif is_post and self._shut:
            self._fail(event)
        else:
            self._tell("Fetch.continueRequest", event)

    def _post(self, event: dict[str, Any]) -> None:
        request = event["request"]
        try:
            if self._is_first(request["url"].partition("?")[0]):
                with self._send(request["url"], self._headers(request), _body(request)) as reply:
                    self._fulfill(event, reply)
            else:
                self._fail(event)
        except CrawlEnded as ended:
            self._answers[event["requestId"]] = ended
            self._fail(event)
        except Exception:  # to the page its request has failed, and the crawl judges the page
            log.exception("a page's post failed")
            self._fail(event)
        with self._lock:
            del self._out[event["requestId"]]

    def _is_first(self, address: str) -> bool:
        with self._lock:
            if self._left or address in self._addresses:
                return False
            self._addresses.add(address)
            return True

    def _fulfill(self, event: dict[str, Any], reply: requests.Response) -> None:
        headers = [
            {"name": name, "value": value}
            for name, value in reply.raw.headers.items()
            if name.lower() not in _OF_THE_WIRE
        ]
        body = base64.b64encode(reply.content).decode()
        self._answers[event["requestId"]] = reply.status_code
        self._tell(
            "Fetch.fulfillRequest", event, responseCode=reply.status_code, responseHeaders=headers, body=body
        )

    def _headers(self, request: dict[str, Any]) -> dict[str, str]:
        parts = urlsplit(request["headers"].get("Referer") or request["url"])
        found = self._call("Network.getCookies", urls=[request["url"]])["cookies"]
        cookies = "; ".join(f"{cookie['name']}={cookie['value']}" for cookie in found)
        origin = {"Origin": f"{parts.scheme}://{parts.netloc}"}
        return {**origin, **request["headers"], **({"Cookie": cookies} if cookies else {})}

    def _fail(self, event: dict[str, Any]) -> None:
        self._tell("Fetch.failRequest", event, errorReason="ConnectionReset")

    def _tell(self, method: str, event: dict[str, Any], **params: Any) -> None:
        self._cdp.tell(method, {"requestId": event["requestId"], **params}, session=self._context.session)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._cdp.call(method, params, session=self._context.session, check=self._check)


def _body(request: dict[str, Any]) -> bytes:
    """Raises ValueError for what Chrome does not show: files, and bodies that are still being made."""
    parts = request.get("postDataEntries", ())
    if request.get("hasPostData") and not (parts and all("bytes" in part for part in parts)):
        raise ValueError("Chrome does not show the body of a post")
    return b"".join(base64.b64decode(part["bytes"]) for part in parts)
