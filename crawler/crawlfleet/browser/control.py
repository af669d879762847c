"""The control port of `crawlfleet chrome`: JSON over HTTP, for the worker beside it. Loopback only.

    GET  /status                 what there is (`health.Status`)
    GET  /healthz                200 if both programs answer, else 503 with the reason
    POST /recycle[?generation=N] end both politely and start afresh
    POST /kill[?generation=N]    kill both at once and start afresh

A POST is answered 202 with the generation that runs; it is carried out at once, unless N has ended already.
"""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from crawlfleet.browser.health import KILLED, RECYCLED, Status, Wish
from crawlfleet.errors import BadConfiguration
from crawlfleet.settings import ChromeSettings

WISHES = {"/recycle": RECYCLED, "/kill": KILLED}


class Steered(Protocol):
    """What the port shows and steers."""

    status: Status

    def wish(self, wish: Wish) -> None: ...


class Control:
    """Serves until `stop`, in threads of its own."""

    def __init__(self, listener: socket.socket, steered: Steered) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10

            def do_GET(self) -> None:
                self._answer(*_read(self.path, steered.status))

            def do_POST(self) -> None:
                if self.headers.get("Origin") is not None:  # browsers send it along with each POST of a page
                    self._answer(403, {"error": "a page may not steer its browser"})
                    return
                self._answer(*_steer(self.path, steered))

            def _answer(self, code: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode() + b"\n"
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """A question is no event."""

        self._server = ThreadingHTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self._server.daemon_threads = True
        self.port = listener.getsockname()[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="control", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def listen(settings: ChromeSettings) -> socket.socket:
    """The listening socket: the one handed over, or a new one."""
    if settings.listener is not None:
        return _handed_over(settings.listener)
    try:
        return socket.create_server(("127.0.0.1", settings.port))
    except OSError as exc:
        raise BadConfiguration(
            f"CRAWLFLEET_CHROME_PORT: cannot listen on {settings.port}: {exc.strerror}; free it or set another (0: any)"
        ) from exc


def _handed_over(number: int) -> socket.socket:
    try:
        handed = socket.socket(fileno=number)
        is_listening = handed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError:
        is_listening = 0
    if not is_listening:
        raise BadConfiguration(f"CRAWLFLEET_CHROME_FD: {number} is no listening socket; leave it unset")
    return handed


def _read(path: str, status: Status) -> tuple[int, dict[str, Any]]:
    if path == "/status":
        return 200, asdict(status)
    if path == "/healthz":
        return 200 if status.ready else 503, {"ready": status.ready, "why": status.why}
    return 404, {"error": "GET /status or /healthz, POST /recycle or /kill"}


def _steer(path: str, steered: Steered) -> tuple[int, dict[str, Any]]:
    asked = urlsplit(path)
    generation = parse_qs(asked.query).get("generation", [""])[0]
    if asked.path not in WISHES or not (generation == "" or generation.isdecimal()):
        return 404, {"error": "POST /recycle or /kill, with ?generation=N or without"}
    steered.wish(Wish(WISHES[asked.path], int(generation) if generation else None))
    return 202, {"generation": steered.status.generation}
