"""`crawlfleet chrome`: one Chrome and one chromedriver that come back whatever dies, and leave nothing behind."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from fleet import until
from processes import Watch
from supervised import Supervised, environment_of, listening_addresses, require_chrome, supervised

from crawlfleet.browser.preflight import find_chrome

END_S = 8.0
"""Far longer than an end takes, since a machine may stand still; whoever asks a Chrome that hangs waits for SILENT_S."""
LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


@pytest.fixture(autouse=True, scope="module")
def _chrome_is_installed() -> None:
    require_chrome()


@pytest.fixture(scope="module")
def calm(module_dir: Path) -> Iterator[Supervised]:
    """One that nobody hurts, for all tests that only look. The machine's proxy leads nowhere."""
    proxies = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "example.com"}
    with supervised(module_dir / "calm", PLANTED="secret", **proxies) as chrome:
        chrome.ready()
        yield chrome


@pytest.fixture
def start(open_dir: Path) -> Iterator[Callable[..., Supervised]]:
    """A function that starts one, with these variables in its environment."""
    with ExitStack() as started:
        yield lambda **env: started.enter_context(supervised(open_dir / "chrome", **env))


@pytest.fixture
def walls() -> dict[str, str]:
    """What the supervisor finds around it."""
    return {}


@pytest.fixture
def chrome(start: Callable[..., Supervised], walls: dict[str, str]) -> Supervised:
    """One to be hurt, ready."""
    made = start(**walls)
    made.ready()
    return made


NO_SANDBOX = {"PATH": "/nowhere", "CRAWLFLEET_CHROMEDRIVER": shutil.which("chromedriver") or ""}
"""Without the program `unshare` a sandbox cannot be tried, and is not used: the case of most containers."""
in_both_walls = pytest.mark.parametrize("walls", [{}, NO_SANDBOX], ids=["sandbox", "no sandbox"])


class TestReady:
    def test_chrome_and_chromedriver_answer(self, calm: Supervised) -> None:
        status = calm.ready()

        assert calm.cdp()("Browser.getVersion")["product"].startswith("HeadlessChrome/")
        with urlopen(status["webdriver"] + "/status") as reply:
            assert b'"ready":true' in reply.read()

    def test_chromedriver_is_told_its_port(self, calm: Supervised) -> None:
        """Left alone it picks one that is free in IPv6, and ends if it is not free in IPv4, too."""
        port = urlsplit(calm.ready()["webdriver"]).port

        command = Path(f"/proc/{calm.pid_of('chromedriver')}/cmdline").read_bytes().split(b"\0")
        assert f"--port={port}".encode() in command

    def test_the_first_status_says_all_is_well(self, calm: Supervised) -> None:
        status = calm.ready()

        assert (status["generation"], status["why"], status["limit_mb"]) == (1, "", None)
        assert set(status["restarts"]) == {"exited", "unresponsive", "recycled", "killed"}
        assert not any(status["restarts"].values())
        assert 0 < status["launch_s"] <= status["age_s"]

    def test_probes_are_answered_200(self, calm: Supervised) -> None:
        assert calm.ask("GET", "/healthz") == (200, {"ready": True, "why": ""})

    def test_nothing_can_be_reached_from_outside(self, calm: Supervised) -> None:
        status = calm.ready()

        for url in (status["cdp"], status["webdriver"], f"http://127.0.0.1:{calm.port}"):
            addresses = listening_addresses(url)
            assert addresses
            assert addresses <= LOOPBACK

    def test_a_page_sees_an_automated_korean_browser(self, calm: Supervised) -> None:
        """Nothing disguises the automation; language and time zone are those of every run."""
        devtools = calm.cdp()
        page = devtools.page()

        assert devtools.evaluate(page, "navigator.webdriver") is True
        assert "HeadlessChrome" in devtools.evaluate(page, "navigator.userAgent")
        assert devtools.evaluate(page, "navigator.language") == "ko-KR"
        zone = devtools.evaluate(page, "Intl.DateTimeFormat().resolvedOptions().timeZone")
        assert zone == "Asia/Seoul"

    def test_contexts_are_counted_whoever_made_them(self, calm: Supervised) -> None:
        devtools = calm.cdp()
        made = [devtools("Target.createBrowserContext")["browserContextId"] for _ in range(2)]
        before = until(lambda: contexts(calm, 2), "two contexts more")

        for context in made:
            devtools("Target.disposeBrowserContext", browserContextId=context)

        until(lambda: calm.status()["contexts"] == before - 2, "two contexts less")

    def test_memory_is_what_chrome_takes(self, calm: Supervised) -> None:
        assert 50 < until(lambda: calm.status()["memory_mb"], "memory to be measured") < 500

    def test_chrome_knows_nothing_of_our_environment(self, calm: Supervised) -> None:
        assert environment_of(calm.process.pid)["PLANTED"] == "secret"
        for program in ("chromium", "chromedriver"):
            assert set(environment_of(calm.pid_of(program))) == {"PATH", "LANG", "TZ", "HOME", "TMPDIR"}

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another account")
    def test_nothing_of_chrome_runs_as_root(self, calm: Supervised) -> None:
        nobody = pwd.getpwnam("nobody").pw_uid

        assert {os.stat(f"/proc/{pid}").st_uid for pid in calm.descendants()} <= {nobody}
        assert len(calm.descendants()) > 2


