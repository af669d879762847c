"""The heartbeat and the watchdog alone, on a clock that moves only when a test says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from threading import Thread
from typing import Any

import psycopg
from builders import register_worker, session_keys, shop_batch, take, until

from crawlfleet.errors import STOPPED_ITSELF
from crawlfleet.leases import Leases
from crawlfleet.slots import Exits
from crawlfleet.store.connection import Connection
from crawlfleet.store.fleet import Clock
from crawlfleet.store.turn import Identity
from crawlfleet.tokens import PendingStores
from crawlfleet.vitals import Vitals

FLEET_CLOCK = Clock(tick_s=0.5, expire_ticks=24, quarantine_ticks=4)
BLOCKED = (
    "select count(*) > 0 from pg_stat_activity where datname = current_database()"
    " and wait_event_type = 'Lock' and application_name = 'crawlfleet heartbeat'"
)


class StandingClock:
    """Its reading is what the test wrote there."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def vitals_of(me: Identity, clock: Callable[[], float], leases: Leases, **changes: Any) -> Vitals:
    """The vitals of a worker that registered at that moment."""
    return Vitals(
        me.worker_id,
        leases,
        Exits(session_keys(), me.batch_id),
        {},
        FLEET_CLOCK,
        clock=clock,
        random=Random(0),
        wake=lambda: None,
        unable=lambda: (),
        pending=PendingStores(),
        **{"renewed_at": clock(), **changes},
    )


@contextmanager
def beating(vitals: Vitals, url: str) -> Iterator[None]:
    """Its heartbeat runs until the block ends."""
    thread = Thread(target=vitals.heartbeat, args=(url,))
    thread.start()
    try:
        yield
    finally:
        vitals.done.set()
        thread.join(30)


def test_a_renewal_is_good_from_when_it_was_sent_however_late_its_reply_is(
    conn: Connection, database_url: str
) -> None:
    """The database counts from a moment between the two: from the reply on, the permits may have expired."""
    me = register_worker(conn, shop_batch(conn))
    leases, clock = Leases(), StandingClock(1000)
    leases.add(take(conn, me))
    vitals = vitals_of(me, clock, leases, renewed_at=0.0)

    with psycopg.connect(database_url) as other:
        other.execute("select from worker for update")
        with beating(vitals, database_url):
            until(lambda: conn.execute(BLOCKED).fetchone() == (True,))
            clock.now += 5
            other.rollback()
            until(lambda: vitals.control is not None)

    assert vitals.stop_at == 1000 + FLEET_CLOCK.stop_after_s


def test_a_worker_is_well_for_as_long_as_its_renewals_are_good(conn: Connection) -> None:
    clock = StandingClock(1000)
    vitals = vitals_of(register_worker(conn, shop_batch(conn)), clock, Leases())

    clock.now += FLEET_CLOCK.stop_after_s - 0.1
    assert vitals.is_well()
    clock.now += 0.1
    assert not vitals.is_well()


# The way out of a process whose loop hangs, in a process of its own. Each look at its clock is ten seconds later.

_PROCESS = """
import threading
from contextlib import nullcontext
from itertools import count
from random import Random
from crawlfleet.leases import Leases
from crawlfleet.store.fleet import Clock
from crawlfleet.tokens import PendingStores
from crawlfleet.errors import STOPPED_ITSELF
from crawlfleet.vitals import Vitals

looks = count(1)
past_many_looks = threading.Event()

def clock():
    look = next(looks)
    if look == 10:
        past_many_looks.set()
    return look * 10.0

pending = PendingStores()
vitals = Vitals(1, Leases(), None, {}, Clock(), clock=clock, random=Random(0), renewed_at=-1000.0,
                wake=lambda: None, unable=lambda: (), pending=pending)
with %s:
    threading.Thread(target=vitals.watchdog, daemon=True).start()
    past_many_looks.wait(30)
    print("still here", flush=True)
threading.Event().wait(30)
"""


def left_by_the_watchdog(meanwhile: str) -> tuple[int, str]:
    """The exit code of a process that lost its renewals, and what it said before it ended."""
    done = subprocess.run(
        [sys.executable, "-c", _PROCESS % meanwhile], stdout=subprocess.PIPE, text=True, timeout=100
    )
    return done.returncode, done.stdout


def test_a_process_that_lost_its_renewals_ends_though_its_loop_hangs() -> None:
    assert left_by_the_watchdog("nullcontext()") == (STOPPED_ITSELF, "")


def test_a_process_does_not_end_over_a_token_that_is_not_stored() -> None:
    """The shop has rotated it: what is in this process is the seller's only consent."""
    assert left_by_the_watchdog("pending") == (STOPPED_ITSELF, "still here\n")
