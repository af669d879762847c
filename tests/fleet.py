"""A small fleet for tests: a database with a batch, real worker processes, and the stand-in shop they crawl.

`Fleet` declares sources and plans batches by way of the manifests, as `crawlfleet run` does, and starts
`crawlfleet worker` processes; leaving it ends them. `WatchedShop` is a stand-in shop with a request log and
gates, so that a test can stop time at one request.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

import psycopg
import pytest
from builders import key_ring, pass_ticks, scalar

from crawlfleet import apply, planner
from crawlfleet.accounts import Account
from crawlfleet.child import spawn
from crawlfleet.credentials import account_context
from crawlfleet.demo.ably.config import AblyConfig
from crawlfleet.demo.ably.orders import Strategy
from crawlfleet.demo.ably.sellers import demo_accounts as ably_accounts
from crawlfleet.demo.ably.sellers import email, password
from crawlfleet.demo.ably.shop import AblyShop
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.shop import Cafe24Shop
from crawlfleet.demo.cafe24.tokens import demo_accounts, refresh_token
from crawlfleet.demo.exchange import Reply, Request
from crawlfleet.demo.server import AnyShop, ShopServer
from crawlfleet.demo.violations import SEEN
from crawlfleet.manifests import CrawlBatch, CrawlSource, Manifests, Secret
from crawlfleet.store import fleet
from crawlfleet.store.connection import Connection, connect
from crawlfleet.store.fleet import Clock

API = "crawlfleet.dev/v1alpha1"
CALM = Clock(tick_s=0.5, expire_ticks=24, quarantine_ticks=4)
"""Nobody expires in such a test: a busy machine may stop a healthy worker for seconds."""
PATIENCE_S = 60.0
PAUSABLE = """
import os
import sys
import time
from crawlfleet.cli import main
now = time.clock_gettime
time.clock_gettime = lambda clock: now(clock) + 60 * os.path.exists(os.environ["LATER"])
sys.exit(main(["worker"]))
"""
"""A worker for which a minute has passed once the file LATER is there, as after a pause of its host."""

Found = TypeVar("Found")


def until(condition: Callable[[], Found | None], what: str, timeout_s: float = PATIENCE_S) -> Found:
    """Wait for the condition to be true; what it returned."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline_s:
            pytest.fail(f"waited {timeout_s:.0f} s in vain: {what}")
        time.sleep(0.02)
    return found


def accusations(counted: Mapping[str, int]) -> dict[str, int]:
    """A shop's counters of impoliteness that are not zero."""
    return {name: count for name, count in counted.items() if count and name not in SEEN}


