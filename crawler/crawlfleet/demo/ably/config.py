"""What the stand-in ably is told before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from crawlfleet.demo.ably.traps import AblyTraps
from crawlfleet.demo.violations import Agreement


@dataclass(frozen=True)
class AblyConfig:
    """One stand-in platform. Equal configs hold equal sellers and accept each other's passwords and tokens.

    The orders lie in the `order_days` before the shop's first midnight (KST), so a crawl of the last
    seven days holds them all, also when a midnight passes meanwhile. The order page shows
    `rows_per_page`, `draw_delay_s` after they have come.
    """

    seed: str = "demo"
    orders_per_seller: int = 60
    order_days: int = 6
    rows_per_page: int = 50
    draw_delay_s: float = 0.3
    agreement: Agreement = field(default_factory=Agreement)
    traps: AblyTraps = field(default_factory=AblyTraps)
