"""What the stand-in ably counts beside what every shop counts: passwords, challenges, mixed-up sessions, images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from crawlfleet.demo.ably.sellers import Session
from crawlfleet.demo.violations import Agreement, Counters, Witness


@dataclass
class AblyCounters(Counters):
    """Exact counts since the shop started.

    password_after_refusal: a password came again that had been refused, or that only a person could have gone on
    with (captcha, second factor): that locks sellers out. password_again: it came again although the last
    login with it had not led to its orders: it was interrupted, its reply was lost, or it is a loop.
    challenge_attempts: somebody tried to answer a captcha or a second factor. foreign_session: one request, two
    sellers. images: thumbnails that were asked for.
    """

    images: int = 0
    password_after_refusal: int = 0
    password_again: int = 0
    challenge_attempts: int = 0
    foreign_session: int = 0


class _Stage(StrEnum):
    OPEN = "open"
    REFUSED = "refused"
    DONE = "done"


@dataclass
class _Login:
    """The latest submission of a seller's password, and the number of the session it brought."""

    password: str
    stage: _Stage = _Stage.OPEN
    session: int = 0


class AblyWitness(Witness[AblyCounters]):
    """Keeps the counters. Thread-safe."""

    def __init__(self, agreement: Agreement, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(agreement, AblyCounters(), clock)
        self._logins: dict[str, _Login] = {}

    def password_submitted(self, seller: str, password: str) -> None:
        """A login came in."""
        with self._lock:
            last = self._logins.get(seller)
            if last and last.password == password:
                self._counters.password_after_refusal += last.stage is _Stage.REFUSED
                self._counters.password_again += last.stage is _Stage.OPEN
            self._logins[seller] = _Login(password)

    def login_accepted(self, session: Session) -> None:
        """The session that the latest login brought; the login is done when its orders are asked for."""
        with self._lock:
            self._logins[session.seller].session = session.number

    def login_refused(self, seller: str) -> None:
        """The seller's latest login was refused, or only a person can go on with it."""
        with self._lock:
            if seller in self._logins:
                self._logins[seller].stage = _Stage.REFUSED

    def orders_asked(self, session: Session) -> None:
        """A live session asked for its order page or its orders."""
        with self._lock:
            login = self._logins.get(session.seller)
            if login and login.stage is _Stage.OPEN and login.session == session.number:
                login.stage = _Stage.DONE

    def challenge_attempted(self) -> None:
        """An answer to a captcha or a second factor came in."""
        with self._lock:
            self._counters.challenge_attempts += 1

    def sellers_mixed(self) -> None:
        """A request named two sellers."""
        with self._lock:
            self._counters.foreign_session += 1

    def image_asked(self) -> None:
        """A thumbnail was asked for."""
        with self._lock:
            self._counters.images += 1
