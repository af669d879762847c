"""The storm in small: thirty faults over 5,000 tasks."""

from __future__ import annotations

from pathlib import Path

import pytest
from storm import Storm, seed


@pytest.mark.timeout(600)
def test_nothing_is_lost_in_thirty_faults(open_dir: Path) -> None:
    report = Storm(open_dir, seed=seed(), faults=30, length_s=50).run()

    assert not report.problems, report.full()
