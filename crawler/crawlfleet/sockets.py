"""What the other end of a socket does."""

from __future__ import annotations

import socket


def is_open(connection: socket.socket) -> bool:
    """Whether the other end still holds it. For one that waits for us and sends nothing meanwhile."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
