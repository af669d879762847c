"""The Chrome beside a local worker: the same supervisor, as a child of whoever needs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import until
from processes import Watch, descendants
from supervised import require_chrome

from crawlfleet.errors import CrawlfleetError
from crawlfleet.local.chrome import LocalChrome, try_out

PARENT = """
import sys, time
from pathlib import Path
from crawlfleet.local.chrome import LocalChrome
chrome = LocalChrome(Path(sys.argv[1]))
while not ((status := chrome.status()) and status.ready):
    time.sleep(0.02)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True, scope="module")
def _chrome_is_installed() -> None:
    require_chrome()


@pytest.fixture(autouse=True)
def _temporary_folders_here(open_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(open_dir))
    monkeypatch.setenv("TMPDIR", str(open_dir))


@pytest.fixture
def chrome(open_dir: Path) -> Iterator[LocalChrome]:
    made = LocalChrome(open_dir / "log")
    try:
        until(lambda: (status := made.status()) and status.ready, "Chrome to be ready")
        yield made
    finally:
        made.end()


def supervisor() -> int:
    """The only child of this process that is a supervisor."""
    (pid,) = [pid for pid in descendants(os.getpid()) if is_supervisor(pid)]
    return pid


def is_supervisor(pid: int) -> bool:
    return Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"crawlfleet\0chrome\0")


def tended(chrome: LocalChrome) -> LocalChrome:
    chrome.tend()
    return chrome


def folders(open_dir: Path) -> list[Path]:
    return list(open_dir.glob("crawlfleet-chrome-*"))


def test_a_dead_supervisor_is_replaced_at_the_same_address(chrome: LocalChrome, open_dir: Path) -> None:
    url, pid = chrome.url, supervisor()
    watch = Watch(*descendants(pid))

    os.kill(pid, signal.SIGKILL)

    until(lambda: (status := tended(chrome).status()) and status.generation == 2, "a new one")
    assert not watch.survivors()
    assert chrome.url == url
    assert len(folders(open_dir)) == 1


def test_nothing_is_left_after_the_end(chrome: LocalChrome, open_dir: Path) -> None:
    watch = Watch(supervisor(), *descendants(supervisor()))

    chrome.end()

    assert not watch.survivors(timeout_s=0)
    assert not folders(open_dir)


def test_a_supervisor_that_hangs_is_killed_at_the_end_with_its_chrome(chrome: LocalChrome) -> None:
    pid = supervisor()
    watch = Watch(pid, *descendants(pid))
    os.kill(pid, signal.SIGSTOP)

    chrome.end()

    assert not watch.survivors()


def test_nothing_is_left_after_its_parent_was_killed(open_dir: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(open_dir / "log")], stdout=subprocess.PIPE)
    assert parent.stdout
    assert parent.stdout.readline() == b"ready\n"
    watch = Watch(*descendants(parent.pid))

    parent.kill()

    parent.communicate()
    assert not watch.survivors()
    assert not folders(open_dir)


def test_one_that_cannot_run_is_not_tried_again(open_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRAWLFLEET_CHROME", "/nowhere/chrome")
    chrome = LocalChrome(open_dir / "log")
    try:
        with pytest.raises(
            CrawlfleetError,
            match=r"(?s)ended with 69; its log .* ends:\n.*there is no program /nowhere/chrome",
        ):
            until(lambda: tended(chrome) is None, "it to give up")
    finally:
        chrome.end()


def test_a_trial_leaves_nothing(open_dir: Path) -> None:
    assert try_out().ready

    assert not list(open_dir.iterdir())
    assert not [pid for pid in descendants(os.getpid()) if is_supervisor(pid)]
