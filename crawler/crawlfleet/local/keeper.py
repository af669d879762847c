"""The process that a shared PostgreSQL belongs to: none of its users is its parent, so each may leave at any time.

Every user has a seat: a connection to the keeper, which the kernel closes however the user ends. With the last
seat the keeper ends the server, then itself. A keeper that is killed takes the server with it (`child`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector

from crawlfleet.child import spawn

STOP_S = 30.0
_WELCOME, _FAREWELL = b"1", b"0"


def start_keeper(
    server: Sequence[str], door: socket.socket, *, user: str | None, log: Path, lock: int
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a keeper whose server inherits `lock` and runs as `user`: (its process, the first seat).

    `door` listens, alone in its folder but for the server's sockets. It is the keeper's from now on.
    """
    ours, theirs = socket.socketpair()
    fds = [door.fileno(), theirs.fileno(), lock]
    command = [sys.executable, "-m", "crawlfleet.local.keeper", *map(str, fds), user or "", *server]
    with door, theirs, log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=fds,
        )
    return process, ours


def take_seat(door: Path) -> socket.socket | None:
    """A seat at the server of the keeper that listens there; None if nobody does, or it is about to end."""
    seat = socket.socket(socket.AF_UNIX)
    with suppress(OSError):
        seat.settimeout(2.0)
        seat.connect(os.fspath(door))
        if seat.recv(1) == _WELCOME:
            seat.settimeout(None)
            return seat
    seat.close()
    return None


def leave(seat: socket.socket) -> bool:
    """Give the seat back. False, at once, if others have one; else True, when the server has ended."""
    with seat, suppress(OSError):
        seat.settimeout(4 * STOP_S)
        seat.shutdown(socket.SHUT_WR)
        return seat.recv(1) != _FAREWELL
    return True


def _keep(server: subprocess.Popen[bytes], door: socket.socket, first: socket.socket) -> None:
    """Until the last seat is empty or the server has ended. Who leaves last is told by our end."""
    ended, seats, left = os.pidfd_open(server.pid), {first}, []
    door.setblocking(False)
    with DefaultSelector() as selector:
        for readable in (ended, door, first):
            selector.register(readable, EVENT_READ)
        while seats:
            for key, _ in selector.select():
                if key.fileobj == ended:
                    return
                if key.fileobj is door:
                    with suppress(OSError):
                        seat, _ = door.accept()
                        seats.add(seat)
                        selector.register(seat, EVENT_READ)
                        seat.send(_WELCOME)
                else:
                    seat = next(seat for seat in seats if seat is key.fileobj)
                    selector.unregister(seat)
                    seats.remove(seat)
                    left.append(seat)
            while seats and left:
                with left.pop() as seat, suppress(OSError):
                    seat.send(_FAREWELL)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Fast, then at once."""
    for how in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        server.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP_S)
            return


def _main(fds: Sequence[int], user: str, server: Sequence[str]) -> None:
    door, first = (socket.socket(fileno=fd) for fd in fds[:2])
    process = spawn(server, death_signal=signal.SIGINT, user=user or None, pass_fds=fds[2:])
    where = Path(door.getsockname())
    try:
        _keep(process, door, first)
    finally:
        door.close()  # from here on newcomers wait for the lock
        _end(process)
        with suppress(OSError):  # a killed server leaves its socket there
            where.unlink()
            where.parent.rmdir()


if __name__ == "__main__":
    _main([int(fd) for fd in sys.argv[1:4]], sys.argv[4], sys.argv[5:])
