"""From a clean clone to the first finished crawl: what `make run` takes on a machine with warm package caches."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from figures import Figure, at_most
from rig import Rig, await_that

BAR_S = 120.0
REPOSITORY = Path(__file__).resolve().parents[2]


def measure(rig: Rig) -> list[Figure]:
    """Clone what is committed, do what `make run` does with a state folder of its own, look for the first crawl."""
    clone, state, log = rig.folder / "clone", rig.folder / "clone-state", rig.folder / "make-run.log"
    command = ".venv/bin/crawlfleet run --shops -f k8s/samples/local-batch.yaml --state-dir"
    began_s = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    with log.open("wb") as output:
        subprocess.run(["make", "setup"], cwd=clone, stdout=output, stderr=output, check=True)
        setup_s = time.monotonic() - began_s
        run = subprocess.Popen([*command.split(), str(state)], cwd=clone, stdout=output, stderr=output)
        await_that(lambda: run.poll() is not None or _has_crawled(state), 600, "the first crawl")
        took_s = time.monotonic() - began_s
    if run.wait(300) != 0:
        raise RuntimeError(f"the run ended with {run.returncode}:\n{log.read_text()[-2000:]}")
    return [
        at_most(
            "clean clone to the first finished crawl", took_s, BAR_S, "s", f"{setup_s:.0f} s for make setup"
        )
    ]


def _has_crawled(state: Path) -> bool:
    return any("crawled" in log.read_text() for log in state.rglob("worker-*.log"))
