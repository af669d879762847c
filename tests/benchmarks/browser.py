"""What one browser crawl costs: the product's two strategies beside a browser of its own for every crawl.

All log in to the same seller admin and read one page of 50 orders with thumbnails of 34 KB, in windows of one size, ten at
once on this machine. The rivals are as fair as they can be: they too read the rows with one script. Of a list of several
pages `dom` makes two passes, to be sure of it; what that costs is told beside.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from figures import Figure, at_most, told
from machine import Cpu
from rig import Rig, await_that
from selenium import webdriver
from selenium.common.exceptions import SessionNotCreatedException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

sys.path.append(
    str(Path(__file__).parents[1])
)  # the harness of the tests: a real supervisor, crawls with real pages

from browser_crawl import BrowserCrawl
from supervised import Supervised, supervised

from crawlfleet.browser.chrome import Chrome
from crawlfleet.browser.context import WINDOW
from crawlfleet.browser.pool import Pool
from crawlfleet.browser.processes import adopt_orphans, descendants, memory_mb
from crawlfleet.demo.ably.config import AblyConfig
from crawlfleet.demo.ably.sellers import demo_accounts
from crawlfleet.demo.ably.shop import AblyShop
from crawlfleet.demo.server import ShopServer
from crawlfleet.sources.ably import Ably

AT_ONCE = 10
SHORT = AblyConfig(orders_per_seller=50, draw_delay_s=0.0)
LONG = AblyConfig(orders_per_seller=150, draw_delay_s=0.0)
CHROMIUM, SHELL = "/usr/lib/chromium/chromium", "/usr/lib/chromium/chromium-headless-shell"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--window-size={width},{height}".format(**WINDOW),
)
LAUNCHES = 3
JOBS = {"chromium": 30, "shell": 40, "dom": 120, "long": 60, "http": 2000}
LATER, SOON = 500, 20
WAIT_S = 60
_ROWS = (
    "return document.querySelector('tr.is-skeleton') ? null"
    " : [...document.querySelectorAll('tbody tr[data-sno]')]"
    ".map(row => [...row.cells].map(cell => cell.textContent))"
)

Job = Callable[[dict[str, Any]], int]


@dataclass(frozen=True)
class Cost:
    """What the jobs of one design cost."""

    per_s: float
    cpu_s: float
    pss_mb: float

    def __str__(self) -> str:
        return f"{self.per_s:.2f} jobs/s, {self.cpu_s:.2f} CPU s a job, {self.pss_mb:.0f} MB a job"


def measure(rig: Rig) -> list[Figure]:
    """Jobs a second, memory and CPU of a job, and the memory of a Chrome after many."""
    for program in (CHROMIUM, SHELL, "chromedriver"):
        if not shutil.which(program):
            raise RuntimeError(f"{program} is not installed: apt-get install chromium chromium-driver")
    adopt_orphans()  # else the CPU time of browsers whose chromedriver has ended would be nobody's
    with _shop(SHORT) as url, _shop(LONG) as long_url:
        chromium = _cost("chromium", _own_chromium(url))
        shell = _cost("shell", _own_shell(url))
        with _chrome(rig.folder / "chrome") as (_, pool):
            dom = _cost("dom", _product(pool, url, "dom"))
            long = _cost("long", _product(pool, long_url, "dom"), config=LONG)
            http = _cost("http", _product(pool, url, "http"), logged_in=True)
        with _chrome(rig.folder / "fresh") as (chrome, pool):
            soon_mb, later_mb = _growth(chrome.ready, _product(pool, url, "dom"))
    return [
        _times("dom, jobs/s against a new Chromium a job", dom, chromium, 4),
        at_most(
            "… memory a job (PSS)", dom.pss_mb / chromium.pss_mb, 0.35, "times", f"{dom.pss_mb:.0f} MB against {chromium.pss_mb:.0f}"
        ),
        _times("… against a new headless-shell a job", dom, shell, 1.8),
        _times("http with a living session, against a new Chromium a job", http, chromium, 100),
        at_most(
            f"an idle Chrome after {LATER} jobs against after {SOON}", later_mb / soon_mb, 1.15, "times",
            f"{later_mb:.0f} MB against {soon_mb:.0f}, recycling off",
        ),
        told("three pages instead of one, in two passes", f"{long} (dom)"),
        told("CPU a job", f"{dom.cpu_s:.2f} s (dom), {http.cpu_s * 1000:.0f} ms (http)", f"{chromium.cpu_s:.2f} s (Chromium), {shell.cpu_s:.2f} s (headless-shell)"),
    ]  # fmt: skip


@contextmanager
def _chrome(folder: Path) -> Iterator[tuple[Supervised, Pool]]:
    """A fresh one that is never recycled."""
    with supervised(folder) as chrome:
        chrome.ready()
        pool = Pool(Chrome(chrome.url), recycle_jobs=10**9, recycle_age_s=10**9)
        pool.start(threading.Event().wait)
        yield chrome, pool
        pool.close()


def _times(name: str, ours: Cost, theirs: Cost, bar: float) -> Figure:
    ratio = ours.per_s / theirs.per_s
    return Figure(name, f"{ratio:.3g} times", f"≥ {bar:g} times", ratio >= bar, f"{ours}; {theirs}")


def _cost(name: str, job: Job, *, config: AblyConfig = SHORT, logged_in: bool = False) -> Cost:
    """Run the design's jobs, ten at once; each has to bring all orders."""
    sellers = [line["credentials"] for line in demo_accounts(AT_ONCE * 10, config, datetime.now(UTC))]
    sellers = [credentials for credentials in sellers if "password" in credentials][: AT_ONCE * 5]
    if logged_in:
        for credentials in sellers:
            job(credentials)
    jobs = list(islice(cycle(sellers), JOBS[name]))
    run = job if logged_in else lambda credentials: job(dict(credentials))
    with _watched_pss() as peak_mb:
        before, began = Cpu.now(), time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            counts = list(threads.map(run, jobs))
        took_s, cpu_s = time.monotonic() - began, Cpu.now().ours_since_s(before)
    if set(counts) != {config.orders_per_seller}:
        raise RuntimeError(
            f"{name}: not every job brought {config.orders_per_seller} orders: {sorted(set(counts))}"
        )
    return Cost(len(jobs) / took_s, cpu_s / len(jobs), max(peak_mb) / AT_ONCE)


