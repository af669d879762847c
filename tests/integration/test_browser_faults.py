"""The browser storm in small: thirty faults among a hundred crawls."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser_storm import BrowserStorm
from storm import seed
from supervised import require_chrome


@pytest.mark.timeout(900)
def test_every_crawl_has_its_verdict_in_thirty_faults(database_url: str, open_dir: Path) -> None:
    require_chrome()
    report = BrowserStorm(database_url, open_dir, seed=seed(), sellers=100, faults=30).run()

    assert not report.problems, str(report)
