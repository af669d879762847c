"""The supervised Chrome as a worker sees it: what its control port says, and its lever.

`crawlfleet chrome` serves that port, in the same pod or beside a local worker; nothing here knows its processes.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import requests

from crawlfleet.browser.health import Status

ANSWER_S = 2.0


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
