"""The storm: two hundred faults over 5,000 tasks. Run by `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest
from storm import Storm, seed


@pytest.mark.timeout(3600)
def test_nothing_is_lost_in_two_hundred_faults(open_dir: Path) -> None:
    report = Storm(open_dir, seed=seed(), faults=200, length_s=200).run()

    print(report.summary())
    assert not report.problems, report.full()
