"""A proxy before PostgreSQL, socket to socket, that loses replies: the server did it, the client never hears of it.

It reads just enough of the protocol (version 3) to know the statements of each transaction. It cannot do TLS.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Self
from urllib.parse import parse_qs, urlsplit

Predicate = Callable[[Sequence[str]], bool]


class PgProxy:
    """Listens in `folder`; `url` is the given database through it."""

    def __init__(self, database_url: str, folder: Path) -> None:
        query = parse_qs(urlsplit(database_url).query)
        self._upstream = f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"
        self.url = database_url.replace(f"host={query['host'][0]}", f"host={folder}")
        self._lock = threading.Lock()
        self._links: set[_Link] = set()
        self._refusing = False
        self._losing: Predicate | None = None
        self._to_lose = 0
        self.lost = 0
        """Replies lost so far."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(f"{folder}/.s.PGSQL.{query['port'][0]}")
        self._listener.listen(128)

    def lose(self, transaction: str, *, times: int = 1) -> None:
        """Lose the reply to the next `times` commits of a transaction with such a text in one of its statements."""
        with self._lock:
            self._losing = lambda statements: any(transaction in s for s in statements)
            self._to_lose += times

    def refuse(self) -> None:
        """From now on the database cannot be reached; what is connected is cut."""
        with self._lock:
            self._refusing = True
            links = list(self._links)
        for link in links:
            link.cut()

    def cut(self, share: float, random: Random) -> int:
        """Cut that share of the connections, whatever they are in the middle of; how many."""
        with self._lock:
            links = list(self._links)
        chosen = random.sample(links, round(share * len(links)))
        for link in chosen:
            link.cut()
        return len(chosen)

    def admit(self) -> None:
        """The database can be reached again."""
        with self._lock:
            self._refusing = False

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def loses(self, statements: Sequence[str]) -> bool:
        """Whether the reply to the commit of these statements is to be lost; counts it."""
        with self._lock:
            if self._losing is None or self._to_lose == 0 or not self._losing(statements):
                return False
            self._to_lose -= 1
            self.lost += 1
            return True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link = _Link(self, client, server)
        with self._lock:
            refused = self._refusing
            self._links.add(link)
        try:
            if not refused:
                server.connect(self._upstream)
                link.run()
        except (OSError, struct.error):
            pass  # one of them hung up, maybe in the middle of a message
        finally:
            link.cut()
            with self._lock:
                self._links.discard(link)


class _Link:
    """One client and its server connection."""

    def __init__(self, proxy: PgProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._deaf = threading.Event()  # the client hears no more
        self._prepared: dict[bytes, str] = {}
        self._statements: list[str] = []

    def run(self) -> None:
        replies = threading.Thread(target=self._pass_replies, daemon=True)
        replies.start()
        with self._client.makefile("rb") as stream:
            length = stream.read(4)
            startup = stream.read(struct.unpack("!I", length)[0] - 4) if length else b""
            self._server.sendall(length + startup)
            while kind := stream.read(1):
                length = stream.read(4)
                body = stream.read(struct.unpack("!I", length)[0] - 4)
                if self._commits(kind, body) and self._proxy.loses(self._statements):
                    self._deaf.set()
                self._server.sendall(kind + length + body)
        replies.join()

    def cut(self) -> None:
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _commits(self, kind: bytes, body: bytes) -> bool:
        """Note the statement of this message; whether it is a commit."""
        if kind == b"Q":
            statement = body[:-1].decode()
        elif kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._prepared[name] = text.decode()
            return False
        elif kind == b"B":
            statement = self._prepared[body.split(b"\0", 2)[1]]
        else:
            return False
        if statement.startswith("begin"):
            self._statements = []
        self._statements.append(statement)
        return statement == "commit"

    def _pass_replies(self) -> None:
        """Once deaf, wait for the server to be ready: then it has committed, and the link is cut."""
        with contextlib.suppress(OSError):
            while data := self._server.recv(65_536):
                if not self._deaf.is_set():
                    self._client.sendall(data)
                elif b"Z\0\0\0\x05" in data:
                    break
        self.cut()
