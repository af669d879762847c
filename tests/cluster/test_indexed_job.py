"""The sample batch on a hand-written Job, whose pods are crawler and Chrome, with no operator yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import starting
from cluster.stage import stage, truth
from cluster.testbed.kubectl import Kubectl

CRAWLED_S = 200


@pytest.mark.timeout(600)
def test_three_pods_bring_every_item_and_go(namespace: Kubectl, tmp_path: Path) -> None:
    with stage(namespace, tmp_path) as staged:
        staged.prepare(workers=3)
        staged.start_fleet(workers=3)
        namespace.await_success("fleet", timeout_s=CRAWLED_S)

        namespace.wait("job/fleet", until="condition=Complete", timeout_s=10)  # all its pods have ended

        assert staged.items() == truth()
        assert staged.violations() == {}


@pytest.mark.timeout(600)
def test_a_pod_tells_how_long_it_took_to_its_first_task(
    namespace: Kubectl, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make bench` judges it: a test does not know what else its machine does."""
    with stage(namespace, tmp_path) as staged:
        staged.prepare(workers=1)
        start = starting.of_first_pod(namespace, lambda: staged.start_fleet(workers=1))

    with capsys.disabled():
        print(f"\n{start}")
    assert all(seconds > 0 for seconds in vars(start).values())
