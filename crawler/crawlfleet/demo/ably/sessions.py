"""Which sessions at the stand-in ably are alive, and which passwords are right."""

from __future__ import annotations

from enum import StrEnum
from threading import Lock

from crawlfleet.demo.ably.config import AblyConfig
from crawlfleet.demo.ably.sellers import Session, generation_of


class State(StrEnum):
    """What became of a session."""

    LIVE = "live"
    ENDED = "ended"
    SILENT = "silent"
    """It has ended, but the API does not say so."""


class Sessions:
    """All sessions of all sellers. Thread-safe.

    A seller may have many; they last until they are ended. A shop that has just started takes any that it
    signed, and any password as the newest, so accounts stored by an earlier run keep working.
    """

    def __init__(self, config: AblyConfig) -> None:
        self._config = config
        self._lock = Lock()
        self._newest: dict[str, int] = {}
        self._ended: dict[str, dict[State, int]] = {}
        self._generations: dict[str, int] = {}

    def accepts(self, seller: str, password: str) -> bool:
        """Whether that is the seller's password, which a newer one replaces for ever."""
        generation = generation_of(self._config, seller, password)
        with self._lock:
            if generation is None or generation < self._generations.get(seller, 0):
                return False
            self._generations[seller] = generation
            return True

    def open(self, seller: str) -> Session:
        """A new session; the others live on."""
        with self._lock:
            self._newest[seller] = self._newest.get(seller, 0) + 1
            return Session(seller, self._newest[seller])

    def end(self, session: Session, how: State = State.ENDED) -> None:
        """End that session and all older ones of its seller."""
        with self._lock:
            self._newest[session.seller] = max(self._newest.get(session.seller, 0), session.number)
            self._ended.setdefault(session.seller, {})[how] = session.number

    def end_all(self, seller: str) -> None:
        """End all sessions of a seller so far, as if a person had logged out everywhere."""
        with self._lock:
            newest = self._newest.get(seller, 0)
        self.end(Session(seller, newest))

    def state(self, session: Session) -> State:
        """What became of it."""
        with self._lock:
            ended = self._ended.get(session.seller, {})
            return next(
                (how for how in (State.ENDED, State.SILENT) if session.number <= ended.get(how, -1)),
                State.LIVE,
            )