def contexts(chrome: Supervised, at_least: int) -> int:
    found: int = chrome.status()["contexts"]
    return found if found >= at_least else 0


class TestDeath:
    @in_both_walls
    @pytest.mark.parametrize("program", ["chromium", "chromedriver"])
    def test_if_one_is_killed_both_start_afresh(self, chrome: Supervised, program: str) -> None:
        """Also what hangs, and so cannot notice that Chrome is gone."""
        before, old = chrome.status(), chrome.watch()
        for pid in chrome.descendants():
            os.kill(pid, signal.SIGSTOP)

        os.kill(chrome.pid_of(program), signal.SIGKILL)

        after = chrome.ready(generation=2)
        assert not old.survivors(timeout_s=0)
        assert after["restarts"]["exited"] == 1
        assert "was ended by SIGKILL" in after["why"]
        assert before["cdp"] != after["cdp"]
        assert before["webdriver"] != after["webdriver"]

    def test_a_killed_renderer_is_chromes_own_business(self, chrome: Supervised) -> None:
        devtools = chrome.cdp()
        devtools.page()
        renderer = until(lambda: renderers(chrome), "a renderer")[0]
        watch = Watch(renderer)

        os.kill(renderer, signal.SIGKILL)

        assert not watch.survivors()
        assert devtools("Browser.getVersion")
        assert chrome.ready()["generation"] == 1

    def test_a_chrome_that_does_not_answer_is_replaced(self, chrome: Supervised) -> None:
        old = chrome.watch()

        os.kill(chrome.pid_of("chromium"), signal.SIGSTOP)

        after = chrome.ready(generation=2)
        assert after["restarts"]["unresponsive"] == 1
        assert after["why"] == "it has not answered for 10 s"
        assert not old.survivors(timeout_s=0)

    @in_both_walls
    def test_nothing_outlives_a_killed_supervisor(self, chrome: Supervised) -> None:
        chrome.cdp().page()
        watch = chrome.watch()

        chrome.process.kill()

        assert not watch.survivors()

    @in_both_walls
    def test_what_hangs_is_ended_by_the_next_supervisor_of_the_folder(self, chrome: Supervised) -> None:
        """A stopped child of Chrome does not notice that Chrome is gone. Generations go on."""
        chrome.cdp().page()
        chrome.ask("POST", "/kill")
        chrome.ready(generation=2)
        for pid in chrome.descendants():
            os.kill(pid, signal.SIGSTOP)
        watch = chrome.watch()
        chrome.process.kill()

        chrome.start_again()

        assert chrome.ready(generation=3)["generation"] == 3
        assert not watch.survivors(timeout_s=1)