class WorkerProcess:
    """One `crawlfleet worker`, or what `program` makes of it, logging JSON to a file."""

    def __init__(self, environment: Mapping[str, str], log: Path, program: str | None = None) -> None:
        self.log = log
        command = [sys.executable, *(["-c", program] if program else ["-m", "crawlfleet", "worker"])]
        with log.open("wb") as output:
            self._process = spawn(command, death_signal=signal.SIGKILL, env=environment, stdout=output)
        self.pid = self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def exit_code(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"worker {self.pid} did not end within {timeout_s:.0f} s:\n{self.text()[-3000:]}")

    def kill(self) -> None:
        """kill -9, and wait until it is gone. Harmless when repeated."""
        self._process.kill()
        self._process.wait()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of that name in its log so far."""
        lines = [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def event(self, name: str) -> dict[str, Any]:
        """Wait for the first event of that name."""

        def first() -> dict[str, Any] | None:
            if not self.is_alive() and not self.events(name):
                pytest.fail(f"worker {self.pid} ended without the event {name!r}:\n{self.text()[-3000:]}")
            return next(iter(self.events(name)), None)

        return until(first, f"event {name!r}")

    def registration(self) -> int:
        """Wait until it has registered; its worker_id."""
        return int(self.event("worker registered")["worker"])

    def peak_rss_mb(self, timeout_s: float = PATIENCE_S) -> float:
        """Wait for its end; the most memory it used until shortly before."""
        peaks = [0]

        def ended() -> bool:
            status = Path("/proc", str(self.pid), "status").read_text()  # there until it is reaped
            peaks.extend(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
            return not self.is_alive()

        until(ended, f"worker {self.pid} to end", timeout_s)
        return max(peaks) / 1024


class Fleet:
    """A database, sources, accounts, batches, and the worker processes of one test."""

    def __init__(self, url: str, folder: Path, clock: Clock = CALM) -> None:
        self.url = url
        self.folder = folder
        self.keys = key_ring(folder)
        self.conn: Connection = connect(url, "test")
        fleet.set_clock(self.conn, clock)
        self.workers: list[WorkerProcess] = []
        self._sources: dict[str, CrawlSource] = {}
        self._secrets: dict[str, Secret] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.kill()
        self.conn.close()

    # What a person would apply.

    def declare(self, name: str, *, proxies: Mapping[str, str] | None = None, **spec: Any) -> None:
        """A CrawlSource of that spec (camelCase); `proxies` are its egresses: name → URL with credentials."""
        if proxies is not None:
            spec["egresses"] = [{"name": egress, "proxySecretRef": {"name": egress}} for egress in proxies]
            self._secrets |= {egress: _proxy_secret(egress, url) for egress, url in proxies.items()}
        document = {"apiVersion": API, "kind": "CrawlSource", "metadata": {"name": name}, "spec": spec}
        self._sources[name] = CrawlSource.model_validate(document)
        apply.declare(self.conn, self.keys, Manifests(sources=self._sources, secrets=self._secrets))

    def noop(self, *, users: int, cap: int = 100, **options: Any) -> None:
        """The source that crawls nothing, with as many accounts."""
        self.declare("noop", adapter="noop", maxConcurrent=cap, options=options)
        self.add_accounts("noop", [(user_id, {}) for user_id in range(1, users + 1)])

    def cafe24(self, shop: WatchedShop, *, users: int = 0, **spec: Any) -> None:
        """The source `cafe24` at that shop, with its first `users` accounts."""
        spec = {"maxConcurrent": 10, "baseURL": shop.base_url, **spec}
        self.declare("cafe24", adapter="cafe24", **spec)
        self.add_accounts("cafe24", [(user_id, shop.credentials(user_id)) for user_id in range(1, users + 1)])

    def ably(self, shop: WatchedAblyShop, *, users: Iterable[int] = (), **spec: Any) -> None:
        """The source `ably` at that shop, with the accounts of these users."""
        spec = {"maxConcurrent": 10, "baseURL": shop.base_url, **spec}
        self.declare("ably", adapter="ably", **spec)
        self.add_accounts("ably", [(user_id, shop.credentials(user_id)) for user_id in users])

    def add_accounts(self, source: str, accounts: Iterable[tuple[int, dict[str, Any]]]) -> None:
        """Paid accounts: (user id, credentials)."""
        lines = [Account(user_id, source, "paid", None, credentials) for user_id, credentials in accounts]
        apply.import_accounts(self.conn, self.keys, lines)

    def plan(self, name: str = "batch", **spec: Any) -> int:
        """Plan a CrawlBatch over all declared sources; its id."""
        spec = {"sources": list(self._sources), "workers": 1, **spec}
        document = {"apiVersion": API, "kind": "CrawlBatch", "metadata": {"name": name}, "spec": spec}
        batch = CrawlBatch.model_validate(document)
        return planner.plan(self.conn, apply.local_plan(batch, Manifests(sources=self._sources)))

    # Workers.

    def environment(self, **changes: str | None) -> dict[str, str]:
        """A worker's environment; a change to None leaves the variable out."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("CRAWLFLEET_")}
        ours |= {
            "CRAWLFLEET_DATABASE_URL": self.url,
            "CRAWLFLEET_BATCH": "batch",
            "CRAWLFLEET_KEYS_FILE": str(self.keys.path),
            "CRAWLFLEET_METRICS_PORT": "0",
            "CRAWLFLEET_LOG_FORMAT": "json",
            "WORKER_ID": "0",
            "MAX_CONCURRENT": "10",
        }
        return {name: value for name, value in (ours | changes).items() if value is not None}

    def start(
        self, worker_id: int = 0, *, slots: int = 10, program: str | None = None, **changes: str | None
    ) -> WorkerProcess:
        """Start a worker; `changes` are to its environment, `program` is Python that ends in `crawlfleet worker`."""
        changes = {"WORKER_ID": str(worker_id), "MAX_CONCURRENT": str(slots), **changes}
        log = self.folder / f"worker-{len(self.workers)}.log"
        self.workers.append(WorkerProcess(self.environment(**changes), log, program))
        return self.workers[-1]

    def start_together(self, workers: int, *, slots: int = 10) -> list[WorkerProcess]:
        """Start workers for `batch`; none of them takes anything before all have registered."""
        self.conn.execute("update batch set suspended = true where name = 'batch'")
        started = [self.start(i, slots=slots) for i in range(workers)]
        for worker in started:
            worker.registration()
        self.conn.execute("update batch set suspended = false where name = 'batch'")
        return started

    def run(self, workers: int = 1, *, slots: int = 10, timeout_s: float = PATIENCE_S) -> None:
        """Start workers for `batch` and wait for all to end by themselves, which they do with 0."""
        started = [self.start(i, slots=slots) for i in range(workers)]
        for worker in started:
            assert worker.exit_code(timeout_s) == 0, worker.text()[-3000:]

    def expire(self) -> None:
        """Let ticks pass until whoever is silent can be rescued; nobody else may keep house meanwhile."""
        pass_ticks(self.conn, CALM.expire_ticks + CALM.quarantine_ticks)

    def bury(self, worker: WorkerProcess) -> None:
        """Kill a worker; its permits are rescued at the next housekeeping, as a parent that saw it die has it."""
        worker.kill()
        batches = self.conn.execute("select batch_id from batch").fetchall()
        for (batch_id,) in batches:
            fleet.bury_worker(self.conn, batch_id, fleet.Process.this().pid_space, worker.pid)

    # What became of it.

    def scalar(self, query: str, *params: Any) -> Any:
        return scalar(self.conn, query, *params)

    def held(self) -> int:
        """Permits filled now."""
        return int(self.scalar("select count(*) from permit where lease_id is not null"))

    def leases(self) -> int:
        """How many crawls were begun since the database was made; turns that were rolled back count too."""
        return int(self.scalar("select case when is_called then last_value else 0 end from lease_id"))

    def tasks(self, batch: str = "batch") -> dict[int, tuple[str, str | None]]:
        """User id → (state, verdict) of a batch over one source."""
        rows = self.conn.execute(
            "select user_id, t.state::text, verdict::text from task t join batch b using (batch_id)"
            " where b.name = %s order by 1",
            (batch,),
        )
        return {user_id: (state, verdict) for user_id, state, verdict in rows}

    def count(self, state: str, batch: str = "batch") -> int:
        """Tasks in that state."""
        return sum(found == state for found, _ in self.tasks(batch).values())

    def failures(self, user_id: int) -> list[tuple[str, str]]:
        """(verdict, reason) of a user's attempts that did not end ok, oldest first."""
        return self.conn.execute(
            "select f.verdict::text, f.reason from failure f join task t using (batch_id, task_no)"
            " where t.user_id = %s order by failure_id",
            (user_id,),
        ).fetchall()

    def all_failures(self) -> set[tuple[str, str]]:
        """(verdict, reason) of every attempt that did not end ok."""
        return set(self.conn.execute("select distinct verdict::text, reason from failure").fetchall())

    def items(self) -> dict[int, dict[tuple[str, str], Any]]:
        """User id → (kind, external id) → body."""
        found: defaultdict[int, dict[tuple[str, str], Any]] = defaultdict(dict)
        for user_id, kind, external_id, body in self.conn.execute(
            "select user_id, kind, external_id, body from item"
        ):
            found[user_id][kind, external_id] = body
        return dict(found)

    def credentials(self, user_id: int, source: str = "cafe24") -> dict[str, Any]:
        """An account's credentials as they are stored now."""
        sealed = self.scalar("select credentials from account where user_id = %s", user_id)
        opened: dict[str, Any] = self.keys.open(bytes(sealed), account_context(source, user_id))
        return opened

    @contextmanager
    def locked(self, query: str, *params: Any) -> Iterator[Connection]:
        """Hold the locks of a `select ... for update` until the block ends, or this connection is closed."""
        with psycopg.connect(self.url) as conn:
            conn.execute(query.encode(), params or None)
            yield conn

    def blocked_backends(self) -> int:
        """Workers' statements that wait for a lock."""
        return int(
            self.scalar(
                "select count(*) from pg_stat_activity where datname = current_database()"
                " and wait_event_type = 'Lock' and application_name like 'crawlfleet%%'"
            )
        )


