"""The whole sample with every passing trap on: a hundred sellers at both shops, two workers with a Chrome each."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fleet import CALM, Fleet, WatchedAblyShop, WatchedShop
from supervised import require_chrome, supervised

USERS = range(1, 101)
PASSING = {"error_500": 0.03, "moving_orders": True, "ban_s": 1.0, "slow_s": 0.02}
"""Traps of every shop that a patient client gets over."""
PAGES = {"popup": True, "alert": True, "slow_table_s": 0.3}
ENDINGS = ({"revoke_mid_job": True}, {"silent_logout_mid_job": True})
PATIENT: dict[str, Any] = {
    "budgets": {"retry": 8, "throttledSeconds": 600},
    "coolDownSeconds": {"first": 2, "longest": 4},
}


@pytest.mark.timeout(900)
def test_every_item_of_every_seller_is_there_and_no_shop_complains(
    database_url: str, tmp_path: Path, open_dir: Path
) -> None:
    require_chrome()
    with ExitStack() as stack:
        ably = stack.enter_context(WatchedAblyShop(draw_delay_s=0.05))
        cafe24 = stack.enter_context(WatchedShop())
        fleet = stack.enter_context(Fleet(database_url, tmp_path, CALM))
        chromes = [stack.enter_context(supervised(open_dir / f"chrome-{number}")) for number in range(2)]
        ably.switch(**PASSING, **PAGES)
        cafe24.switch(**PASSING, throttle_once=True)
        for user in USERS:
            if "password" in ably.credentials(user):
                # A throttle there speaks against the exit: a few of them, or it is cut again and again.
                ably.switch_account(f"demo{user}", **ENDINGS[user % 2], throttle_once=user % 20 == 1)
        fleet.ably(ably, users=USERS, **PATIENT)
        fleet.cafe24(cafe24, users=len(USERS), maxConcurrent=20, **PATIENT)
        fleet.plan(workers=2)
        workers = [
            fleet.start(number, slots=15, CRAWLFLEET_CHROME_URL=chrome.url)
            for number, chrome in enumerate(chromes)
        ]
        assert [worker.exit_code(600) for worker in workers] == [0, 0]
        assert set(fleet.conn.execute("select distinct state::text from task").fetchall()) == {("ok",)}
        items = fleet.items()
        for user in USERS:
            truth = {**ably.truth([user], strategy="dom")[user], **cafe24.truth([user])[user]}
            assert {key: items[user].get(key) for key in truth} == truth
        assert ably.violations() == {}
        assert cafe24.violations() == {}