def _product(pool: Pool, url: str, strategy: str) -> Job:
    adapter = Ably({"strategy": strategy})

    def job(credentials: dict[str, Any]) -> int:
        crawl = BrowserCrawl(pool, url, credentials)
        try:
            return sum(1 for _ in adapter.crawl(crawl))
        finally:
            credentials.update(crawl.credentials)
            crawl.close()

    return job


def _own_chromium(url: str) -> Job:
    """A Chromium and a chromedriver of its own for each job."""

    def job(credentials: dict[str, Any]) -> int:
        with tempfile.TemporaryDirectory(prefix="crawlfleet-bench-") as profile:
            options = webdriver.ChromeOptions()
            options.binary_location = CHROMIUM
            for flag in (*FLAGS, f"--user-data-dir={profile}"):
                options.add_argument(flag)
            return _read_with(options, url, credentials)

    return job


def _own_shell(url: str) -> Job:
    """A headless shell and a chromedriver of its own for each job.

    chromedriver is attached to a shell that was started with a page: its own way to start one gives it no page to find.
    """

    def job(credentials: dict[str, Any]) -> int:
        with tempfile.TemporaryDirectory(prefix="crawlfleet-bench-") as profile:
            command = [
                SHELL,
                *FLAGS,
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ]
            with subprocess.Popen(
                command, stderr=subprocess.PIPE, text=True, start_new_session=True
            ) as shell:
                try:
                    options = webdriver.ChromeOptions()
                    options.debugger_address = _address_of(shell)
                    return _read_with(options, url, credentials)
                finally:
                    os.killpg(shell.pid, signal.SIGKILL)

    return job


def _address_of(shell: subprocess.Popen[str]) -> str:
    assert shell.stderr is not None
    for line in shell.stderr:
        if found := re.search(r"DevTools listening on ws://([\d.:]+)/", line):
            threading.Thread(target=shell.stderr.read, daemon=True).start()
            return found[1]
    raise RuntimeError(f"{SHELL} ended at its launch")


def _read_with(options: webdriver.ChromeOptions, url: str, credentials: dict[str, Any]) -> int:
    driver = _launched(options)
    try:
        return _read(driver, url, credentials)
    finally:
        driver.quit()


def _launched(options: webdriver.ChromeOptions) -> webdriver.Chrome:
    """Ten browsers that begin at once do not always: such a launch is tried again, on the rival's time."""
    for _ in range(LAUNCHES - 1):
        with suppress(SessionNotCreatedException):
            return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    return webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))


def _read(driver: webdriver.Chrome, url: str, credentials: dict[str, Any]) -> int:
    driver.get(f"{url}/login")
    driver.find_element("css selector", "input[name=email]").send_keys(credentials["email"])
    driver.find_element("css selector", "input[name=password]").send_keys(credentials["password"])
    driver.execute_script("document.querySelector('button[type=submit]').click()")
    wait = WebDriverWait(driver, WAIT_S, poll_frequency=0.05)
    wait.until(lambda d: d.current_url.endswith("/dashboard"))
    driver.get(driver.execute_script("return document.querySelector('a[href^=\"/orders\"]').href"))
    return len(wait.until(_rows))


def _rows(driver: webdriver.Chrome) -> Any:
    return driver.execute_script(_ROWS)


def _growth(ready: Callable[[], dict[str, Any]], job: Job) -> tuple[float, float]:
    """The memory of the idle Chrome, in MB, after a few jobs and after many."""
    sellers = [line["credentials"] for line in demo_accounts(9, SHORT, datetime.now(UTC))]
    seen = []
    for jobs in (SOON, LATER - SOON):
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(lambda credentials: job(dict(credentials)), islice(cycle(sellers), jobs)))
        await_that(lambda: ready()["contexts"] == 0, 30, "the contexts to be gone")
        seen.append(min(_chrome_pss_mb() for _ in range(5)))
    return seen[0], seen[1]


@contextmanager
def _watched_pss() -> Iterator[list[float]]:
    """The sum over all Chromes and chromedrivers below this process, once a second, while entered."""
    seen: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1):
            seen.append(_chrome_pss_mb())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        seen.append(0.0)


def _chrome_pss_mb() -> float:
    return memory_mb([pid for pid in descendants(os.getpid()) if _is_chrome(pid)])


def _is_chrome(pid: int) -> bool:
    with suppress(OSError):  # it has just ended
        return Path(f"/proc/{pid}/comm").read_text().startswith("chrom")
    return False


@contextmanager
def _shop(config: AblyConfig) -> Iterator[str]:
    """The seller admin in a process of its own; its URL."""
    spawning = multiprocessing.get_context("spawn")
    ours, its = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(its, config))
    process.start()
    try:
        yield str(ours.recv())
    finally:
        ours.send("end")
        process.join(10)


def _serve(pipe: Connection, config: AblyConfig) -> None:
    with ShopServer(AblyShop(config)) as server:
        pipe.send(server.url)
        pipe.recv()
