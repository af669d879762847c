"""The body of a reply that was cut by us says why, and does not pass for a whole one."""

from __future__ import annotations

import pytest

from crawlfleet.errors import Retry
from crawlfleet.sources.http import CheckedBody


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