def renderers(chrome: Supervised) -> list[int]:
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in chrome.descendants()}
    return [pid for pid, command in commands.items() if b"--type=renderer" in command]


class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
    def test_a_signal_ends_all_at_once(self, chrome: Supervised, number: signal.Signals) -> None:
        chrome.cdp().page()
        watch = chrome.watch()
        began_s = time.monotonic()

        chrome.process.send_signal(number)

        assert chrome.process.wait() == 0
        assert time.monotonic() - began_s < END_S
        assert not watch.survivors(timeout_s=0)

    @in_both_walls
    def test_a_chrome_that_hangs_ends_at_once_too(self, chrome: Supervised) -> None:
        for pid in chrome.descendants():
            os.kill(pid, signal.SIGSTOP)
        watch = chrome.watch()
        began_s = time.monotonic()

        chrome.process.terminate()

        assert chrome.process.wait() == 0
        assert time.monotonic() - began_s < END_S
        assert not watch.survivors(timeout_s=0)

    def test_it_may_be_ended_while_chrome_starts(self, start: Callable[..., Supervised]) -> None:
        chrome = start()
        until(lambda: chrome.descendants(), "the first process")
        watch = chrome.watch()

        chrome.process.terminate()

        assert chrome.process.wait() in (0, -signal.SIGTERM)
        assert not watch.survivors()

    def test_no_file_is_left(self, chrome: Supervised) -> None:
        assert any(chrome.folder.iterdir())

        chrome.process.terminate()
        chrome.process.wait()

        assert not chrome.folder.exists()


class TestControl:
    def test_a_recycled_chrome_is_a_fresh_one(self, chrome: Supervised) -> None:
        old = chrome.watch()

        assert chrome.ask("POST", "/recycle") == (202, {"generation": 1})

        after = chrome.ready(generation=2)
        assert after["restarts"] == {"exited": 0, "unresponsive": 0, "recycled": 1, "killed": 0}
        assert after["why"] == "recycled on demand"
        assert not old.survivors(timeout_s=0)

    def test_a_kill_needs_no_answer_of_chrome(self, chrome: Supervised) -> None:
        for pid in chrome.descendants():
            os.kill(pid, signal.SIGSTOP)
        old = chrome.watch()
        began_s = time.monotonic()

        assert chrome.ask("POST", "/kill") == (202, {"generation": 1})

        assert not old.survivors(timeout_s=END_S)
        assert time.monotonic() - began_s < END_S
        assert chrome.ready(generation=2)["restarts"]["killed"] == 1

    def test_a_wish_for_a_generation_that_is_gone_changes_nothing(self, chrome: Supervised) -> None:
        """Two crawls that hang in one Chrome must not kill the fresh one, too."""
        chrome.ask("POST", "/kill?generation=1")
        chrome.ready(generation=2)

        chrome.ask("POST", "/kill?generation=1")
        chrome.ask("POST", "/recycle?generation=2")

        assert chrome.ready(generation=3)["restarts"]["killed"] == 1

    def test_probes_get_503_while_chrome_starts_anew(
        self, start: Callable[..., Supervised], open_dir: Path
    ) -> None:
        hold = open_dir / "hold"
        chrome = start(CRAWLFLEET_CHROME=str(held_chrome(open_dir, hold)))
        chrome.ready()
        hold.touch()

        os.kill(chrome.pid_of("chromium"), signal.SIGKILL)

        until(lambda: chrome.ask("GET", "/healthz")[0] == 503, "a 503")
        assert chrome.ask("GET", "/healthz")[1]["why"] == "Chrome was ended by SIGKILL"
        hold.unlink()
        chrome.ready(generation=2)
        assert chrome.ask("GET", "/healthz")[0] == 200

    def test_a_page_cannot_steer_its_browser(self, chrome: Supervised) -> None:
        """Chrome sends the Origin along with each POST of a page."""
        assert chrome.ask("POST", "/kill", {"Origin": "null"})[0] == 403

        chrome.ask("POST", "/recycle")
        assert chrome.ready(generation=2)["restarts"]["killed"] == 0

    @pytest.mark.parametrize("path", ["/", "/reboot", "/kill?generation=x"])
    def test_what_is_unknown_is_404(self, chrome: Supervised, path: str) -> None:
        assert chrome.ask("POST", path)[0] == 404


