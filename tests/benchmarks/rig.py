"""What the benchmarks run on: one embedded PostgreSQL as it ships (durable), a fresh database each, real workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psycopg

from crawlfleet.child import spawn
from crawlfleet.credentials import KeyRing, account_context
from crawlfleet.local.postgres import EmbeddedPostgres
from crawlfleet.planner import BatchPlan, Selector, plan
from crawlfleet.store.connection import Connection, connect
from crawlfleet.store.migrations import migrate
from crawlfleet.store.sources import EgressSpec, Settings, put_source

SOURCE = "noop"
POLL_S = 0.02
_numbers = count(1)

# Every filling and freeing of a permit, by the database's clock.
_AUDIT = """
create table held (
    lease_id bigint primary key, worker_id bigint, user_id bigint, filled_at timestamptz, freed_at timestamptz
);
create function note_permit() returns trigger language plpgsql as $$
begin
    update held set freed_at = clock_timestamp() where lease_id = old.lease_id;
    if new.lease_id is not null then
        insert into held values (new.lease_id, new.worker_id, new.user_id, clock_timestamp());
    end if;
    return null;
end $$;
create trigger note_permit after update of lease_id on permit
for each row when (old.lease_id is distinct from new.lease_id) execute function note_permit();
"""


@dataclass(frozen=True)
class Held:
    """One permit from its filling to its freeing, in seconds since the epoch."""

    lease_id: int
    user_id: int
    filled_at: float
    freed_at: float


class Worker:
    """One worker process and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def kill(self) -> None:
        """End it at once, and wait until it is gone."""
        self.process.kill()
        self.process.wait()

    def metrics(self) -> dict[str, float]:
        """Its samples now, by name and labels."""
        port = self.await_word(r"metrics served.*port\D+(\d+)")
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def worker_id(self) -> int:
        """Its registration."""
        return int(self.await_word(r"worker registered.*worker\"?[=:] ?(\d+)"))

    def await_word(self, pattern: str) -> str:
        """The first group of the pattern, once a line of the log matches it."""
        await_that(
            lambda: re.search(pattern, self.log.read_text()) is not None, 30, f"{pattern} in {self.log}"
        )
        found = re.search(pattern, self.log.read_text())
        assert found is not None
        return found[1]

    def crawl_seconds(self) -> dict[int, float]:
        """Lease id → how long its crawl took; from a JSON log."""
        events = (json.loads(line) for line in self.log.read_text().splitlines())
        return {e["lease"]: e["ms"] / 1000 for e in events if e["event"] == "crawled"}


