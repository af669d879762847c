"""Connections that end too early: a body that was cut by us says why, and a lost reply is no request that was not sent."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from crawlfleet.errors import Retry
from crawlfleet.sources.http import CheckedBody, Connections, open_session, verdicts


class ShutWhileRead:
    """The raw body of a reply without a length: its socket is shut while somebody reads."""

    shut = False

    def read(self, amt: int | None, decode_content: bool) -> bytes:
        self.shut = True
        return b""


def test_a_body_that_ends_because_its_socket_was_shut_says_why() -> None:
    raw = ShutWhileRead()

    def check() -> None:
        if raw.shut:
            raise Retry("Stopped")

    with pytest.raises(Retry, match="Stopped"):
        CheckedBody(raw, check).read(1)


@pytest.mark.parametrize("way_out", ["direct", "proxy"])
@pytest.mark.parametrize("end", ["closed", "reset"])
def test_a_connection_that_breaks_before_the_reply_is_lost_whatever_the_way_out(
    end: str, way_out: str
) -> None:
    """The request has been read: one that were said to be `never_sent` would be sent again."""
    with socket.create_server(("127.0.0.1", 0)) as peer:
        address = f"http://127.0.0.1:{peer.getsockname()[1]}"
        breaking = threading.Thread(target=break_off, args=(peer, end))
        breaking.start()
        connections = Connections()
        url, proxy = (address, None) if way_out == "direct" else ("http://example.com/", address)
        with (
            open_session(connections, proxy) as session,
            pytest.raises(Retry) as raised,
            verdicts(lambda: None),
        ):
            session.post(url, data=b"secret", timeout=10)
        breaking.join()
        connections.close()
    assert (raised.value.reason, raised.value.never_sent) == ("ConnectionLost", False)


def break_off(peer: socket.socket, end: str) -> None:
    """Read a request to its end, and leave without a word."""
    connection, _ = peer.accept()
    with connection:
        seen = b""
        while not seen.endswith(b"secret"):
            seen += connection.recv(1000)
        if end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
