"""A stand-in platform as its server sees it, and what all platforms have in common.

A platform says whose a request is (`visit`) and answers it; here stand the faults that come before any answer:
a ban of the egress, maintenance, slowness. No socket is opened: a reply says how it has to be sent.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from threading import Lock
from typing import Any, Generic, TypeVar

from crawlfleet.demo.exchange import Delivery, Reply, Request, Visit
from crawlfleet.demo.traps import Switchboard, Traps
from crawlfleet.demo.violations import Witness

AnyTraps = TypeVar("AnyTraps", bound=Traps)

BANNED = "비정상적인 접근이 감지되어 접속이 차단되었습니다"
MAINTENANCE = "서비스 점검 중입니다"


class Shop(ABC, Generic[AnyTraps]):
    """One stand-in platform. Thread-safe; `visit` and `answer` are all a server needs."""

    def __init__(
        self, traps: AnyTraps, witness: Witness[Any], clock: Callable[[], float], *, seed: str
    ) -> None:
        self.switches = Switchboard(traps)
        self.witness = witness
        self._clock = clock
        self._banned_until_s: dict[str, float] = {}
        self._random_lock = Lock()
        # Repeatable faults, not secrets.
        self._random = random.Random(seed)  # noqa: S311

    @abstractmethod
    def visit(self, request: Request) -> Visit:
        """Whose request it is and what it wants."""

    @abstractmethod
    def _reply(self, request: Request, visit: Visit, traps: AnyTraps) -> Reply:
        """The answer of a platform that is up, to an egress that is not banned."""

    def answer(self, request: Request) -> Reply:
        """The reply to one request; a trap may have spoiled it."""
        visit = self.visit(request)
        traps = self.switches.traps(visit.account)
        if self._is_banned(request.egress, traps):
            reply = Reply.of_notice(403, BANNED)
        elif traps.maintenance:
            reply = Reply.of_notice(503, MAINTENANCE)
        else:
            reply = self._reply(request, visit, traps)
        delay_s = self._delay_s(visit, traps)
        return replace(reply, delay_s=delay_s) if delay_s else reply

    def _delay_s(self, visit: Visit, traps: AnyTraps) -> float:
        return traps.slow_s

    def _is_banned(self, egress: str, traps: AnyTraps) -> bool:
        now_s = self._clock()
        if traps.ban_s and self.switches.spring_once("ban_s", egress):
            self._banned_until_s[egress] = now_s + traps.ban_s
            self.witness.told_ban(egress, traps.ban_s)
        return now_s < self._banned_until_s.get(egress, 0.0)

    def _fails(self, traps: AnyTraps) -> bool:
        """Whether this request is one of the share that fails."""
        with self._random_lock:
            return bool(traps.error_500) and self._random.random() < traps.error_500


def spoil_json(reply: Reply, traps: Traps) -> Reply:
    """The reply with what the traps do to a JSON object that is otherwise right."""
    if traps.huge_page_bytes:
        padding = b'{"padding": "' + b"x" * traps.huge_page_bytes + b'", '
        reply = replace(reply, body=padding + reply.body[1:])
    if traps.drip:
        return replace(reply, delivery=Delivery.DRIP)
    return replace(reply, delivery=Delivery.TRUNCATED) if traps.truncated else reply
