"""The plans that PostgreSQL really runs in a turn at 100,000 ready tasks: by index, never by sort or whole scan.

Taken from the server's own log of each statement (auto_explain), with the statistics of the moment when the batch was
planned, and often enough that prepared statements get their generic plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import psycopg
import pytest
from builders import commit, ended, plan_batch, register_worker, shop_batch, take

from crawlfleet.crawl import encode
from crawlfleet.errors import Retry
from crawlfleet.sources import Item
from crawlfleet.store import oversight, turn
from crawlfleet.store.connection import Connection, transaction
from crawlfleet.store.queries import sql
from crawlfleet.verdicts import OK, Outcome

READY = 100_000
CAP = 20
MANY = 10 * CAP
PREPARED_GENERICALLY = 8
"""Executions after which PostgreSQL has chosen between custom and generic plans."""

_EXPLAIN = """
load 'auto_explain';
set auto_explain.log_min_duration = 0; set auto_explain.log_format = json; set auto_explain.log_level = notice;
set auto_explain.log_analyze = on; set auto_explain.log_timing = off
"""


class Plans:
    """The plans of one connection, each with the name of its statement."""

    def __init__(self, conn: Connection) -> None:
        self.found: list[tuple[str, dict[str, Any]]] = []
        conn.add_notice_handler(self._add)
        conn.execute(_EXPLAIN)

    def _add(self, notice: psycopg.errors.Diagnostic) -> None:
        _, _, text = (notice.message_primary or "").partition("plan:\n")
        if text:
            plan = json.loads(text)
            self.found.append((plan["Query Text"], plan["Plan"]))

    def of(self, name: str) -> list[dict[str, Any]]:
        """The plans of the named statement, however its parameters were written."""
        head, _, _ = sql(name, limit=1).partition("%(")
        return [plan for text, plan in self.found if text.startswith(head)]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def offences(plan: dict[str, Any]) -> list[str]:
    """Scans of `task` other than by index, or of many rows; and sorts of what comes from it."""
    found = []
    for node in nodes(plan):
        if node.get("Relation Name") == "task" and "Scan" in node["Node Type"]:
            read = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
            if node["Node Type"] == "Seq Scan" or read > MANY:
                found.append(f"{node['Node Type']} of {read} rows")
        if "Sort" in node["Node Type"] and any(n.get("Relation Name") == "task" for n in nodes(node)):
            found.append(node["Node Type"])
    return found


@pytest.fixture(params=[0, 60], ids=["just-planned", "mostly-done"])
def full(conn: Connection, request: pytest.FixtureRequest) -> int:
    """A batch of two workers with the statistics of its plan, of which some per cent have ended since.

    The first worker has no own task at the head of the queue: it takes both ways.
    """
    batch = shop_batch(conn, users=1, cap=CAP, workers=2)
    conn.execute("alter table task set (autovacuum_enabled = off)")
    conn.execute(
        "insert into task (user_id, batch_id, task_no, state, source_id, egress_id, rank, shard)"
        " select n, %s, n, 'ready', source_id, egress_id, 45 + n / 10000, n / 5000 %% 2"
        " from egress, generate_series(2, %s) n",
        (batch, READY),
    )
    conn.execute(sql("analyze"))
    ended_already = request.param * READY // 100
    conn.execute("update task set state = 'ok' where task_no between 2 and %s", (ended_already + 5000,))
    return batch


def turns(conn: Connection, batch: int) -> None:
    """Turns of a worker, ends of every kind, until the plans are generic."""
    me = register_worker(conn, batch)
    finished: list[turn.Finished] = []
    for number in range(2 * PREPARED_GENERICALLY):
        with transaction(conn):
            turn.commit(conn, me, finished, Random(0))
            leases = turn.take(conn, me, 0)
        how = Outcome.of(Retry("Timeout")) if number % 2 else OK
        finished = [ended(lease, how) for lease in leases]
        assert leases


HOT = (
    "room",
    "contenders",
    "pick_permits",
    "take_own",
    "take_any",
    "fill_permits",
    "free_permits",
    "finish_tasks",
)


def test_a_turn_reads_tasks_by_index_and_never_sorts_them(conn: Connection, full: int) -> None:
    plans = Plans(conn)

    turns(conn, full)

    for name in HOT:
        assert len(plans.of(name)) >= PREPARED_GENERICALLY, name
        assert [offences(plan) for plan in plans.of(name) if offences(plan)] == [], name


def test_a_turn_without_prepared_statements_reads_by_index_too(conn: Connection, full: int) -> None:
    """As behind pgbouncer: every execution is planned anew."""
    conn.prepare_threshold = None
    plans = Plans(conn)

    turns(conn, full)

    assert [(text[:40], offences(plan)) for text, plan in plans.found if offences(plan)] == []
    assert len(plans.of("take_any")) >= PREPARED_GENERICALLY


def test_taking_twenty_tasks_reads_twenty_tasks(conn: Connection, full: int) -> None:
    """The index is in the order of taking. Here by a worker that has no task of its own."""
    me = replace(register_worker(conn, full), shard=9)
    plans = Plans(conn)
    with transaction(conn):
        assert len(turn.take(conn, me, 0)) == CAP

    [plan] = plans.of("take_any")
    read = [node["Actual Rows"] for node in nodes(plan) if node.get("Index Name") == "task_ready"]
    assert read == [CAP]


def test_chores_of_another_batch_do_not_read_this_one(conn: Connection, full: int) -> None:
    """Neither housekeeping nor `crawlfleet status` of a small batch costs what the large one weighs."""
    other = {"batch": plan_batch(conn)}
    plans = Plans(conn)
    for statement in ("promote", "cancel_unbegun", "has_open_tasks", "next_retry"):
        with transaction(conn):
            conn.execute(sql(statement), other)

        assert plans.of(statement), statement
        assert [offences(plan) for plan in plans.of(statement) if offences(plan)] == [], statement


def test_an_operators_look_reads_no_tasks(conn: Connection, full: int) -> None:
    """It comes every few seconds, for every batch: what it shows has been counted."""
    conn.execute("update batch set namespace = 'crawl'")
    plans = Plans(conn)
    oversight.look(conn, None)
    oversight.sources(conn)

    for statement in ("overview", "source_states"):
        [plan] = plans.of(statement)
        assert "task" not in {node.get("Relation Name") for node in nodes(plan)}


def test_items_are_compared_by_key_however_many_there_are(conn: Connection) -> None:
    """Without statistics, as in the first minutes of a fleet, where a join would read the whole table each time."""
    conn.execute("alter table item set (autovacuum_enabled = off)")
    me = register_worker(conn, shop_batch(conn, users=2 * PREPARED_GENERICALLY, cap=1))
    plans = Plans(conn)

    for turn_no in range(2 * PREPARED_GENERICALLY):
        [lease] = take(conn, me)
        rows = [encode(Item("order", f"{turn_no}-{no}", {"no": no})) for no in range(MANY)]
        commit(conn, me, ended(lease, rows=rows))

    read = [
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for plan in plans.of("upsert_items")
        for node in nodes(plan)
        if node.get("Relation Name") == "item" and "Scan" in node["Node Type"]
    ]
    assert len(read) == 2 * PREPARED_GENERICALLY
    assert max(read) <= MANY
