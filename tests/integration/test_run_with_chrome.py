"""`crawlfleet run` of a batch that needs a browser: a Chrome for each worker, and nothing of it left whoever dies."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import until
from processes import Watch, descendants
from supervised import require_chrome
from terminal import Running, Seat, account_line, accounts_file, batch, manifest, noop_run, seat_in, source

PLUGIN = """
import json
import os
from urllib.request import urlopen

from crawlfleet.errors import Retry
from crawlfleet.sources import Item
from crawlfleet.sources.noop import Noop


class Pages(Noop):
    needs_browser = True

    def crawl(self, crawl):
        yield from super().crawl(crawl)
        while os.path.exists(os.environ.get("HOLD", "")):
            crawl.wait(0.02)
        with urlopen(os.environ["CRAWLFLEET_CHROME_URL"] + "/status", timeout=20) as reply:
            status = json.load(reply)
        if not status["ready"]:
            raise Retry("ChromeNotReady")
        yield Item("chrome", "0", {"cdp": status["cdp"], "generation": status["generation"]})
"""
METADATA = "Metadata-Version: 2.1\nName: pages\nVersion: 1\n"
ENTRY_POINT = "[crawlfleet.sources]\npages = pages:Pages\n"


@pytest.fixture(autouse=True, scope="module")
def _chrome_is_installed() -> None:
    require_chrome()


@pytest.fixture
def seat(open_dir: Path, database_url: str) -> Iterator[Seat]:
    """With the adapter `pages`; temporary folders are made here, too."""
    with seat_in(open_dir, database_url) as made:
        info = open_dir / "pages-1.dist-info"
        info.mkdir()
        (open_dir / "pages.py").write_text(PLUGIN)
        (info / "METADATA").write_text(METADATA)
        (info / "entry_points.txt").write_text(ENTRY_POINT)
        made.environment["PYTHONPATH"] = f"{open_dir}:{made.environment.get('PYTHONPATH', '')}"
        made.environment["TMPDIR"] = str(open_dir)
        yield made


def pages_run(seat: Seat, *, users: int = 6, duration_s: float = 0.3, workers: int = 1) -> list[str | Path]:
    file = manifest(
        seat,
        source(
            "pages", adapter="pages", options={"duration_s": duration_s}, budgets={"retry": 20, "crashed": 20}
        ),
        batch("pages", ["pages"], users={"all": True}, workers=workers),
    )
    accounts = accounts_file(seat, *(account_line(user, source="pages") for user in range(1, users + 1)))
    return ["run", "-f", file, "--accounts", accounts]


def chromes(seat: Seat) -> set[str]:
    """The addresses of the Chromes that the crawls met."""
    return {item["body"]["cdp"] for item in seat.items("pages") if item["kind"] == "chrome"}


def supervisors(run: Running) -> list[int]:
    return [pid for pid in descendants(run.process.pid) if command(pid).endswith(b"crawlfleet\0chrome\0")]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def folders(seat: Seat) -> list[Path]:
    return list(seat.folder.glob("crawlfleet-chrome-*"))


def test_each_worker_has_a_chrome_of_its_own(seat: Seat) -> None:
    seat.ok(*pages_run(seat, users=12, workers=2))

    assert len(chromes(seat)) == 2
    assert seat.processes() == {}
    assert not folders(seat)


def test_a_batch_without_a_browser_starts_none(seat: Seat) -> None:
    seat.ok(*noop_run(seat, users=2))

    assert not list(seat.state_dir.glob("logs/*/chrome-*.log"))


def test_without_chrome_the_run_says_what_to_install(seat: Seat) -> None:
    seat.environment["CRAWLFLEET_CHROME"] = "/nowhere/chrome"

    done = seat.do(*pages_run(seat))

    assert done.returncode == 1
    assert done.stderr.startswith("crawlfleet: there is no program /nowhere/chrome (CRAWLFLEET_CHROME) here;")
    assert seat.crawled("pages") == 0


def test_a_drained_worker_keeps_its_chrome_until_it_has_ended(seat: Seat) -> None:
    """The crawls that run ask Chrome at their end, after the drain began."""
    hold = seat.folder / "hold"
    hold.touch()
    seat.environment["HOLD"] = str(hold)
    run = seat.start(*pages_run(seat, users=4))
    run.wait_for("4 running")
    watch = Watch(*descendants(run.process.pid))

    run.signal(signal.SIGINT)
    run.wait_for("draining")
    hold.unlink()

    assert run.exit_code() in (0, 130)
    assert seat.crawled("pages") == 4
    assert len(chromes(seat)) == 1
    assert not watch.survivors(timeout_s=0)
    assert not folders(seat)


class TestSuddenDeath:
    def test_of_the_run_leaves_no_chrome(self, seat: Seat) -> None:
        run = seat.start(*pages_run(seat, duration_s=60))
        run.wait_for("4 running")
        watch = Watch(*descendants(run.process.pid))

        run.process.kill()
        run.process.wait()

        assert not watch.survivors()
        until(lambda: not folders(seat), "the folders to be removed")

    def test_of_a_supervisor_is_made_good(self, seat: Seat) -> None:
        run = seat.start(*pages_run(seat, users=12, duration_s=1))
        until(lambda: seat.crawled("pages") >= 4, "the first crawls")
        (supervisor,) = supervisors(run)
        watch = Watch(*descendants(supervisor))

        os.kill(supervisor, signal.SIGKILL)

        assert not watch.survivors()
        assert run.exit_code() == 0, run.said
        assert len(chromes(seat)) == 2

    def test_of_a_worker_leaves_its_chrome_to_the_next_one(self, seat: Seat) -> None:
        run = seat.start(*pages_run(seat, users=12, duration_s=1))
        until(lambda: seat.crawled("pages") >= 4, "the first crawls")

        os.kill(seat.worker(0, run), signal.SIGKILL)

        assert run.exit_code() == 0, run.said
        assert len(chromes(seat)) == 1

    def test_twice_ctrl_c_ends_all_at_once(self, seat: Seat) -> None:
        """The crawls would take an hour more."""
        run = seat.start(*pages_run(seat, duration_s=3600))
        run.wait_for("4 running")
        watch = Watch(*descendants(run.process.pid))
        run.signal(signal.SIGINT)
        run.wait_for("draining")

        run.signal(signal.SIGINT)

        assert run.exit_code() == 130
        assert not watch.survivors(timeout_s=0)
        assert not folders(seat)


class TestDoctor:
    def test_a_chrome_is_launched_for_a_moment(self, seat: Seat) -> None:
        seat.ok(*noop_run(seat, users=1))

        (line,) = [line for line in seat.ok("doctor").splitlines() if " chrome: " in line]

        assert re.fullmatch(
            r"ok   chrome: [\d.]+ with its chromedriver, ready in \d+\.\d s, \d+ MB, (in its|without a) sandbox.*",
            line,
        )
        assert seat.processes() == {}
        assert not folders(seat)

    def test_one_that_cannot_run_is_no_fault_where_no_source_needs_it(self, seat: Seat) -> None:
        seat.ok(*noop_run(seat, users=1))
        seat.environment["CRAWLFLEET_CHROME"] = "/nowhere/chrome"

        assert "ok   chrome: no source needs it (there is no program /nowhere/chrome" in seat.ok("doctor")

    def test_one_that_cannot_run_is_a_fault_where_a_source_needs_it(self, seat: Seat) -> None:
        seat.ok(*pages_run(seat, users=1))
        seat.environment["CRAWLFLEET_CHROME"] = "/nowhere/chrome"

        done = seat.do("doctor")

        assert done.returncode == 1
        assert "FAIL chrome: there is no program /nowhere/chrome" in done.stdout
