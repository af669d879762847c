"""The supervised Chrome as a worker sees it: what its control port says, and two levers.

`crawlfleet chrome` serves that port, in the same pod or beside a local worker; nothing here knows its processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import requests

ANSWER_S = 2.0


@dataclass(frozen=True)
class Status:
    """What the supervisor says of its Chrome. `generation` counts launches; `cdp` and `webdriver` are its addresses."""

    ready: bool
    why: str
    generation: int
    cdp: str
    webdriver: str
    memory_mb: float
    limit_mb: int | None
    age_s: float
    launch_s: float
    restarts: Mapping[str, int]


def ask(method: str, url: str, timeout_s: float = ANSWER_S) -> requests.Response:
    """Ask something on this machine, past whatever proxy its environment names."""
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, url, timeout=timeout_s)


class Chrome:
    """The control port at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def status(self) -> Status | None:
        """How it is now; None if the supervisor does not answer."""
        try:
            reply: dict[str, Any] = ask("GET", f"{self.url}/status").json()
            return Status(**{name: reply[name] for name in Status.__dataclass_fields__})
        except (requests.RequestException, KeyError, TypeError):
            return None

    def recycle(self, generation: int) -> None:
        """End that Chrome and start afresh; whatever is open in it is lost. A reply that is lost is no error:
        the status tells whether it has to be said again."""
        with suppress(requests.RequestException):
            ask("POST", f"{self.url}/recycle?generation={generation}")
