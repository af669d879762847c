"""A keyhole: Selenium's chromedriver looks at Chrome through it and sees one browser context.

Attached to a whole Chrome, chromedriver attaches itself to every page there is, of every seller, and waits for each of
them: one page with an endless script holds up all others, and every session may look into every window. It finds pages
by asking for the targets, so it is enough to answer that narrowly; everything else is passed on as it is.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from http import HTTPStatus
from typing import Self

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.http11 import Request, Response
from websockets.sync.connection import Connection
from websockets.sync.server import ServerConnection, serve

from crawlfleet.browser.cdp import Cdp, dial


class Keyhole:
    """Listens on a loopback port of its own until it is closed. `cdp` is a connection to the Chrome it shows.

    `target` is the page that it shows at first; pages which that one opens are seen, too.
    """

    def __init__(self, cdp: Cdp, context: str, target: str) -> None:
        self._cdp = cdp
        self._context = context
        self._target = target
        self._server = serve(
            self._pass_on, "127.0.0.1", 0, process_request=self._answer, compression=None, max_size=None,
            ping_interval=None, close_timeout=1,
        )  # fmt: skip
        host, port = self._server.socket.getsockname()
        self.address = f"{host}:{port}"
        threading.Thread(target=self._server.serve_forever, name="keyhole", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _answer(self, near: ServerConnection, request: Request) -> Response | None:
        """What chromedriver asks by HTTP before it opens the websocket. No page may look: a page names its origin."""
        if "Origin" in request.headers:
            return near.respond(HTTPStatus.FORBIDDEN, "")
        if request.path.startswith("/json/version"):
            return near.respond(HTTPStatus.OK, json.dumps(self._version()))
        if request.path.startswith("/json"):
            page = {"id": self._target, "type": "page", "url": "about:blank", "title": ""}
            return near.respond(HTTPStatus.OK, json.dumps([page]))
        return None

    def _version(self) -> dict[str, str]:
        version = self._cdp.call("Browser.getVersion")
        return {
            "Browser": version["product"],
            "Protocol-Version": version["protocolVersion"],
            "User-Agent": version["userAgent"],
            "V8-Version": version["jsVersion"],
            "WebKit-Version": f"537.36 ({version['revision']})",
            "webSocketDebuggerUrl": f"ws://{self.address}/",
        }

    def _pass_on(self, near: ServerConnection) -> None:
        with (
            suppress(OSError, WebSocketException),
            dial(self._cdp.url) as chrome,
        ):
            threading.Thread(target=self._pass_back, args=(chrome, near), name="keyhole", daemon=True).start()
            for message in near:
                chrome.send(message)

    def _pass_back(self, chrome: Connection, near: Connection) -> None:
        with suppress(ConnectionClosed):
            for message in chrome:
                near.send(self._narrowed(str(message)))
        near.close()

    def _narrowed(self, message: str) -> str:
        """An answer that lists targets, without those of other contexts."""
        if '"targetInfos"' not in message:
            return message
        answer = json.loads(message)
        targets = answer.get("result", {}).get("targetInfos")
        if targets is None:
            return message
        answer["result"]["targetInfos"] = [t for t in targets if t.get("browserContextId") == self._context]
        return json.dumps(answer)
