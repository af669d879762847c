"""Builders for tests: declare a source, accounts, a batch; register a worker; take, end and commit its crawls.

Each is one call of the product's own function with defaults for what a test does not care about.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cache
from itertools import count
from pathlib import Path
from random import Random
from threading import Barrier, Lock
from time import monotonic, sleep
from typing import Any, Literal, TypeVar

from crawlfleet.accounts import Account
from crawlfleet.apply import import_accounts
from crawlfleet.credentials import KeyRing
from crawlfleet.errors import CrawlEnded
from crawlfleet.planner import BatchPlan, Selector, plan
from crawlfleet.store import fleet, turn
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.queries import sql
from crawlfleet.store.sources import EgressSpec, Settings, lock_sources, put_source
from crawlfleet.store.turn import Finished, Identity, Lease, Row
from crawlfleet.verdicts import OK, History, Outcome, judge

SETTINGS = Settings(
    adapter="noop", base_url=None, options={}, job_timeout_s=60, retry=3, crashed=1, throttled_s=600
)
Result = TypeVar("Result")
_numbers = count(1)
_one_at_a_time = Lock()


def key_ring(folder: Path) -> KeyRing:
    """A key ring with a fresh key, in a file that worker processes can read."""
    file = folder / "keys"
    file.write_text(KeyRing.new_key() + "\n")
    file.chmod(0o600)
    return KeyRing.load(file)


def session_keys() -> KeyRing:
    """The key ring of tests that need no file of it; one for all threads."""
    with _one_at_a_time:
        return _session_keys()


@cache
def _session_keys() -> KeyRing:
    with tempfile.TemporaryDirectory(prefix="crawlfleet-test-") as folder:
        return key_ring(Path(folder))


def egress(
    name: str = "direct",
    cap: int = 4,
    *,
    exit: str | None = None,  # noqa: A002 - what the table calls it
    gap_us: int = 0,
    cool_first_s: int = 30,
    cool_longest_s: int = 900,
) -> EgressSpec:
    return EgressSpec(name, exit or f"exit-{next(_numbers)}", None, cap, gap_us, cool_first_s, cool_longest_s)


def declare_source(
    conn: Connection, *egresses: EgressSpec, name: str = "shop", namespace: str | None = None
) -> int:
    """The source's id. It has exactly these egresses; one with 4 permits if none is given."""
    with transaction(conn):
        lock_sources(conn, [name])
        return put_source(conn, name, egresses or [egress()], namespace=namespace)


def account(
    user_id: int,
    *,
    source: str = "shop",
    subscription: Literal["paid", "free"] = "paid",
    last_login_at: datetime | None = None,
    credentials: dict[str, Any] | None = None,
) -> Account:
    return Account(user_id, source, subscription, last_login_at, credentials or {"token": f"token-{user_id}"})


def add_accounts(
    conn: Connection, accounts: Iterable[Account | int], *, source: str = "shop", keys: KeyRing | None = None
) -> None:
    """Import accounts; a number stands for a paid account of that user at `source`."""
    lines = [account(a, source=source) if isinstance(a, int) else a for a in accounts]
    import_accounts(conn, keys or session_keys(), lines)


def batch_plan(
    *,
    name: str = "",
    sources: Sequence[str] = ("shop",),
    workers: int = 1,
    selector: Selector | None = None,
    settings: Settings = SETTINGS,
    retain_s: int | None = None,
    namespace: str | None = None,
) -> BatchPlan:
    """A plan with a uid of its own."""
    uid = f"batch-{next(_numbers)}"
    of_sources = dict.fromkeys(sources, settings)
    return BatchPlan(
        uid, name or uid, workers, selector or Selector(), of_sources, retain_s, namespace=namespace
    )


def plan_batch(conn: Connection, **fields: Any) -> int:
    """Plan a batch (fields of `batch_plan`); its id."""
    return plan(conn, batch_plan(**fields))


