"""The supervised Chrome as a worker sees it: what its control port says, and two levers.

`crawlfleet chrome` serves that port, in the same pod or beside a local worker; nothing here knows its processes.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    def recycle(self) -> None:
        """End it and start afresh; whatever is open in it is lost."""
        self._post("recycle")

    def kill(self) -> None:
        """The same without asking it first."""
        self._post("kill")

    def _post(self, lever: str) -> None:
        try:
            ask("POST", f"{self.url}/{lever}")
        except requests.RequestException:
            return  # the next look at its status tells whether it has to be said again
