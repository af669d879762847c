"""HTTP for crawls: a session whose connections can be shut from outside, with bounded, checked replies.

`requests` has no total deadline: a server that drips a byte a second keeps a read alive forever. So every
socket is known here, and `Connections.shut` ends whatever is blocked on it. Foreign errors become verdicts.
"""

from __future__ import annotations

import functools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import requests
import urllib3.exceptions as u3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import ConnectionPool, HTTPConnectionPool

from crawlfleet import __version__
from crawlfleet.errors import Blocked, Bug, Retry

CONNECT_S = 10.0
READ_S = 30.0
MAX_BODY_BYTES = 256 * 2**20


class Connections:
    """The open sockets of one crawl. Thread-safe: the crawl opens them, the watchdog shuts them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._shut = False

    def add(self, sock: socket.socket) -> None:
        """Remember a connection by a duplicate of its descriptor, which survives TLS wrapping."""
        with self._lock:
            duplicate = socket.socket(fileno=os.dup(sock.fileno()))
            if self._shut:
                _shut(duplicate)
                duplicate.close()
            else:
                self._sockets.append(duplicate)

    def shut(self) -> None:
        """End every read and write under way, and every later one."""
        with self._lock:
            self._shut = True
            for sock in self._sockets:
                _shut(sock)

    def close(self) -> None:
        """Forget the duplicates; call when the session is closed."""
        with self._lock:
            for sock in self._sockets:
                sock.close()
            self._sockets.clear()


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):  # the peer was faster
        sock.shutdown(socket.SHUT_RDWR)


class _Known:
    """Mixed into a connection of urllib3: tells `Connections` of its socket as soon as there is one."""

    def __init__(self, *args: Any, connections: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections = connections

    def _new_conn(self) -> socket.socket:
        sock: socket.socket = super()._new_conn()  # type: ignore[misc]  # the connection it is mixed into
        self._connections.add(sock)
        return sock

    def getresponse(self, *args: Any, **kwargs: Any) -> Any:
        """A connection that broke before its reply has been closed by `http.client`; behind a proxy urllib3 would take it for
        one that never came about, and the request for one that was not sent."""
        try:
            return super().getresponse(*args, **kwargs)  # type: ignore[misc]  # as above
        except ConnectionError as exc:
            raise u3.ProtocolError("the connection broke before the reply", exc) from exc


class _KnownHTTPConnection(_Known, HTTPConnection):
    """A plain connection."""


class _KnownHTTPSConnection(_Known, HTTPSConnection):
    """One with TLS."""


class _KnownConnectionsAdapter(HTTPAdapter):
    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        super().__init__(pool_connections=2, pool_maxsize=1, max_retries=0)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> ConnectionPool:
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        known = _KnownHTTPSConnection if pool.scheme == "https" else _KnownHTTPConnection
        pool.ConnectionCls = functools.partial(known, connections=self._connections)  # type: ignore[attr-defined]  # an instance's own class
        return pool


def known_pools(connections: Connections) -> dict[str, type[ConnectionPool]]:
    """For a urllib3 PoolManager (Selenium has one) whose sockets `connections` shall know."""
    known = functools.partial(_KnownHTTPConnection, connections=connections)
    return {"http": type("KnownPool", (HTTPConnectionPool,), {"ConnectionCls": known})}


def open_session(connections: Connections, proxy: str | None) -> requests.Session:
    """A session for one crawl. It ignores the environment's proxies: the egress is the only way out."""
    session = requests.Session()
    session.trust_env = False
    session.headers["User-Agent"] = f"crawlfleet/{__version__}"
    adapter = _KnownConnectionsAdapter(connections)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    if proxy:
        session.proxies = {"http": proxy, "https": proxy}
    return session


class CheckedBody:
    """The unread body of a reply: bounded in size, asks `check` before each read, and fails as a verdict."""

    def __init__(self, raw: Any, check: Callable[[], None]) -> None:
        self._raw = raw
        self._check = check
        self._bytes = 0

    def read(self, amt: int | None = None, decode_content: bool = True, **_: Any) -> bytes:
        self._check()
        with verdicts(self._check):
            data: bytes = self._raw.read(amt, decode_content=decode_content)
        if not data:  # a reply without a length just ends when `Connections.shut` has shut its socket
            self._check()
        self._bytes += len(data)
        if self._bytes > MAX_BODY_BYTES:
            raise Bug("ReplyTooLarge", f"a reply is larger than {MAX_BODY_BYTES // 2**20} MiB")
        return data

    def stream(self, amt: int = 2**16, decode_content: bool = True) -> Iterator[bytes]:
        while data := self.read(amt, decode_content):
            yield data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


@contextmanager
def verdicts(check: Callable[[], None]) -> Iterator[None]:
    """Translate transport errors. A socket that `Connections.shut` has shut raises why first (`check`)."""
    try:
        yield
    except (requests.exceptions.RequestException, u3.HTTPError, OSError) as exc:
        check()
        raise _verdict(exc) from None  # the chain may show a proxy's address with its password


def proxy_refused() -> Blocked:
    """The verdict of a proxy that lets nothing through; on plain http it says so by a reply of its own (407)."""
    return Blocked(
        "ProxyRefused",
        "the egress's proxy refused or could not be reached; check its Secret and address",
        never_sent=True,
    )


def _verdict(exc: Exception) -> Retry | Blocked | Bug:
    cause = type(exc).__name__
    causes = list(_causes(exc))
    if any(isinstance(c, (requests.exceptions.ProxyError, u3.ProxyError)) for c in causes):
        return proxy_refused()
    if any(
        isinstance(c, (u3.ConnectTimeoutError, u3.NewConnectionError, u3.NameResolutionError)) for c in causes
    ):
        return Retry(
            "ConnectFailed",
            "the shop could not be reached; check that it is up and its baseURL",
            never_sent=True,
        )
    if any(
        isinstance(c, (requests.exceptions.ReadTimeout, u3.ReadTimeoutError, TimeoutError)) for c in causes
    ):
        return Retry("ReadTimeout", f"the shop sent nothing for {READ_S:.0f} s")
    if any(isinstance(c, (requests.exceptions.InvalidURL, u3.LocationValueError)) for c in causes):
        return Bug("BadURL", "the address to be requested is not valid; check baseURL and mall_id")
    return Retry("ConnectionLost", f"the connection broke ({cause})")


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    """The exception and what it wraps: urllib3 keeps the reason in `reason` or in the arguments."""
    seen: set[int] = set()
    todo = [exc]
    while todo:
        current = todo.pop()
        if not isinstance(current, BaseException) or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        todo += [getattr(current, "reason", None), current.__cause__, current.__context__, *current.args]
