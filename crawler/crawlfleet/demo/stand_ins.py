"""The stand-in shops by the name of the platform they play, and how each is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from crawlfleet.demo.ably import sellers as ably
from crawlfleet.demo.ably.config import AblyConfig
from crawlfleet.demo.ably.shop import AblyShop
from crawlfleet.demo.cafe24 import tokens as cafe24
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.shop import Cafe24Shop
from crawlfleet.demo.exchange import Body
from crawlfleet.demo.shop import Shop
from crawlfleet.demo.violations import Agreement


@dataclass(frozen=True)
class StandIn:
    """One platform that can be played: `name` is also its adapter, `path` what a baseURL has after the port."""

    name: str
    path: str
    shop: Callable[[Agreement], Shop[Any]]
    accounts: Callable[[int, datetime], Iterator[Body]]
    """The account lines of so many sellers, as of that time."""


STAND_INS = {
    stand_in.name: stand_in
    for stand_in in (
        StandIn(
            "cafe24",
            "/{mall_id}",
            lambda agreement: Cafe24Shop(Cafe24Config(agreement=agreement)),
            lambda count, now: cafe24.demo_accounts(count, Cafe24Config(), now),
        ),
        StandIn(
            "ably",
            "",
            lambda agreement: AblyShop(AblyConfig(agreement=agreement)),
            lambda count, now: ably.demo_accounts(count, AblyConfig(), now),
        ),
    )
}
