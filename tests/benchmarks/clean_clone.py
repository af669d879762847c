"""From a clean clone to the first finished crawl: what `make run` takes on a machine with warm package caches."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from figures import Figure, at_most
from rig import Rig, await_that

BAR_S = 120.0
REPOSITORY = Path(__file__).resolve().parents[2]


def measure(rig: Rig) -> list[Figure]:
    """Clone what is committed, `make run` there, and look for the first crawl in the workers' logs."""
    clone, state = rig.folder / "clone", rig.folder / "clone-state"
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    with (rig.folder / "make-run.log").open("wb") as log:
        began_s = time.monotonic()
        subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
        make = subprocess.Popen(
            ["make", "run", f"CRAWLFLEET_STATE={state}"], cwd=clone, env=environment, stdout=log, stderr=log
        )
        await_that(lambda: make.poll() is not None or _has_crawled(state), 600, "the first crawl")
        took_s = time.monotonic() - began_s
        if make.wait(300) != 0:
            raise RuntimeError(
                f"make run ended with {make.returncode}:\n{Path(log.name).read_text()[-2000:]}"
            )
    shutil.rmtree(clone)
    return [at_most("clean clone to the first finished crawl", took_s, BAR_S, "s", "warm package caches")]


def _has_crawled(state: Path) -> bool:
    return any("crawled" in log.read_text() for log in state.rglob("worker-*.log"))
