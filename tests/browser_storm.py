"""The browser storm: pages that hang, crash and lie, and kills of Chrome, chromedriver and worker, in the midst of crawls.

Every crawl has to get its verdict in time, every seller its due, and nothing may be left of any page or process.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from fleet import Fleet, WatchedAblyShop, WorkerProcess, until
from supervised import Supervised, supervised

from crawlfleet.demo.violations import Agreement
from crawlfleet.store.fleet import Clock

CLOCK = Clock(tick_s=0.3, expire_ticks=12, quarantine_ticks=14)
"""A worker stops itself after 3 s without a renewal; its permits are free again after 7.8 s."""
POST_S = 20.0
JOB_S = 40
LATE_S = 5
WORKERS, SLOTS, CAP = 4, 4, 12
PAGES: dict[str, dict[str, Any]] = {
    "hang": {"hang": True},
    "crash": {"crash_renderer": True},
    "huge": {"huge_page_bytes": 100_000_000},
    "download": {"download": True},
    "redirect": {"endless_redirect": True},
    "alert": {"alert": True},
}
"""What a seller's page does, for as long as the storm lasts."""
READABLE = {"huge", "alert"}
KILLS = ("chromium", "chromedriver", "worker")
VERDICTS = {
    "hang": {"retry", "crashed"},
    "huge": {"retry", "crashed"},
    "crash": {"crashed"},
    "download": {"bug"},
    "redirect": {"retry"},
}
"""A page that takes long may use up its budget of crashes on kills, or its time while Chromes are started beside it."""

_WORKER = f"""
import sys
from crawlfleet import crawl, tokens
from crawlfleet.cli import main
tokens.POST_S = crawl.POST_S = {POST_S}
sys.exit(main(["worker"]))
"""


def _is_empty(chrome: Supervised) -> bool:
    return bool(chrome.ready()["contexts"] == 0)


def _has_ticked(fleet: Fleet, tick: int) -> bool:
    return int(fleet.scalar("select tick from fleet")) > tick


def _logging_in(fleet: Fleet) -> int:
    return int(fleet.scalar("select count(*) from account where refresh_lease is not null"))


@dataclass
class Report:
    """What happened; `problems` are broken promises."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    pages: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = f"seed {self.seed}; pages {dict(self.pages)}; kills {dict(self.kills)}; failures {dict(self.failures)}"
        return "\n".join([told, *self.problems])


class BrowserStorm:
    """`faults` faults among the crawls of `sellers`: half of them pages, half of them kills."""

    def __init__(self, url: str, folder: Path, *, seed: int, sellers: int, faults: int) -> None:
        self._random = Random(seed)
        self._url = url
        self._folder = folder
        self._users = range(1, sellers + 1)
        kinds = [self._random.choice(list(PAGES)) for _ in range(faults // 2)]
        self._odd = dict(zip(self._random.sample(self._users, len(kinds)), kinds, strict=True))
        self._kills = [self._random.choice(KILLS) for _ in range(faults - len(kinds))]
        self._hit_logins = 0
        self._report = Report(seed, pages=Counter(kinds))

    def run(self) -> Report:
        """Let it rage, and look at what is left."""
        with ExitStack() as stack:
            shop = stack.enter_context(
                WatchedAblyShop(
                    draw_delay_s=0.05, orders_per_seller=20, agreement=Agreement(accounts_per_egress=CAP)
                )
            )
            fleet = stack.enter_context(Fleet(self._url, self._folder, CLOCK))
            chromes = [stack.enter_context(supervised(self._folder / f"chrome-{n}")) for n in range(WORKERS)]
            for user, kind in self._odd.items():
                shop.switch_account(f"demo{user}", **PAGES[kind])
            fleet.ably(
                shop,
                users=self._users,
                maxConcurrent=CAP,
                jobTimeoutSeconds=JOB_S,
                budgets={"retry": 1, "crashed": 6},
            )
            fleet.plan(workers=WORKERS)
            workers = [self._start(fleet, n, chrome) for n, chrome in enumerate(chromes)]
            self._rage(fleet, chromes, workers)
            self._judge(fleet, shop)
            for chrome in chromes:
                until(partial(_is_empty, chrome), "no context to be left")
            watches = [chrome.watch() for chrome in chromes]
        self._report.problems += [f"left over: {pids}" for watch in watches if (pids := watch.survivors())]
        return self._report

    def _start(self, fleet: Fleet, number: int, chrome: Supervised) -> WorkerProcess:
        return fleet.start(number, slots=SLOTS, program=_WORKER, CRAWLFLEET_CHROME_URL=chrome.url)

    def _rage(self, fleet: Fleet, chromes: list[Supervised], workers: list[WorkerProcess]) -> None:
        """One kill after so many tasks each, and a new worker for each one that has died, until the batch is closed."""
        due = self._due()
        next_at = next(due)
        while fleet.scalar("select state from batch") != "closed":
            done = fleet.scalar("select count(*) from task where state in ('ok', 'dead')")
            logging_in = _logging_in(fleet)
            if self._kills and done >= next_at and self._has_killed(self._kills[-1], chromes, workers):
                self._report.kills[self._kills.pop()] += 1
                self._hit_logins += logging_in + _logging_in(fleet)
                next_at = next(due)
            for number in [
                n for n, worker in enumerate(workers) if not worker.is_alive() and worker.exit_code() != 0
            ]:
                workers[number] = self._start(fleet, number, chromes[number])
            tick = fleet.scalar("select tick from fleet")
            until(partial(_has_ticked, fleet, tick), "the fleet to tick")
        for worker in workers:
            worker.exit_code()

    def _due(self) -> Iterator[float]:
        step = 0.9 * len(self._users) / max(1, len(self._kills))
        at = 0.0
        while True:
            at += step * self._random.uniform(0.5, 1.4)
            yield at

    def _has_killed(self, what: str, chromes: list[Supervised], workers: list[WorkerProcess]) -> bool:
        """False if it would hit what is just being started."""
        number = self._random.randrange(WORKERS)
        if what == "worker":
            is_up = bool(workers[number].events("worker registered"))
            if is_up:
                workers[number].kill()
            return is_up
        if not chromes[number].status().get("ready"):
            return False
        os.kill(chromes[number].pid_of(what), signal.SIGKILL)
        return True

    def _judge(self, fleet: Fleet, shop: WatchedAblyShop) -> None:
        tasks, items = fleet.tasks(), fleet.items()
        for user in self._users:
            state, verdict = tasks[user]
            self._report.failures.update(f"{v} {reason}" for v, reason in fleet.failures(user))
            interrupted = ("auth", "LoginInterrupted") in fleet.failures(user)
            odd = self._odd.get(user)
            if state == "ok":
                truth = shop.truth([user], strategy="dom")[user]
                if items.get(user) != truth or (odd and odd not in READABLE):
                    self._problem(f"user {user} ({odd}): ok, but not the truth")
            elif not interrupted and (odd is None or verdict not in VERDICTS.get(odd, set())):
                self._problem(f"user {user} ({odd}): {state}, {verdict}: {fleet.failures(user)}")
        if self._kills:
            self._problem(f"the batch was closed before {len(self._kills)} of the kills")
        if self._report.failures["auth LoginInterrupted"] > self._hit_logins:
            self._problem("more logins were interrupted than kills can have hit")
        for worker in fleet.workers:
            late = [e for e in worker.events("crawled") if e["ms"] > (JOB_S + LATE_S) * 1000]
            if late:
                self._problem(f"too late: {late}")
        if counted := shop.violations():
            self._problem(f"the shop counted {counted}")

    def _problem(self, text: str) -> None:
        self._report.problems.append(text)