def held_chrome(folder: Path, hold: Path) -> Path:
    """Chrome, which does not start while `hold` is there."""
    program = folder / "held-chrome"
    program.write_text(
        f"#!/bin/sh\n[ $1 = --version ] || while [ -e {hold} ]; do sleep 0.05; done\n"
        f'exec {find_chrome("chromium-headless-shell")} "$@"\n'
    )
    program.chmod(0o755)
    return program


class TestMemory:
    def test_far_above_the_limit_chrome_is_killed(self, start: Callable[..., Supervised]) -> None:
        chrome = start(CRAWLFLEET_CHROME_MEMORY_MB="300")
        devtools = chrome.cdp()
        page = devtools.page()

        devtools.evaluate(page, "window.kept = new Uint8Array(400 * 2**20).fill(7)[0]")

        after = chrome.ready(generation=2)
        assert after["restarts"]["killed"] == 1
        assert "more than 360 MB" in after["why"]
        assert after["limit_mb"] == 300


class TestUnusable:
    def test_a_chrome_that_dies_at_its_launch_is_tried_again_and_shown(self, open_dir: Path) -> None:
        with supervised(open_dir / "chrome", CRAWLFLEET_CHROME=str(pretender(open_dir))) as chrome:
            assert chrome.process.wait() == 69, chrome.log.read_text()

            said = chrome.log.read_text()
            assert said.count("kind=exited") == 5
            assert said.endswith(
                "crawlfleet: Chrome failed 5 times in a row, at last at its launch:"
                " Chrome ended with exit code 1; it said last:\nno display for you\n"
            )

    def test_a_limit_that_no_chrome_fits_into_is_told(self, open_dir: Path) -> None:
        with supervised(open_dir / "chrome", CRAWLFLEET_CHROME_MEMORY_MB="10") as chrome:
            assert chrome.process.wait() == 69

            assert "MB of memory, more than 12 MB" in chrome.log.read_text()

    def test_what_is_missing_is_one_line(self, open_dir: Path) -> None:
        with supervised(open_dir / "chrome", CRAWLFLEET_CHROMEDRIVER="/nowhere/chromedriver") as chrome:
            assert chrome.process.wait() == 69

            assert chrome.log.read_text().splitlines()[1:] == [
                "crawlfleet: there is no program /nowhere/chromedriver (CRAWLFLEET_CHROMEDRIVER) here;"
                " `apt-get install chromium-driver`, or name another one of the Chrome's version"
            ]

    def test_a_folder_that_is_a_file_is_refused(self, open_dir: Path) -> None:
        (open_dir / "chrome").touch()
        with supervised(open_dir / "chrome") as chrome:
            assert chrome.process.wait() == 78

            assert "CRAWLFLEET_CHROME_DIR: " in chrome.log.read_text()

    def test_a_folder_serves_one_supervisor(self, chrome: Supervised) -> None:
        with supervised(chrome.folder) as second:
            assert second.process.wait() == 78

            assert "is used by another `crawlfleet chrome`" in second.log.read_text()
        assert chrome.ready()["generation"] == 1


def pretender(folder: Path) -> Path:
    """It knows its version, and no more."""
    program = folder / "pretender"
    program.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exec chromedriver --version\necho no display for you >&2\nexit 1\n"
    )
    program.chmod(0o755)
    return program