def shop_batch(conn: Connection, users: int = 4, cap: int = 4, **fields: Any) -> int:
    """The most common beginning: a source `shop` with one egress, `users` paid accounts, a planned batch."""
    declare_source(conn, egress(cap=cap, exit="shop-direct"))
    add_accounts(conn, range(1, users + 1))
    return plan_batch(conn, **fields)


def process(ordinal: int = 0) -> fleet.Process:
    """A process that does not exist."""
    return fleet.Process("test-host", "test-boot", 100_000 + ordinal)


def register_worker(conn: Connection, batch_id: int, ordinal: int = 0, slots: int = 100) -> Identity:
    """A registration of `process(ordinal)`; its shard is its ordinal."""
    worker_id = fleet.register(conn, batch_id, ordinal, slots, process(ordinal))
    assert worker_id is not None
    return Identity(worker_id, batch_id, ordinal)


def take(conn: Connection, me: Identity, running: int = 0) -> list[Lease]:
    with transaction(conn):
        return turn.take(conn, me, running)


def lease(lease_id: int, source_id: int, user_id: int, credentials: bytes, generation: int) -> Lease:
    """A lease that no permit knows, for what only asks whose it is."""
    return Lease(
        egress_id=1,
        no=0,
        lease_id=lease_id,
        task_no=1,
        user_id=user_id,
        source_id=source_id,
        cut=0,
        credentials=credentials,
        generation=generation,
        account_state="ok",
        account_reason=None,
        wait_s=None,
        history=History(),
    )


def ended(
    lease: Lease,
    how: Outcome | CrawlEnded = OK,
    *,
    rows: Sequence[Row] = (),
    cost_ms: int = 100,
    settings: Settings = SETTINGS,
) -> Finished:
    """A crawl that ended, judged."""
    outcome = how if isinstance(how, Outcome) else Outcome.of(how)
    decision = judge(outcome, lease.history, settings.budgets, Random(0))
    return Finished(lease, outcome, decision, lease.generation, cost_ms, tuple(rows))


def commit(conn: Connection, me: Identity, *finished: Finished) -> list[Finished]:
    with transaction(conn):
        return turn.commit(conn, me, finished, Random(0))


def pass_ticks(conn: Connection, ticks: int) -> None:
    """Let that many ticks pass at once, as if housekeeping had run all the time."""
    for _ in range(ticks):
        conn.execute(
            "update fleet set ticked_at = clock_timestamp() - make_interval(secs => tick_ms / 1000.0)"
        )
        with transaction(conn):
            assert conn.execute(sql("advance_tick")).rowcount == 1


def task_states(conn: Connection, batch_id: int) -> dict[int, str]:
    """User id → state of its task (batches of one source)."""
    rows = conn.execute("select user_id, state::text from task where batch_id = %s order by 1", (batch_id,))
    return dict(rows.fetchall())


def held(conn: Connection) -> int:
    """Permits filled now."""
    return int(scalar(conn, "select count(*) from permit where lease_id is not null"))


def scalar(conn: Connection, query: Any, *params: Any) -> Any:
    """The first column of the first row; None without a row."""
    row = conn.execute(query, params or None).fetchone()
    return None if row is None else row[0]


def together(*functions: Callable[[], Result]) -> list[Result]:
    """Run functions in threads that begin at the same moment; their results in order, or the first error."""
    start = Barrier(len(functions))

    def run(function: Callable[[], Result]) -> Result:
        start.wait(30)
        return function()

    with ThreadPoolExecutor(len(functions)) as threads:
        return [future.result() for future in [threads.submit(run, f) for f in functions]]


def until(is_so: Callable[[], Any], timeout_s: float = 30) -> None:
    """Poll until it is so; AssertionError if it never is."""
    deadline_s = monotonic() + timeout_s
    while not is_so():
        assert monotonic() < deadline_s, f"still not so after {timeout_s} s"
        sleep(0.01)
