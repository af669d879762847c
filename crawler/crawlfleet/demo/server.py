"""A stand-in shop over HTTP/1.1: sockets around a `Shop`, and two endpoints for tests.

`GET /_counters` shows what the clients did, `GET` and `POST /_control` show and switch the traps. A client's
egress is its address, or what a proxy puts into `X-Egress`.

A reply leaves in one piece and at once (no Nagle), and its request ends for the witness before the last
byte is sent: the client may send its next request before this thread runs again.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Generic, Self, TypeVar
from urllib.parse import unquote

from crawlfleet.demo.exchange import Delivery, Reply, Request
from crawlfleet.demo.shop import Shop
from crawlfleet.demo.violations import Flight, Witness
from crawlfleet.sockets import is_open

AnyShop = TypeVar("AnyShop", bound=Shop[Any])

DRIP_S = 0.2
MISSING_BYTES = 100
LAST_PIECE_BYTES = 65_536
STOP_S = 5.0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    connection: socket.socket

    def setup(self) -> None:
        super().setup()
        self.server.opened(self.connection)

    def finish(self) -> None:
        self.server.closed(self.connection)
        super().finish()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        request = Request(
            method=self.command,
            path=unquote(path),
            query=query,
            headers={name.lower(): value for name, value in self.headers.items()},
            body=body,
            egress=self.headers.get("X-Egress") or self.client_address[0],
        )
        if request.path in ("/_counters", "/_control"):
            self._send(_bench_reply(self.server.shop, request), lambda: None)
        else:
            self._serve(request)

    do_POST = do_GET  # noqa: N815  (the name http.server calls)

    def _serve(self, request: Request) -> None:
        witness, visit = self.server.shop.witness, self.server.shop.visit(request)
        flight = Flight(visit.account, request.egress, alive=lambda: is_open(self.connection))
        witness.arrived(flight, is_api=visit.is_api)
        try:
            reply = self.server.answer(request)
            if reply.delay_s and not self._client_waits(reply.delay_s):
                self.close_connection = True
                return
            self._send(reply, lambda: witness.answered(flight))
        finally:
            witness.answered(flight)

    def _client_waits(self, seconds: float) -> bool:
        """Wait; False as soon as the client has hung up or the server stops."""
        poller = select.poll()
        poller.register(self.connection, select.POLLIN)
        deadline_s = time.monotonic() + seconds
        while (remaining_s := deadline_s - time.monotonic()) > 0:
            if poller.poll(remaining_s * 1000) and not is_open(self.connection):
                return False
        return True

    def _send(self, reply: Reply, completing: Callable[[], None]) -> None:
        """Send the reply as it asks to be sent; `completing` is called just before the last byte leaves."""
        if reply.delivery is not Delivery.WHOLE:
            self.close_connection = True
        if reply.delivery is Delivery.LOST:
            return
        if reply.delivery is Delivery.DRIP:
            self._drip(reply)
            return
        missing = MISSING_BYTES if reply.delivery is Delivery.TRUNCATED else 0
        data = self._head(reply, len(reply.body) + missing) + reply.body
        early = max(0, len(data) - LAST_PIECE_BYTES)
        if early:
            self.connection.sendall(memoryview(data)[:early])
        completing()
        self.connection.sendall(memoryview(data)[early:])

    def _head(self, reply: Reply, length: int | None) -> bytes:
        lines = [
            f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
            f"Content-Type: {reply.content_type}",
            *(f"{name}: {value}" for name, value in reply.headers.items()),
        ]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        if self.close_connection:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _drip(self, reply: Reply) -> None:
        self.connection.sendall(self._head(reply, None))
        while self._client_waits(DRIP_S):
            self.connection.sendall(b" ")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name http.server has)
        """Say nothing: the counters tell what happened."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], shop: Shop[Any], answer: Callable[[Request], Reply]) -> None:
        super().__init__(address, _Handler)
        self.shop = shop
        self.answer = answer
        self._lock = threading.Lock()
        self._stopping = False
        self._open: dict[socket.socket, threading.Thread] = {}

    def server_bind(self) -> None:
        # HTTPServer would look up the name of its address in the DNS.
        TCPServer.server_bind(self)

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open[connection] = threading.current_thread()
            if self._stopping:
                _hang_up(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            del self._open[connection]

    def hang_up(self) -> None:
        """End every connection and wait for its thread."""
        with self._lock:
            self._stopping = True
            threads = list(self._open.values())
            for connection in self._open:
                _hang_up(connection)
        for thread in threads:
            thread.join(STOP_S)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that hangs up in the middle of a reply is what the traps are for.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _bench_reply(shop: Shop[Any], request: Request) -> Reply:
    """The counters, or the traps, which a POST switches first."""
    if request.path == "/_counters":
        return Reply.of_json(200, {**shop.witness.counters().as_dict()})
    try:
        if request.method == "POST":
            shop.switches.switch(json.loads(request.body))
    except ValueError as error:
        return Reply.of_json(400, {"error": str(error)})
    return Reply.of_json(200, shop.switches.as_dict())


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class ShopServer(Generic[AnyShop]):
    """A stand-in shop on a port of its own (0 = any), in threads of this process."""

    def __init__(self, shop: AnyShop, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.shop = shop
        self._address = (host, port)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def witness(self) -> Witness[Any]:
        """Who counts what the clients do."""
        return self.shop.witness

    def start(self) -> str:
        """Serve from now on. Returns the URL, without a slash at its end; raises OSError if the port is taken."""
        self._server = _Server(self._address, self.shop, self.answer)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="shop", daemon=True
        )
        self._thread.start()
        return self.url

    @property
    def url(self) -> str:
        """Where a started server listens."""
        assert self._server is not None, "the shop server is not started"
        return f"http://{self._address[0]}:{self._server.server_address[1]}"

    def stop(self) -> None:
        """Hang up on every client and close the port; harmless when repeated."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()
        self._server = self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def answer(self, request: Request) -> Reply:
        """The reply to one request."""
        return self.shop.answer(request)

    def switch(self, **traps: Any) -> None:
        """Switch traps for all accounts; ValueError for an unknown one."""
        self.shop.switches.switch({"all": traps})

    def switch_account(self, account: str, **traps: Any) -> None:
        """Switch traps for one account; ValueError for an unknown one."""
        self.shop.switches.switch({"accounts": {account: traps}})
