"""From a clean clone to the first finished crawl: what `make run` takes on a machine with warm package caches."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from figures import Figure, at_most
from rig import Rig, await_that

BAR_S = 120.0
REPOSITORY = Path(__file__).resolve().parents[2]
FIRST_CRAWL = re.compile(r"^local-batch: [1-9]\d*/\d+ done", re.MULTILINE)


def measure(rig: Rig) -> list[Figure]:
    """Clone what is committed, `make run` there, and watch what it says. State lies in a folder of the bench."""
    clone, log = rig.folder / "clone", rig.folder / "make-run.log"
    began_s = time.monotonic()
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], check=True)
    with _make(clone, log, "run", f"RUN=--state-dir {rig.folder / 'clone-state'}") as run:
        await_that(lambda: run.poll() is not None or _says(log, FIRST_CRAWL), 600, "the first crawl")
        took_s = time.monotonic() - began_s
        code = run.wait(300)
    if code != 0 or not _says(log, FIRST_CRAWL):
        raise RuntimeError(f"`make run` ended with {code}:\n{log.read_text()[-2000:]}")
    return [
        at_most("clean clone to the first finished crawl", took_s, BAR_S, "s", "`make run`, by its output")
    ]


@contextmanager
def _make(folder: Path, log: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`make` in that folder as somebody who has just cloned it; whatever runs at the end is ended."""
    ours = ("MAKE", "MFLAGS", "CRAWLFLEET_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    with log.open("wb") as output:
        started = subprocess.Popen(
            ["make", *words],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        started.wait()


def _says(log: Path, pattern: re.Pattern[str]) -> bool:
    return pattern.search(log.read_text(errors="replace")) is not None
