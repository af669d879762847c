"""A storm: a batch of 5,000 tasks crawled by real workers through faults, and the count of what was lost.

`Storm.run` sets up a PostgreSQL, a stand-in shop and workers of its own, lets faults hit them while tasks end,
and tells in a `Report` everything that broke a promise. The seed decides the schedule of the faults and who is
hit; what exactly a fault finds there is up to the moment.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Self
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import psycopg
from fleet import Fleet
from pg_proxy import PgProxy
from processes import descendants

from crawlfleet.accounts import Account
from crawlfleet.apply import import_accounts
from crawlfleet.child import spawn
from crawlfleet.credentials import account_context
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.tokens import demo_accounts
from crawlfleet.demo.cafe24.traps import Cafe24Traps
from crawlfleet.demo.cafe24.truth import expected_items
from crawlfleet.demo.korea import korean_now
from crawlfleet.demo.violations import SEEN, Agreement
from crawlfleet.errors import DatabaseUnavailable
from crawlfleet.local.postgres import EmbeddedPostgres
from crawlfleet.sources.cafe24_replies import TOKEN_PATH
from crawlfleet.store.connection import Connection, connect
from crawlfleet.store.fleet import Clock, Process, bury_worker
from crawlfleet.store.migrations import migrate

SHOP_USERS, NOOP_USERS, BULK_USERS = 1000, 3960, 40
TASKS = SHOP_USERS + NOOP_USERS + BULK_USERS
SHOP_CAP, NOOP_CAP, BULK_CAP = 16, 24, 4
BULK_ITEMS = 1200  # several chunks that are written ahead
WORKERS, SLOTS = 4, 14
DAYS = 7
CALLS_A_CRAWL = 3.5  # that count for the pace, with those of crawls that are begun again

CLOCK = Clock(tick_s=0.3, expire_ticks=5, quarantine_ticks=14)
"""A worker stops itself after 0.9 s without a renewal; its permits are free again after 5.7 s."""
SHORT_PAUSE_S, LONG_PAUSE_S = (0.05, 0.6), (1.0, 3.5)
OUTAGE_S = (0.0, 1.5)
POST_S = 8.0
"""As the ticks, the longest refresh is shortened for the test: whoever finds an open intent outwaits it."""
LAST = 0.96
"""All faults come before that share of the tasks has ended."""
LOOK_S = 0.05
STUCK_S = 180.0
"""So long without a task that ends is a hung batch."""

FAULTS = {"kill": 30, "pause": 8, "long pause": 18, "cut": 14, "lose": 12, "terminate": 18}
"""What hits the fleet, by weight. The immediate stop of the database comes on top."""
COMMITS = {
    "take": "nextval('lease_id')",
    "finish": "state = case when d.state",
    "intend": "set refresh_tries = refresh_tries + 1",
    "store": "generation = generation + 1, refresh_tries = 0",
    "renew": "set renewed_tick = f.tick",
}
"""Commits whose reply can be lost, each by a text of its transaction."""

_WORKER = f"""
import sys
from crawlfleet import crawl, tokens
from crawlfleet.cli import main
tokens.POST_S = crawl.POST_S = {POST_S}
sys.exit(main(["worker"]))
"""
_SHOP = """
import json, sys, threading
from crawlfleet.credentials import account_context
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.shop import Cafe24Shop
from crawlfleet.demo.cafe24.traps import Cafe24Traps
from crawlfleet.demo.server import ShopServer
from crawlfleet.demo.violations import Agreement
known = json.loads(sys.argv[1])
known |= {"agreement": Agreement(**known["agreement"]), "traps": Cafe24Traps(**known["traps"])}
print(ShopServer(Cafe24Shop(Cafe24Config(**known))).start(), flush=True)
threading.Event().wait()
"""


def seed() -> int:
    """A new seed, or the one in CRAWLFLEET_CHAOS_SEED, which brings the same faults again."""
    return int(os.environ.get("CRAWLFLEET_CHAOS_SEED") or time.time_ns() % 1_000_000)


@dataclass(frozen=True)
class Fault:
    """One fault and when it is due: the share of the tasks that have ended."""

    due: float
    kind: str


def schedule(random: Random, faults: int) -> list[Fault]:
    """`faults` faults spread over the batch, among them one immediate stop of the database per hundred begun."""
    stops = 1 + faults // 100
    kinds = random.choices(list(FAULTS), list(FAULTS.values()), k=faults - stops)
    for _ in range(stops):
        kinds.insert(random.randrange(len(kinds) // 5, len(kinds) * 4 // 5), "database")
    return [Fault((no + random.random()) / faults * LAST, kind) for no, kind in enumerate(kinds)]


@dataclass
class Report:
    """What happened. `problems` are broken promises; `lost` the users whose refresh reply a kill hid."""

    seed: int
    faults: int
    events: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    hit: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    counters: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def summary(self) -> str:
        lines = [
            f"{TASKS} tasks, {sum(self.hit.values())} faults in {self.seconds:.0f} s; seed {self.seed}",
            f"  faults: {dict(self.hit)}",
            f"  exit codes of workers: {dict(self.exits)}",
            f"  attempts that did not end ok: {dict(self.failures)}",
            f"  most permits filled: {self.peaks}",
            f"  ended RefreshLost: {len(self.lost)}: {self.lost}",
            f"  the shop counted: {self.counters}",
        ]
        return "\n".join(lines)

    def full(self) -> str:
        """For a failure: all that is needed to find the cause, and to run the same schedule again."""
        head = f"{len(self.problems)} broken promises:\n" + "\n".join(self.problems[:60])
        again = f"the same faults again: CRAWLFLEET_CHAOS_SEED={self.seed}"
        return "\n".join([self.summary(), head, again, "the faults:", *self.events])


class Crew:
    """The worker processes: started again whenever one ends before the batch has closed."""

    def __init__(self, environment: dict[str, str], log_dir: Path, report: Report) -> None:
        self._environment = environment
        self._log_dir = log_dir
        self._report = report
        self.processes = [self._start(ordinal) for ordinal in range(WORKERS)]
        self.paused: dict[int, float] = {}  # ordinal → when it goes on

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _start(self, ordinal: int) -> subprocess.Popen[bytes]:
        with (self._log_dir / f"worker-{ordinal}.log").open("ab") as log:
            return spawn(
                [sys.executable, "-c", _WORKER],
                death_signal=signal.SIGKILL,
                env=self._environment | {"WORKER_ID": str(ordinal)},
                stdout=log,
            )

    def replace_ended(self) -> list[int]:
        """Start those again that ended other than with 0; the pids of the dead."""
        dead = []
        for ordinal, process in enumerate(self.processes):
            code = process.poll()
            if code in (None, 0):
                continue
            self._note_end(ordinal, code)
            dead.append(process.pid)
            self.paused.pop(ordinal, None)
            self.processes[ordinal] = self._start(ordinal)
        return dead

    def _note_end(self, ordinal: int, code: int) -> None:
        self._report.exits[code] += 1
        if code in (74, -signal.SIGKILL):
            return
        last = (self._log_dir / f"worker-{ordinal}.log").read_text().splitlines()[-1:]
        if not (code == 1 and last and "cannot reach the database" in last[0]):
            self._report.problems.append(f"worker {ordinal} ended with {code}, its last words: {last}")

    def pause(self, ordinal: int, seconds: float) -> None:
        self.processes[ordinal].send_signal(signal.SIGSTOP)
        self.paused[ordinal] = time.monotonic() + seconds

    def resume(self, now_s: float = float("inf")) -> None:
        """Let those go on whose pause is over; without a time all of them."""
        for ordinal in [o for o, until_s in self.paused.items() if until_s <= now_s]:
            self.processes[ordinal].send_signal(signal.SIGCONT)
            del self.paused[ordinal]

    def awake(self) -> dict[int, int]:
        """Pid → ordinal of those that live and are not paused."""
        return {
            process.pid: ordinal
            for ordinal, process in enumerate(self.processes)
            if process.poll() is None and ordinal not in self.paused
        }

    def have_ended(self) -> bool:
        return all(process.poll() == 0 for process in self.processes)


class Storm:
    """One run. `folder` is one that PostgreSQL's account may enter; `length_s` about how long the batch takes."""

    def __init__(self, folder: Path, *, seed: int, faults: int, length_s: float) -> None:
        self.report = Report(seed, faults)
        self._folder = folder
        self._random = Random(seed)
        self._faults = schedule(self._random, faults)
        self._length_s = length_s
        self._rate = round(SHOP_USERS * CALLS_A_CRAWL / length_s)
        self._shop = Cafe24Config(
            seed=f"storm-{seed}",
            access_token_s=3.0,  # a crawl that was held up has to refresh again
            agreement=Agreement(accounts_per_egress=SHOP_CAP, pace_per_s=self._rate),
            # A quarter of the crawls is at the shop.
            traps=Cafe24Traps(slow_s=round(SHOP_CAP / self._rate / 4, 3)),
        )
        self._killed: set[int] = set()  # users of the shop whose crawl was killed
        self._conn: Connection | None = None
        self._began_s = time.monotonic()

    def run(self) -> Report:
        """Set up, crawl through the storm, verify, tear down."""
        before = descendants(os.getpid())
        with ExitStack() as stack:
            settings = {"fsync": "off"}  # a process may die here, the operating system does not
            self._postgres = stack.enter_context(EmbeddedPostgres(self._folder / "state", settings=settings))
            self._base_url = stack.enter_context(self._serve_shop())
            environment = self._set_up()
            (self._folder / "wire").mkdir()
            self._proxy = stack.enter_context(PgProxy(self._postgres.url, self._folder / "wire"))
            environment |= {"CRAWLFLEET_DATABASE_URL": self._proxy.url, "MAX_CONCURRENT": str(SLOTS)}
            self._crew = stack.enter_context(Crew(environment, self._folder, self.report))
            stack.callback(self._forget_connection)
            self._began_s = time.monotonic()
            self._crawl()
            self._verify()
        self._check_nothing_runs(before)
        self.report.seconds = time.monotonic() - self._began_s
        return self.report

    # Before.

    @contextmanager
    def _serve_shop(self) -> Iterator[str]:
        command = [sys.executable, "-c", _SHOP, json.dumps(asdict(self._shop))]
        shop = spawn(command, death_signal=signal.SIGKILL, stdout=subprocess.PIPE)
        assert shop.stdout
        with shop, shop.stdout:
            url = shop.stdout.readline().decode().strip()
            self._today = korean_now().date()
            try:
                yield url
            finally:
                shop.kill()

    def _set_up(self) -> dict[str, str]:
        """Sources, accounts and the batch; the environment of its workers."""
        migrate(self._postgres.url)
        budgets = {"retry": 100, "crashed": 100, "throttledSeconds": 36_000}
        noop_s = self._length_s * NOOP_CAP / NOOP_USERS
        with Fleet(self._postgres.url, self._folder, CLOCK) as fleet:
            fleet.declare(
                "shop",
                adapter="cafe24",
                baseURL=self._base_url + "/{mall_id}",
                maxConcurrent=SHOP_CAP,
                requestsPerSecond=self._rate,
                jobTimeoutSeconds=120,
                options={"days": DAYS},
                budgets=budgets,
            )
            for name, cap, items in (("noop", NOOP_CAP, 2), ("bulk", BULK_CAP, BULK_ITEMS)):
                fleet.declare(
                    name,
                    adapter="noop",
                    baseURL=f"http://{name}.example.com",  # an exit of its own; nothing is sent
                    maxConcurrent=cap,
                    options={"items": items},
                    budgets=budgets,
                )
            import_accounts(fleet.conn, fleet.keys, self._accounts(noop_s))
            self._batch = fleet.plan(workers=WORKERS)
            self._keys = fleet.keys
            return fleet.environment()

    def _accounts(self, noop_s: float) -> Iterator[Account]:
        for line in demo_accounts(SHOP_USERS, self._shop, datetime.now(UTC)):
            last_login = datetime.fromisoformat(line["last_login_at"])
            yield Account(line["user_id"], "shop", line["subscription"], last_login, line["credentials"])
        for source, users in (("noop", NOOP_USERS), ("bulk", BULK_USERS)):
            for user_id in range(1, users + 1):
                duration_s = round(noop_s * self._random.uniform(0.2, 1.8), 3)
                yield Account(user_id, source, "paid", None, {"duration_s": duration_s})

    # The storm.

    def _crawl(self) -> None:
        """Look, tend, hit, until the batch has closed and every worker has ended."""
        most_done, moved_s = -1, time.monotonic()
        while True:
            self._tend()
            done, closed = self._look()
            if closed and self._crew.have_ended():
                return
            if closed:
                self._crew.resume()
            if done > most_done:
                most_done, moved_s = done, time.monotonic()
            elif time.monotonic() - moved_s > STUCK_S:
                self._problem(f"nothing ends any more: {done} of {TASKS} done, closed: {closed}")
                return
            if self._faults and not closed and done >= self._faults[0].due * TASKS:
                self._hit(self._faults[0].kind)
            time.sleep(LOOK_S)

    def _tend(self) -> None:
        self._crew.resume(time.monotonic())
        for pid in self._crew.replace_ended():
            buried = self._random.random() < 0.5
            if buried:  # what a parent that saw the death does; a lost node is found out by ticks
                with suppress(psycopg.Error, DatabaseUnavailable):
                    bury_worker(self._connection(), self._batch, Process.this().pid_space, pid)
            self._tell(f"worker {pid} is gone" + (", buried" if buried else ""))

    def _look(self) -> tuple[int, bool]:
        """(tasks ended, whether the batch is closed); notes how many permits are filled."""
        try:
            done, state = self._one(
                "select (select count(*) from task where batch_id = b.batch_id and state in ('ok', 'dead')),"
                " state::text from batch b where batch_id = %s",
                self._batch,
            )
            for source, cap, filled in self._rows(
                "select s.name, e.cap, count(p.lease_id) from egress e join source s using (source_id)"
                " join permit p using (egress_id) group by 1, 2"
            ):
                self._note_filled(source, cap, filled)
        except (psycopg.Error, DatabaseUnavailable) as exc:
            self._tell(f"cannot look: {exc}")
            self._forget_connection()
            if not self._postgres.poll():
                self._postgres.restart()
            return -1, False
        return int(done), state == "closed"

    def _note_filled(self, source: str, cap: int, filled: int) -> None:
        self.report.peaks[source] = max(filled, self.report.peaks.get(source, 0))
        if filled > cap:
            self._problem(f"{filled} permits of {source} are filled, its cap is {cap}")

    def _hit(self, kind: str) -> None:
        """Carry out the fault that is due; later, if nobody is there to be hit."""
        did = {
            "kill": self._kill,
            "pause": lambda: self._pause(*SHORT_PAUSE_S),
            "long pause": lambda: self._pause(*LONG_PAUSE_S),
            "cut": self._cut,
            "lose": self._lose,
            "terminate": self._terminate,
            "database": self._stop_database,
        }[kind]()
        if did:
            self._faults.pop(0)
            self.report.hit[kind] += 1
            self._tell(f"{kind}: {did}")

    def _victim(self) -> int | None:
        """The ordinal of a worker that crawls, if there is one."""
        awake = self._crew.awake()
        rows = self._rows(
            "select distinct w.pid from worker w join permit p using (worker_id) where w.pid = any(%s)",
            list(awake),
        )
        return awake[self._random.choice(sorted(rows))[0]] if rows else None

    def _kill(self) -> str:
        ordinal = self._victim()
        if ordinal is None:
            return ""
        process = self._crew.processes[ordinal]
        process.kill()
        process.wait()
        rows = self._rows(
            "select p.user_id from permit p join worker w using (worker_id) join source s using (source_id)"
            " where w.pid = %s and s.name = 'shop' order by 1",
            process.pid,
        )
        held = [user_id for (user_id,) in rows]
        self._killed.update(held)
        return f"worker {process.pid}, which held the shop's users {held}"

    def _pause(self, least_s: float, most_s: float) -> str:
        ordinal = self._victim()
        if ordinal is None:
            return ""
        seconds = self._random.uniform(least_s, most_s)
        self._crew.pause(ordinal, seconds)
        return f"worker {self._crew.processes[ordinal].pid} for {seconds:.2f} s"

    def _cut(self) -> str:
        return f"{self._proxy.cut(self._random.uniform(0.1, 0.6), self._random)} connections"

    def _lose(self) -> str:
        commit = self._random.choice(list(COMMITS))
        self._proxy.lose(COMMITS[commit])
        return f"the reply to the next {commit}"

    def _terminate(self) -> str:
        backends = [
            pid
            for (pid,) in self._rows(
                "select pid from pg_stat_activity where application_name like 'crawlfleet%%' order by 1"
            )
        ]
        chosen = self._random.sample(backends, min(len(backends), self._random.randint(1, 6)))
        for pid in chosen:
            self._rows("select pg_terminate_backend(%s)", pid)
        return f"backends {chosen}" if chosen else ""

    def _stop_database(self) -> str:
        """An immediate stop: no checkpoint, no good-bye; the next start recovers from the log."""
        pid = int((self._folder / "state" / "postgres" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        seconds = self._random.uniform(*OUTAGE_S)
        back_s = time.monotonic() + seconds
        while time.monotonic() < back_s or self._postgres.poll():
            self._crew.resume(time.monotonic())
            time.sleep(LOOK_S)
        self._forget_connection()
        self._postgres.restart()
        return f"down for {seconds:.2f} s"

    # After.

    def _verify(self) -> None:
        """Every promise against what is in the database and what the shop counted."""
        self.report.exits[0] = sum(process.poll() == 0 for process in self._crew.processes)
        if self._faults:
            self._problem(f"{len(self._faults)} faults never came: the batch ended before")
        histories = self._histories()
        ended = self._verify_tasks(histories)
        self._verify_items(ended)
        held = self._rows(
            "select source_id, user_id, worker_id, lease_id from permit where lease_id is not null"
        )
        if held:
            self._problem(f"permits are still filled (source, user, worker, lease): {held}")
        with urlopen(f"{self._base_url}/_counters", timeout=30) as reply:
            self.report.counters = json.load(reply)
        self._verify_counters()
        self._verify_tokens(ended["shop"])

    def _histories(self) -> dict[int, list[tuple[str, str]]]:
        """Task number → (verdict, reason) of its attempts that did not end ok, oldest first."""
        histories = defaultdict(list)
        for task_no, verdict, reason in self._rows(
            "select task_no, verdict::text, reason from failure where batch_id = %s order by failure_id",
            self._batch,
        ):
            histories[task_no].append((verdict, reason))
            self.report.failures[f"{verdict}/{reason}"] += 1
        return histories

    def _verify_tasks(self, histories: dict[int, list[tuple[str, str]]]) -> dict[str, set[int]]:
        """Each task ended ok, or as one that a kill robbed of its refresh: source → users that ended ok."""
        ok: dict[str, set[int]] = {"shop": set(), "noop": set(), "bulk": set()}
        rows = self._rows(
            "select t.task_no, s.name, t.user_id, t.state::text, t.verdict::text from task t"
            " join source s using (source_id) where t.batch_id = %s order by 1",
            self._batch,
        )
        for task_no, source, user_id, state, verdict in rows:
            history = histories.get(task_no, [])
            if (state, verdict) == ("ok", "ok"):
                ok[source].add(user_id)
            elif source == "shop" and state == "dead" and history[-1:] == [("auth", "RefreshLost")]:
                self.report.lost.append(user_id)
                if user_id not in self._killed:
                    self._problem(f"user {user_id} of shop ended RefreshLost without a kill: {history}")
            else:
                self._problem(f"user {user_id} of {source} ended {state}/{verdict}: {history}")
        if len(rows) != TASKS:
            self._problem(f"{len(rows)} tasks are left of {TASKS}")
        return ok

    def _verify_items(self, ok: dict[str, set[int]]) -> None:
        """Who ended ok has exactly the truth; who did not has nothing else than truth."""
        found: defaultdict[tuple[str, int], dict[tuple[str, str], Any]] = defaultdict(dict)
        for source, user_id, kind, external_id, body in self._rows(
            "select source, user_id, kind, external_id, body from items"
        ):
            found[source, user_id][kind, external_id] = body
        for source, user_id in sorted(found.keys() | {(s, u) for s, users in ok.items() for u in users}):
            items, truth = found[source, user_id], self._truth(source, user_id)
            if user_id not in ok[source]:
                truth = {key: body for key, body in truth.items() if key in items}
            if items != truth:
                missing, foreign = len(truth.keys() - items.keys()), len(items.keys() - truth.keys())
                self._problem(
                    f"user {user_id} of {source}: {missing} items missing, {foreign} foreign,"
                    f" {len(items)} of {len(truth)} there"
                )

    def _truth(self, source: str, user_id: int) -> dict[tuple[str, str], Any]:
        if source == "shop":
            return expected_items(self._shop, f"demo{user_id}", DAYS, self._today)
        items = {"noop": 2, "bulk": BULK_ITEMS}[source]
        return {("item", str(no)): {"no": no, "filler": ""} for no in range(items)}

    def _verify_counters(self) -> None:
        """Politeness as the shop saw it. A refresh reply that a kill hid may be asked for once, in vain."""
        allowed = {"stale_refresh": len(self.report.lost)}
        for name, count in self.report.counters.items():
            if name not in (*SEEN, "violations") and count > allowed.get(name, 0):
                self._problem(f"the shop counted {name} {count}, allowed are {allowed.get(name, 0)}")

    def _verify_tokens(self, ok: set[int]) -> None:
        """Who ended ok can go on with the token that is stored; whose was given up had really lost it."""
        self._ask("/_control", json.dumps({"all": {"slow_s": 0.0}}).encode())
        for user_id, sealed in self._rows(
            "select user_id, credentials from account join source using (source_id) where name = 'shop' order by 1"
        ):
            known = self._keys.open(bytes(sealed), account_context("shop", user_id))
            form = {"grant_type": "refresh_token", "refresh_token": known["refresh_token"]}
            client = f"{known['client_id']}:{known['client_secret']}".encode()
            status = self._ask(
                f"/demo{user_id}{TOKEN_PATH}", urlencode(form).encode(), b64encode(client).decode()
            )
            if status != 200 and user_id in ok:
                self._problem(f"user {user_id} of shop ended ok, but its stored refresh token is refused")
            if status == 200 and user_id in self.report.lost:
                self._problem(
                    f"user {user_id} of shop ended RefreshLost, but its stored refresh token is good"
                )

    def _ask(self, path: str, body: bytes, client: str = "") -> int:
        request = Request(self._base_url + path, body, {"Authorization": f"Basic {client}"})
        try:
            with urlopen(request, timeout=30) as reply:
                return int(reply.status)
        except HTTPError as refused:
            with refused:
                return refused.code

    def _check_nothing_runs(self, before: set[int]) -> None:
        if left := descendants(os.getpid()) - before:
            self._problem(f"processes are left: {left}")
        with (self._folder / "state" / "lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._problem("a process of PostgreSQL is left")

    # Telling and asking.

    def _tell(self, what: str) -> None:
        at = datetime.now(UTC).strftime("%H:%M:%S.%f")[:-3]
        self.report.events.append(f"  {time.monotonic() - self._began_s:7.2f} s, {at}  {what}")

    def _problem(self, what: str) -> None:
        self.report.problems.append(f"  {what}")

    def _connection(self) -> Connection:
        if self._conn is None or self._conn.closed:
            self._conn = connect(self._postgres.url, "storm")
        return self._conn

    def _forget_connection(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def _rows(self, query: str, *params: Any) -> list[Any]:
        return self._connection().execute(query.encode(), params or None).fetchall()

    def _one(self, query: str, *params: Any) -> Any:
        return self._rows(query, *params)[0]