@dataclass
class Bed:
    """A fresh database with one source and what a case puts there."""

    url: str
    conn: Connection
    keys: KeyRing
    keys_file: Path
    folder: Path
    source_id: int = 0
    settings: Settings = field(
        default_factory=lambda: Settings(
            SOURCE, None, {}, job_timeout_s=600, retry=4, crashed=5, throttled_s=3600
        )
    )

    def declare(self, permits: int) -> None:
        """The source, with that many permits at one egress without a pace."""
        self.source_id = put_source(
            self.conn, SOURCE, [EgressSpec("direct", f"{SOURCE}/direct", None, permits, 0, 60, 3600)]
        )

    def add_accounts(self, credentials: Iterable[Mapping[str, Any]]) -> None:
        """Free accounts of users 1, 2, …, one for each credentials."""
        copy = "copy account (user_id, source_id, subscription, credentials, imported) from stdin"
        with self.conn.cursor().copy(copy) as rows:
            for user_id, plain in enumerate(credentials, 1):
                sealed = self.keys.seal(plain, account_context(SOURCE, user_id))
                rows.write_row((user_id, self.source_id, "free", sealed, sealed))

    def plan(self, uid: str, *, workers: int, selector: Selector | None = None) -> int:
        """Plan a batch of the source; its id."""
        return plan(self.conn, BatchPlan(uid, uid, workers, selector or Selector(), {SOURCE: self.settings}))

    def audit(self) -> None:
        """Note every lease from now on; `leases` reads the notes."""
        self.conn.execute(_AUDIT)

    def leases(self) -> list[Held]:
        """Every lease that has ended, in the order of their ids."""
        rows = self.conn.execute(
            "select lease_id, user_id, extract(epoch from filled_at)::float8, extract(epoch from freed_at)::float8"
            " from held where freed_at is not null order by lease_id"
        )
        return [Held(*row) for row in rows]

    def number(self, query: str, *params: object) -> Any:
        """The one value of a query."""
        row = self.conn.execute(query, params or None).fetchone()
        assert row is not None
        return row[0]

    @contextmanager
    def workers(
        self, uid: str, ordinals: Sequence[int], slots: int, *, logs: str = "json"
    ) -> Iterator[list[Worker]]:
        """Worker processes of a batch; whatever lives at the end is killed."""
        started: list[Worker] = []
        try:
            for ordinal in ordinals:
                started.append(self._start(uid, ordinal, slots, logs))
            yield started
        finally:
            for worker in started:
                worker.kill()

    def _start(self, uid: str, ordinal: int, slots: int, logs: str) -> Worker:
        environment = {
            **os.environ,
            "CRAWLFLEET_DATABASE_URL": self.url,
            "CRAWLFLEET_KEYS_FILE": str(self.keys_file),
            "CRAWLFLEET_BATCH": uid,
            "CRAWLFLEET_METRICS_PORT": "0",
            "CRAWLFLEET_LOG_FORMAT": logs,
            "WORKER_ID": str(ordinal),
            "MAX_CONCURRENT": str(slots),
        }
        log = self.folder / f"{uid}-{ordinal}.log"
        command = [sys.executable, "-m", "crawlfleet", "worker"]
        with log.open("wb") as output:
            return Worker(spawn(command, death_signal=signal.SIGKILL, env=environment, stdout=output), log)


class Rig:
    """The server, and beds on it."""

    def __init__(self, folder: Path, server: EmbeddedPostgres) -> None:
        self.folder = folder
        self._server = server
        self._keys_file = folder / "keys"
        self._keys_file.write_text(KeyRing.new_key() + "\n")
        self._keys_file.chmod(0o600)

    def postgres_version(self) -> str:
        """Such as 15.18."""
        with connect(self._server.url) as conn:
            return str(conn.info.parameter_status("server_version")).split()[0]

    @contextmanager
    def bed(self, permits: int) -> Iterator[Bed]:
        """A fresh, migrated database with the source and that many permits, dropped at the end."""
        name = f"bench_{next(_numbers)}"
        url = self._server.url.replace("///crawlfleet?", f"///{name}?")
        folder = self.folder / name
        folder.mkdir()
        with psycopg.connect(self._server.url, autocommit=True) as admin:
            admin.execute(f"create database {name}")
            try:
                migrate(url)
                with connect(url, "bench") as conn:
                    bed = Bed(url, conn, KeyRing.load(self._keys_file), self._keys_file, folder)
                    bed.declare(permits)
                    yield bed
            finally:
                admin.execute(f"drop database {name} with (force)")


def await_end(workers: Sequence[Worker], timeout_s: float) -> None:
    """Wait until all have read that their batch is closed."""
    await_that(
        lambda: all(w.process.poll() is not None for w in workers), timeout_s, "the end of the workers"
    )
    for worker in workers:
        if worker.process.returncode != 0:
            tail = "\n".join(worker.log.read_text().splitlines()[-5:])
            raise RuntimeError(f"a worker ended with {worker.process.returncode}; its log ends:\n{tail}")


def await_that(is_so: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition; RuntimeError if it does not come true in time."""
    give_up_at = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"waited {timeout_s:.0f} s in vain for {what}")
        time.sleep(POLL_S)


def peak(intervals: Iterable[tuple[float, float]]) -> int:
    """How many intervals there are at once, at most; one that ends when another begins is over."""
    edges = sorted((at, step) for begin, end in intervals for at, step in ((begin, 1), (end, -1)))
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    return most