def _proxy_secret(name: str, url: str) -> Secret:
    parts = urlsplit(url)
    values = {
        "url": f"{parts.scheme}://{parts.hostname}:{parts.port}",
        "username": parts.username or "",
        "password": parts.password or "",
    }
    return Secret.model_validate(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}
    )


@dataclass(frozen=True)
class Seen:
    """One request that a shop got; `at_s` on the monotonic clock."""

    account: str
    what: str
    egress: str
    at_s: float


@dataclass
class Gate:
    """Requests held at the shop, which `arrived` counts; `open` lets them and all later ones through."""

    matches: Callable[[Seen], bool]
    most: int
    held: list[Seen] = field(default_factory=list)
    _opened: threading.Event = field(default_factory=threading.Event)

    @property
    def arrived(self) -> int:
        return len(self.held)

    def wait(self, arrived: int = 1) -> None:
        """Wait until so many requests are held. A client waits 30 s for its reply, so open the gate soon."""
        until(lambda: self.arrived >= arrived, f"{arrived} requests at the gate")

    def open(self) -> None:
        self._opened.set()

    def hold(self) -> None:
        self._opened.wait(PATIENCE_S * 2)


class _Watched(ShopServer[AnyShop], Generic[AnyShop]):
    """A stand-in shop in this process, with a request log, and gates that hold answers after they were made."""

    def __init__(self, shop: AnyShop) -> None:
        super().__init__(shop)
        self._seen: list[Seen] = []
        self._gates: list[Gate] = []
        self._gates_lock = threading.Lock()

    def answer(self, request: Request) -> Reply:
        visit = self.shop.visit(request)
        seen = Seen(visit.account, visit.what, request.egress, time.monotonic())
        self._seen.append(seen)
        reply = super().answer(request)
        if gate := self._gate_of(seen):
            gate.hold()
        return reply

    def _gate_of(self, seen: Seen) -> Gate | None:
        with self._gates_lock:
            gate = next((g for g in self._gates if g.arrived < g.most and g.matches(seen)), None)
            if gate is not None:
                gate.held.append(seen)
            return gate

    def stop(self) -> None:
        for gate in self._gates:
            gate.open()
        super().stop()

    def gate(self, what: str, *, accounts: Sequence[str] = (), most: int = 1_000_000) -> Gate:
        """Hold replies to that of these accounts (of all), at most so many."""
        gate = Gate(lambda seen: seen.what == what and (not accounts or seen.account in accounts), most)
        self._gates.append(gate)
        return gate

    def seen(self, what: str | None = None, account: str | None = None) -> list[Seen]:
        """The requests so far, in order."""
        return [s for s in list(self._seen) if what in (None, s.what) and account in (None, s.account)]

    def violations(self) -> dict[str, int]:
        return accusations(self.shop.witness.counters().as_dict())


