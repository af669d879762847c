"""What only an operator outside of a pod can show: that its event loop is never held up, and that it may die at any moment."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cluster.outside import Outside, outside, resource
from cluster.testbed.kubectl import Document, Kubectl
from fleet import API, Fleet, until

ACCOUNTS = 100_000
SPEC: dict[str, Any] = {"adapter": "noop", "maxConcurrent": 1}
DEEP = 9_000
HELD_UP_S = 0.5
"""Of the loop, by one callback. A busy machine stops a process for a tenth of a second; a plan takes some."""
_SLOW = re.compile(r"Executing .* took ([\d.]+) seconds", re.DOTALL)
"""So asyncio tells of it in its debug mode."""
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("crds")]

# The planner reads no credentials.
_ACCOUNTS = """
insert into account (user_id, source_id, subscription, credentials, imported)
select u, source_id, 'free', '\\x5e', '\\x5e' from source, generate_series(1, %s) as u where name = %s
"""

_ONE_TRACK = """
insert into track (source_id, egress_id, user_id)
select source_id, egress_id, 50000 from egress join source using (source_id) where source.name = 'big'
"""


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Two sources: `big` with very many accounts, `small` with a few."""
    with Fleet(database_url, tmp_path) as fleet:
        for source, accounts in (("big", ACCOUNTS), ("small", 3)):
            fleet.declare(source, **SPEC, baseURL=f"http://{source}")
            fleet.conn.execute(_ACCOUNTS, (accounts, source))
        yield fleet


@pytest.fixture
def operator(namespace: Kubectl, database: Fleet, tmp_path: Path) -> Iterator[Outside]:
    """At work; its event loop tells of whatever holds it up."""
    debug = {"PYTHONASYNCIODEBUG": "1"}
    with outside(namespace, tmp_path, database.url, database.keys.path, debug) as operator:
        operator.start()
        for name in ("big", "small"):
            namespace.apply(resource("CrawlSource", name, **SPEC, baseURL=f"http://{name}"))
            namespace.wait(f"crawlsource/{name}", until="condition=Available")
        yield operator


def batch(name: str) -> Document:
    """Of the source of that name; no node takes its pods."""
    template = {"spec": {"nodeSelector": {"example.com/nobody": "here"}}}
    return resource("CrawlBatch", name, sources=[name], template=template)


@contextmanager
def held_up(database: Fleet, statement: str) -> Iterator[None]:
    """Whoever comes across what the statement locks waits there."""
    with psycopg.connect(database.url) as conn:
        conn.execute(statement.encode())
        yield
        conn.rollback()


def await_held_up(database: Fleet) -> None:
    until(lambda: database.blocked_backends() > 0, "a plan that is held up")


def await_planned(namespace: Kubectl, name: str) -> None:
    namespace.wait(f"crawlbatch/{name}", until="condition=Planned", timeout_s=120)


def test_a_big_plan_holds_up_nobody(namespace: Kubectl, database: Fleet, operator: Outside) -> None:
    """The event loop goes on, and another batch has its Job before the big one is planned."""
    quiet = len(operator.said())
    with held_up(database, _ONE_TRACK):
        namespace.apply(batch("big"))
        await_held_up(database)
        namespace.apply(batch("small"))
        await_planned(namespace, "small")
        namespace.wait("job/small-1-1", until="create", timeout_s=30)
        assert database.scalar("select state::text from batch where name = 'big'") == "planning"
    await_planned(namespace, "big")

    slow = [
        (float(found[1]), found[0])
        for event in operator.said()[quiet:]
        if (found := _SLOW.search(event["event"]))
    ]
    assert [each for each in slow if each[0] > HELD_UP_S] == []


def test_an_operator_that_is_killed_while_it_plans(
    namespace: Kubectl, database: Fleet, operator: Outside
) -> None:
    """All tasks are written and nothing is committed: the next operator plans them once."""
    with held_up(database, "lock table track in share update exclusive mode"):  # nobody may analyze it
        namespace.apply(batch("big"))
        await_held_up(database)
        operator.kill()
        operator.start()
    await_planned(namespace, "big")

    rows = "select count(*), count(distinct user_id), count(distinct batch_id) from task"
    assert database.conn.execute(rows).fetchone() == (ACCOUNTS, ACCOUNTS, 1)
    namespace.wait("job/big-1-1", until="create", timeout_s=30)
    assert len(namespace.list("jobs")) == 1
    assert json.loads(namespace("get", "crawlbatch/big", "-o=jsonpath={.status.total}")) == ACCOUNTS


def test_a_job_that_only_says_it_is_ours(namespace: Kubectl, operator: Outside) -> None:
    """One with the first of our labels and none of the others, as if copied by hand, keeps nobody from anything."""
    operator.kill()
    namespace.apply(foreign_job())
    operator.start()
    namespace.apply(batch("small"))

    namespace.wait("job/small-1-1", until="create", timeout_s=30)


def foreign_job() -> Document:
    pod = {"restartPolicy": "Never", "containers": [{"name": "theirs", "image": "nowhere/theirs"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "theirs", "labels": {"app.kubernetes.io/managed-by": "crawlfleet-operator"}},
        "spec": {"suspend": True, "template": {"spec": pod}},
    }


def test_a_document_deeper_than_python_likes(namespace: Kubectl, operator: Outside) -> None:
    """The API server takes it from anybody who may create a CrawlBatch; the others go on, also after a restart."""
    deep = '{"a":' * DEEP + "1" + "}" * DEEP
    spec = f'{{"sources":["small"],"template":{{"spec":{{"affinity":{deep}}}}}}}'
    made = f'{{"apiVersion":"{API}","kind":"CrawlBatch","metadata":{{"name":"deep"}},"spec":{spec}}}'
    path = f"/apis/{API}/namespaces/{namespace.namespace}/crawlbatches"
    namespace("create", "--raw", path, "--filename=-", stdin=made)
    namespace.wait("crawlbatch/deep", until="condition=Failed", timeout_s=30)
    operator.kill()
    operator.start()
    namespace.apply(batch("small"))

    namespace.wait("job/small-1-1", until="create", timeout_s=30)


@pytest.mark.usefixtures("operator")
def test_a_batch_that_is_made_anew_at_once(namespace: Kubectl, database: Fleet) -> None:
    """Under the same name, so that its Job and its budget have the names of those that are still being deleted."""
    namespace.apply(batch("small"))
    namespace.wait("job/small-1-1", until="create", timeout_s=30)
    namespace.wait("pdb/small", until="create", timeout_s=30)
    for _ in range(3):
        namespace("delete", "crawlbatch", "small", "--wait=false")
        namespace.apply(batch("small"))
    uid = namespace.get("crawlbatch", "small")["metadata"]["uid"]

    def is_its_own(kind: str) -> bool:
        owners = [one["metadata"]["ownerReferences"] for one in namespace.list(kind)]
        return [[owner["uid"] for owner in each] for each in owners] == [[uid]]

    until(lambda: is_its_own("jobs"), "its Job")
    until(lambda: is_its_own("pdb"), "its budget")
    assert namespace.get("crawlbatch", "small")["status"]["jobName"] == "small-1-1"
    not_given_up = "select count(*) from batch where stop = 'none'"
    until(lambda: database.scalar(not_given_up) == 1, "those before it are given up")
