"""How fast the test cluster comes and goes, and how fast a crawler pod on it takes its first task."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psycopg
from figures import Figure, at_most, told
from rig import Rig

sys.path.append(str(Path(__file__).resolve().parents[1]))  # `cluster` is for tests, too
from cluster import starting
from cluster.operated import operated, serve_kinds
from cluster.stage import Stage, stage
from cluster.testbed import cluster, machine, remains
from cluster.testbed.kubectl import Kubectl, fresh_namespace

from crawlfleet.browser.processes import memory_mb

CRAWLED_S = 300
Made = TypeVar("Made")


def measure(rig: Rig) -> list[Figure]:
    """A testbed that is built already is started, loaded with one fleet, and ended."""
    with machine.claimed():
        if cluster.is_running():
            raise RuntimeError("a test cluster is running: `make cluster-down` first")
        cluster.build()
        cluster.down()
        try:
            running, up_s = _timed(cluster.up)
            idle_mb = memory_mb(remains.processes())
            with fresh_namespace(running.kubectl, "bench") as kubectl, stage(kubectl, rig.folder) as staged:
                start, gone_s = _run_fleet(staged)
            with fresh_namespace(running.kubectl, "bench-operator") as kubectl:
                applied = _apply(kubectl, rig.folder)
        finally:
            _, down_s = _timed(cluster.down)
    return [
        at_most("cluster-up, everything built, to two ready nodes", up_s, 30, "s"),
        at_most("the idle cluster's memory (PSS)", idle_mb, 1024, "MB"),
        at_most("from the Job's creation to its pod's first task", start.total_s, 6, "s", str(start)),
        at_most(
            "from `kubectl apply` of a CrawlBatch until its pod is scheduled",
            applied.scheduling_s,
            1.5,
            "s",
            str(applied),
        ),
        at_most("from the batch's end until its pods are gone", gone_s, 10, "s"),
        at_most("cluster-down", down_s, 10, "s"),
        told("what cluster-down left", ", ".join(remains.left()) or "nothing"),
    ]


def _run_fleet(staged: Stage) -> tuple[starting.Start, float]:
    """One pod crawls the sample: how it started, and how long it stayed after the end."""
    staged.prepare(workers=1)
    start = starting.of_first_pod(staged.kubectl, lambda: staged.start_fleet(workers=1))
    staged.kubectl.await_success("fleet", timeout_s=CRAWLED_S)
    staged.kubectl.wait("job/fleet", until="condition=Complete")
    gone_at = time.time()
    with psycopg.connect(staged.database_url) as conn:
        row = conn.execute("select extract(epoch from closed_at)::float8 from batch").fetchone()
    assert row is not None
    return start, gone_at - row[0]


def _apply(kubectl: Kubectl, folder: Path) -> starting.Start:
    """The same pod by way of the operator."""
    serve_kinds(kubectl)
    with operated(kubectl, folder) as fleet:
        return starting.of_first_pod(kubectl, lambda: fleet.apply_batch(workers=1))


def _timed(do: Callable[[], Made]) -> tuple[Made, float]:
    began_s = time.monotonic()
    made = do()
    return made, time.monotonic() - began_s
