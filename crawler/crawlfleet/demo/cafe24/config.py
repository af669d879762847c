"""What the stand-in cafe24 is told before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from crawlfleet.demo.cafe24.traps import Cafe24Traps
from crawlfleet.demo.violations import Agreement


@dataclass(frozen=True)
class Cafe24Config:
    """One stand-in platform. Equal configs hold equal malls and accept each other's tokens.

    The orders lie in the `order_days` before the shop's first midnight (KST), so a crawl of the last
    seven days holds them all, also when a midnight passes meanwhile. `usage_calls` and
    `usage_processing_s` are what fills the usage limit of a mall to 100 %.
    """

    seed: str = "demo"
    orders_per_mall: int = 12
    products_per_mall: int = 8
    order_days: int = 6
    access_token_s: float = 7200.0
    bucket_size: int = 40
    bucket_drain_per_s: float = 2.0
    usage_calls: int = 1000
    usage_processing_s: float = 300.0
    agreement: Agreement = field(default_factory=Agreement)
    traps: Cafe24Traps = field(default_factory=Cafe24Traps)
