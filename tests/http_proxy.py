"""A forward HTTP proxy for tests: real sockets, plain http only, one request a connection.

It names itself to the stand-in shops (`X-Egress`), counts what it forwards, and can demand credentials.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "proxy-authorization", "proxy-connection", "x-egress"}


class HttpProxy:
    """A proxy on a free loopback port. `credentials` is (user, password), demanded by a 407 if given."""

    def __init__(self, name: str, credentials: tuple[str, str] | None = None) -> None:
        self.name = name
        self._credentials = credentials
        self._lock = threading.Lock()
        self.requests = 0
        """Requests forwarded."""
        self.refused = 0
        """Requests answered with 407."""
        self._server = _Server(("127.0.0.1", 0), self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """The proxy's address, with its credentials."""
        who = f"{':'.join(self._credentials)}@" if self._credentials else ""
        return f"http://{who}127.0.0.1:{self._server.server_address[1]}"

    def admits(self, authorization: str) -> bool:
        """Whether these are the credentials; counts the request as forwarded or refused."""
        wanted = "Basic " + base64.b64encode(":".join(self._credentials or ()).encode()).decode()
        admitted = self._credentials is None or authorization == wanted
        with self._lock:
            self.requests += admitted
            self.refused += not admitted
        return admitted

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, address: tuple[str, int], proxy: HttpProxy) -> None:
        super().__init__(address, _Handler)
        self.proxy = proxy

    def server_bind(self) -> None:
        # HTTPServer would look up the name of its address in the DNS.
        TCPServer.server_bind(self)


class _Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    server: _Server
    connection: socket.socket

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.server.proxy.admits(self.headers.get("Proxy-Authorization", "")):
            self._refuse("407 Proxy Authentication Required", 'Proxy-Authenticate: Basic realm="proxy"\r\n')
            return
        target = urlsplit(self.path)
        if target.scheme != "http" or not target.hostname:
            self._refuse("400 Bad Request")
            return
        try:
            upstream = socket.create_connection((target.hostname, target.port or 80), timeout=5)
        except OSError:
            self._refuse("502 Bad Gateway")
            return
        with upstream, contextlib.suppress(ConnectionError):
            upstream.sendall(self._head(target.path or "/", target.query) + body)
            for piece in _until_someone_leaves(upstream, self.connection):
                self.connection.sendall(piece)

    do_POST = do_GET  # noqa: N815  (the name http.server calls)

    def _head(self, path: str, query: str) -> bytes:
        lines = [f"{self.command} {path}{'?' + query if query else ''} HTTP/1.1"]
        lines += [
            f"{name}: {value}" for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP
        ]
        lines += [f"X-Egress: {self.server.proxy.name}", "Connection: close"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _refuse(self, status: str, header: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\n{header}Content-Length: 0\r\nConnection: close\r\n\r\n"
        self.connection.sendall(head.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name http.server has)
        """Say nothing."""


def _until_someone_leaves(upstream: socket.socket, client: socket.socket) -> Iterator[bytes]:
    """What `upstream` sends; ends when it closes, or as soon as the client has hung up."""
    poller = select.poll()
    poller.register(upstream, select.POLLIN)
    poller.register(client, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if client.fileno() in ready:
            return
        if not (piece := upstream.recv(65_536)):
            return
        yield piece
