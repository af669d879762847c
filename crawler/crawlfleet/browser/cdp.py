"""The Chrome DevTools Protocol over one websocket: calls with a deadline, and events of single pages.

Selenium works inside a page. This makes and disposes the browser contexts around it, and sets what WebDriver has no word
for. One thread reads; any thread may call. Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

CALL_S = 5.0
CHECK_S = 0.25

Params = dict[str, Any]


def dial(url: str, timeout_s: float = CALL_S) -> AbstractContextManager[ClientConnection]:
    """A websocket to Chrome: messages of any size, past whatever proxy the environment names."""
    return connect(
        url,
        proxy=None,
        compression=None,
        max_size=None,
        open_timeout=timeout_s,
        close_timeout=1,
        ping_interval=None,
    )


class CdpFailed(Exception):
    """Chrome refused a call, or is gone."""


class CdpLate(CdpFailed):
    """Chrome did not answer a call in time."""


class Cdp:
    """A connection to the browser endpoint. Contexts made with `disposeOnDetach` end with it."""

    def __init__(self, url: str, *, timeout_s: float = CALL_S) -> None:
        """Raises CdpFailed if nobody answers there."""
        self.url = url
        self._opened = ExitStack()
        try:
            self._socket = self._opened.enter_context(dial(url, timeout_s))
        except (OSError, WebSocketException) as exc:
            raise CdpFailed(f"Chrome does not answer at its DevTools address ({type(exc).__name__})") from exc
        self._lock = threading.Lock()
        self._sent = 0
        self._lost = False
        self._replies: dict[int, Future[Params]] = {}
        self._handlers: dict[tuple[str, str], Callable[[Params], None]] = {}
        threading.Thread(target=self._read, name="cdp", daemon=True).start()

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended: Chrome is gone, and every context of ours."""
        return self._lost

    def call(
        self,
        method: str,
        params: Params | None = None,
        *,
        session: str = "",
        timeout_s: float = CALL_S,
        check: Callable[[], None] = lambda: None,
    ) -> Params:
        """What Chrome answers. `session` is an attached page, `check` is asked while it is waited for.

        Raises CdpFailed if Chrome answers an error, CdpLate if it does not answer in time, and what `check` raises.
        """
        number, reply = self._send(method, params, session)
        late_at = time.monotonic() + timeout_s
        try:
            while (left_s := late_at - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    return reply.result(min(left_s, CHECK_S))
                check()
        finally:
            self._replies.pop(number, None)
        raise CdpLate(f"{method} was not answered within {timeout_s:.0f} s")

    def tell(self, method: str, params: Params, *, session: str) -> None:
        """The same without waiting for an answer, as a handler must: it runs in the thread that reads."""
        with suppress(CdpFailed):
            number, _ = self._send(method, params, session)
            self._replies.pop(number, None)

    def on(self, method: str, session: str, handler: Callable[[Params], None]) -> None:
        """Call `handler` with each such event of that page, until `forget`."""
        self._handlers[session, method] = handler

    def forget(self, session: str) -> None:
        """Drop the handlers of a page that is gone."""
        for key in [key for key in list(self._handlers) if key[0] == session]:
            self._handlers.pop(key, None)

    def close(self) -> None:
        """Hang up; Chrome then disposes our contexts."""
        with suppress(OSError, WebSocketException):
            self._opened.close()

    def _send(self, method: str, params: Params | None, session: str) -> tuple[int, Future[Params]]:
        message: Params = {"method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        reply: Future[Params] = Future()
        with self._lock:
            if self._lost:
                raise CdpFailed("Chrome is gone")
            self._sent += 1
            number = message["id"] = self._sent
            self._replies[number] = reply
            try:
                self._socket.send(json.dumps(message))
            except (OSError, WebSocketException) as exc:
                raise CdpFailed(f"Chrome is gone ({type(exc).__name__})") from exc
        return number, reply

    def _read(self) -> None:
        try:
            with suppress(OSError, WebSocketException):
                for message in self._socket:
                    self._dispatch(json.loads(message))
        finally:
            with self._lock:
                self._lost = True
            for reply in list(self._replies.values()):
                with suppress(InvalidStateError):
                    reply.set_exception(CdpFailed("Chrome is gone"))

    def _dispatch(self, message: Params) -> None:
        if "id" not in message:
            handler = self._handlers.get((message.get("sessionId", ""), message["method"]))
            if handler is not None:
                handler(message["params"])
            return
        reply = self._replies.get(message["id"])
        if reply is None:
            return
        with suppress(InvalidStateError):
            if "error" in message:
                reply.set_exception(CdpFailed(str(message["error"].get("message", "refused"))))
            else:
                reply.set_result(message["result"])