class WatchedShop(_Watched[Cafe24Shop]):
    """The stand-in cafe24 in this process, with a request log and gates (at `token`, `orders`, ...)."""

    def __init__(self, **config: Any) -> None:
        shop_config = Cafe24Config(**config)
        self._ahead_s = 0.0
        super().__init__(Cafe24Shop(shop_config, clock=lambda: time.monotonic() + self._ahead_s))
        accounts = demo_accounts(1000, shop_config, datetime.now(UTC))
        self._credentials = {line["user_id"]: line["credentials"] for line in accounts}

    @property
    def base_url(self) -> str:
        return self.url + "/{mall_id}"

    def credentials(self, user_id: int) -> dict[str, Any]:
        """What the seller `user_id` (mall `demo{user_id}`) was given."""
        return dict(self._credentials[user_id])

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass at once, for the shop alone: bans of it are over."""
        self._ahead_s += seconds

    def consented(self, user_id: int) -> dict[str, Any]:
        """What the seller has after a new consent: a token that is newer than all before."""
        token = refresh_token(self.shop.config, f"demo{user_id}", generation=100)
        return self.credentials(user_id) | {"refresh_token": token}

    def truth(self, users: Iterable[int], days: int = 7) -> dict[int, dict[tuple[str, str], Any]]:
        """What a crawl of these users has to bring."""
        return {user_id: self.shop.expected_items(f"demo{user_id}", days) for user_id in users}


class WatchedAblyShop(_Watched[AblyShop]):
    """The stand-in ably in this process, with a request log and gates (at `login`, `orders`, `order_items`, ...)."""

    def __init__(self, **config: Any) -> None:
        shop_config = AblyConfig(**config)
        super().__init__(AblyShop(shop_config))
        accounts = ably_accounts(1000, shop_config, datetime.now(UTC))
        self._credentials = {line["user_id"]: line["credentials"] for line in accounts}

    @property
    def base_url(self) -> str:
        return self.url

    def credentials(self, user_id: int) -> dict[str, Any]:
        """What the seller `user_id` (`demo{user_id}`) was given: every tenth has a token only."""
        return dict(self._credentials[user_id])

    def new_password(self, user_id: int) -> dict[str, Any]:
        """What the seller has after setting a new password: it is newer than all before."""
        seller = f"demo{user_id}"
        return {"email": email(seller), "password": password(self.shop.config, seller, generation=100)}

    def truth(
        self, users: Iterable[int], days: int = 7, strategy: Strategy = "http"
    ) -> dict[int, dict[tuple[str, str], Any]]:
        """What a crawl of these users has to bring by that strategy."""
        return {user_id: self.shop.expected_items(f"demo{user_id}", days, strategy) for user_id in users}
