"""The browser storm: three hundred faults among a thousand crawls. Run by `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser_storm import BrowserStorm
from storm import seed


@pytest.mark.timeout(5400)
def test_every_crawl_has_its_verdict_in_three_hundred_faults(database_url: str, open_dir: Path) -> None:
    report = BrowserStorm(database_url, open_dir, seed=seed(), sellers=1000, faults=300).run()

    print(report)
    assert not report.problems, str(report)
