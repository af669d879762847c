"""What goes wrong is told in words, nothing is created halfway, and what can heal does. One operator for all these batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from cluster.operated import SMALL, Operated, changed, operated, sample
from cluster.stage import forwarded
from cluster.testbed.kubectl import Document, Kubectl, KubectlFailed, fresh_namespace
from fleet import until

pytestmark = pytest.mark.timeout(300)
NOWHERE: Document = {"spec": {**SMALL["spec"], "nodeSelector": {"example.com/pool": "nowhere"}}}
NEVER: Document = {"sources": ["cafe24"], "template": NOWHERE}
"""A batch whose pods find no node: it stays open without a worker."""


@pytest.fixture(scope="module")
def fleet(kubectl: Kubectl, crds: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    name = f"operator-words-{os.getpid()}"
    with (
        fresh_namespace(kubectl, name) as namespace,
        operated(namespace, tmp_path_factory.mktemp("words"), users=3) as fleet,
    ):
        yield fleet


@pytest.fixture
def batch(fleet: Operated, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for this test alone; the batch goes with it."""
    name = request.node.name.removeprefix("test_").partition("[")[0].replace("_", "-")[:40].strip("-")
    yield name
    fleet.kubectl("delete", "crawlbatch", name, "--ignore-not-found", "--wait=false")


def jobs(fleet: Operated, batch: str) -> list[Document]:
    return fleet.kubectl.list("jobs", f"--selector=crawlfleet.dev/batch={batch}")


def events(fleet: Operated, name: str) -> list[str]:
    about = f"--field-selector=involvedObject.name={name},involvedObject.kind=CrawlBatch"
    return [event["reason"] for event in fleet.kubectl.list("events", about)]


def source(name: str, **spec: object) -> Document:
    """Another CrawlSource of the stand-in cafe24, through an exit of its own."""
    document = changed(sample("sources.yaml")[0], {"baseURL": f"http://{name}.example.com:8024", **spec})
    return {**document, "metadata": {"name": name}}


# What a batch needs, and is not there.


def test_an_unknown_source(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, sources=["cafe24", "coming"])
    words = fleet.await_reason("Planned", "SourceMissing", batch)
    assert words == f"there is no CrawlSource coming in namespace {fleet.kubectl.namespace}"
    assert jobs(fleet, batch) == []
    assert fleet.ask("select 1 from batch where name = %s", batch) == []

    fleet.kubectl.apply(source("coming"))
    fleet.await_complete(batch)


def test_a_missing_secret(fleet: Operated, batch: str) -> None:
    secret = fleet.kubectl.get("secret", "crawlfleet")
    fleet.kubectl("delete", "secret", "crawlfleet")
    fleet.apply_batch(batch, sources=["cafe24"])
    words = fleet.await_reason("Degraded", "SecretMissing", batch)
    assert "there is no Secret crawlfleet in namespace" in words
    assert jobs(fleet, batch) == []

    fleet.kubectl.apply({**secret, "metadata": {"name": "crawlfleet"}})
    fleet.await_complete(batch)
    assert "SecretMissing" in events(fleet, batch)


def test_nobody_to_crawl(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, sources=["cafe24"], users={"ids": [2]})
    fleet.await_complete(batch)
    fleet.stage.crawlfleet("accounts", "disable", "3")
    nobody = f"{batch}-2"
    fleet.apply_batch(nobody, sources=["cafe24"], users={"ids": [3]})
    assert "no enabled account of cafe24" in fleet.await_reason("Planned", "EmptySelection", nobody)
    assert fleet.ask("select 1 from batch where name = %s", nobody) == []

    fleet.stage.crawlfleet("accounts", "enable", "3")
    fleet.await_complete(nobody)


# What the cluster refuses.


def test_a_template_that_violates_pod_security(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, sources=["cafe24"], template={"spec": {**SMALL["spec"], "hostNetwork": True}})
    words = fleet.await_reason("Degraded", "PodsRefused", batch)
    assert 'violates PodSecurity "restricted:latest": host namespaces' in words
    assert jobs(fleet, batch) == []

    fleet.patch(batch, template={"spec": {"hostNetwork": False}})
    fleet.await_complete(batch)


def test_a_template_that_is_no_pod(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, sources=["cafe24"], template={"spec": {"nodeSelektor": {}}})
    assert 'unknown field "spec.nodeSelektor"' in fleet.await_reason("Degraded", "PodsRefused", batch)


def test_a_template_that_cannot_be_merged(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, sources=["cafe24"], template={"spec": {"containers": "all"}})
    words = fleet.await_reason("Failed", "Invalid", batch)
    assert words == "template.spec.containers: expected a list of mappings, each with a name"

    fleet.patch(batch, template={"spec": {"containers": None}})
    fleet.await_complete(batch)


def test_an_image_that_does_not_exist(fleet: Operated, batch: str) -> None:
    crawler = {**SMALL["spec"]["containers"][0], "image": "localhost/nowhere:test"}
    fleet.apply_batch(
        batch, sources=["cafe24"], template={"spec": {**SMALL["spec"], "containers": [crawler]}}
    )
    words = fleet.await_reason("Degraded", "ImagePull", batch)
    assert words.startswith("2 pods: localhost/nowhere:test")

    fleet.patch(batch, template={"spec": {"containers": SMALL["spec"]["containers"]}})
    fleet.await_complete(batch)


def test_no_room_in_the_schedulers_own_words(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, **NEVER)
    words = fleet.await_reason("Degraded", "NoCapacity", batch)
    assert "didn't match Pod's node affinity/selector" in words
    assert fleet.condition("Progressing", batch)[:2] == ("False", "NoCapacity")


# What the fleet itself lacks.


def test_more_workers_than_permits(fleet: Operated, batch: str, tmp_path: Path) -> None:
    fleet.kubectl.apply(source("narrow", maxConcurrent=1, budgets={"retry": 100}))
    fleet.await_reason("Available", "Declared", "narrow", "crawlsource")
    said = fleet.kubectl("logs", "shops").splitlines()
    line = next(line for line in said if '"source": "cafe24"' in line)
    accounts = tmp_path / "accounts.jsonl"
    accounts.write_text(line.replace('"cafe24"', '"narrow"'))
    fleet.stage.crawlfleet("accounts", "import", str(accounts))
    fleet.apply_batch(batch, sources=["narrow"], workers=2)
    words = fleet.await_reason("Degraded", "Oversized", batch)
    assert words == "2 workers, but its sources allow 1 crawls at a time: some stay idle"

    fleet.patch(batch, stop="Cancel")
    fleet.await_complete(batch)


def test_a_source_that_rests(fleet: Operated, batch: str) -> None:
    rest = "update egress set cool_until = now() + interval '1 hour' where source_id = (select source_id from source where name = 'cafe24') returning 1"
    fleet.apply_batch(batch, sources=["cafe24"])
    until(lambda: fleet.ask("select 1 from batch where name = %s", batch), "the plan")
    fleet.ask(rest)
    until(lambda: fleet.condition("Throttled", "cafe24", "crawlsource")[0] == "True", "the source rests")
    assert "every egress rests until 20" in fleet.condition("Throttled", "cafe24", "crawlsource")[2]
    fleet.ask(rest.replace("now() + interval '1 hour'", "'epoch'"))
    fleet.await_complete(batch)


def test_a_source_deleted_under_its_batch(fleet: Operated, batch: str) -> None:
    fleet.apply_sources(requestsPerSecond=0.5)
    fleet.apply_batch(batch, sources=["cafe24"])
    fleet.await_done(1, batch)
    fleet.kubectl("delete", "crawlsource", "cafe24")
    try:
        fleet.await_reason("Degraded", "SourceMissing", batch)
        exits = "select count(*) from egress join source s using (source_id) where s.name = 'cafe24' and not removed"
        assert fleet.ask(exits) == [(1,)]
    finally:
        fleet.apply_sources()
    fleet.await_complete(batch)
    fleet.await_reason("Available", "Declared", "cafe24", "crawlsource")


def test_the_database_away(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, **NEVER)
    fleet.await_reason("Degraded", "NoCapacity", batch)
    fleet.kubectl.patch("service", "postgres", {"spec": {"selector": {"app": "nowhere"}}})
    fleet.ask(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'crawlfleet operator'"
    )
    try:
        assert "cannot reach the database" in fleet.await_reason("Degraded", "DatabaseUnavailable", batch)
    finally:
        fleet.kubectl.patch("service", "postgres", {"spec": {"selector": {"app": "postgres"}}})
    fleet.await_reason("Degraded", "NoCapacity", batch)


def test_a_schema_newer_than_the_operator(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, **NEVER)
    fleet.await_reason("Degraded", "NoCapacity", batch)
    fleet.ask("insert into schema_migration (version, name, checksum) values (9999, 'later', '') returning 1")
    fleet.ask(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'crawlfleet operator'"
    )
    try:
        words = fleet.await_reason("Degraded", "SchemaMismatch", batch)
        assert words == "the database has migration 9999, newer than this crawlfleet; upgrade crawlfleet"
    finally:
        fleet.ask("delete from schema_migration where version = 9999 returning 1")
    fleet.await_reason("Degraded", "NoCapacity", batch)


# Sources that are refused.


def test_two_sources_by_one_exit(fleet: Operated) -> None:
    fleet.kubectl.apply(source("first"), source("second", baseURL="http://first.example.com:8024"))
    reasons = {
        name: until(lambda name=name: fleet.condition("Available", name, "crawlsource")[1], "a word")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        for name in ("first", "second")
    }
    assert sorted(reasons.values()) == ["Declared", "ExitTaken"]
    loser = next(name for name, reason in reasons.items() if reason == "ExitTaken")
    winner = "second" if loser == "first" else "first"
    assert f"of CrawlSource {winner}" in fleet.condition("Available", loser, "crawlsource")[2]

    fleet.kubectl("delete", "crawlsource", winner)
    fleet.await_reason("Available", "Declared", loser, "crawlsource")


def test_a_name_of_another_namespace(fleet: Operated) -> None:
    fleet.ask("insert into source (name, namespace) values ('theirs', 'elsewhere') returning 1")
    fleet.kubectl.apply(source("theirs"))
    words = fleet.await_reason("Available", "NameTaken", "theirs", "crawlsource")
    assert "belongs to the CrawlSource theirs in namespace elsewhere" in words


def test_a_proxy_without_its_secret(fleet: Operated) -> None:
    egresses = [{"name": "out", "proxySecretRef": {"name": "exit"}}]
    fleet.kubectl.apply(source("proxied", egresses=egresses))
    fleet.await_reason("Available", "SecretMissing", "proxied", "crawlsource")
    values = [
        f"--from-literal={key}"
        for key in ("url=http://proxy.example.com:3128", "username=u", "password=hush-hush")
    ]
    fleet.kubectl("create", "secret", "generic", "exit", *values)

    fleet.await_reason("Available", "Declared", "proxied", "crawlsource")
    assert "hush-hush" not in fleet.kubectl("logs", "deployment/crawlfleet-operator")
    assert "hush-hush" not in fleet.kubectl("get", "crawlsource,events", "-o", "yaml")


# Deadlines and ends.


def test_no_worker_within_the_start_deadline(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, **NEVER, startDeadlineSeconds=2)
    words = fleet.await_reason("Failed", "StartDeadlineExceeded", batch)
    assert words == "no worker began within startDeadlineSeconds (2)"
    until(lambda: jobs(fleet, batch) == [], "no job is left")
    assert fleet.status(batch)["phase"] == "Failed"


def test_longer_than_the_active_deadline(fleet: Operated, batch: str) -> None:
    fleet.kubectl.patch("crawlsource", "cafe24", {"spec": {"requestsPerSecond": 0.5}})
    try:
        fleet.apply_batch(batch, sources=["cafe24"], activeDeadlineSeconds=1)
        fleet.await_complete(batch)
    finally:
        fleet.apply_sources()
    status, reason, words = fleet.condition("Complete", batch)
    assert (status, reason) == ("True", "WithFailures")
    assert words.endswith("cancelled after activeDeadlineSeconds")


def test_its_time_to_live_is_over(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, sources=["cafe24"], ttlSecondsAfterFinished=1)
    fleet.kubectl.wait(f"crawlbatch/{batch}", until="delete", timeout_s=120)
    until(lambda: jobs(fleet, batch) == [] and fleet.workers(batch) == [], "nothing is left")
    assert fleet.ask("select retain_s from batch where name = %s", batch) == [(7 * 86_400,)]


@pytest.mark.parametrize("phase", ["Pending", "Starting", "Suspended", "Complete"])
def test_deleted_while_the_operator_is_gone(fleet: Operated, batch: str, phase: str) -> None:
    spec: Document = {
        "Pending": {"sources": ["unknown"]},
        "Starting": NEVER,
        "Suspended": NEVER | {"suspend": True},
        "Complete": {"sources": ["cafe24"]},
    }[phase]
    fleet.apply_batch(batch, **spec)
    fleet.kubectl.wait(f"crawlbatch/{batch}", until=f"jsonpath={{.status.phase}}={phase}", timeout_s=120)
    fleet.kubectl("scale", "deployment/crawlfleet-operator", "--replicas=0")
    try:
        fleet.kubectl.wait("pod", "--selector=app.kubernetes.io/component=operator", until="delete")
        fleet.kubectl("delete", "crawlbatch", batch, "--timeout=20s")
        until(lambda: jobs(fleet, batch) == [] and fleet.workers(batch) == [], "job and pods go with it")
    finally:
        fleet.kubectl("scale", "deployment/crawlfleet-operator", "--replicas=1")
    closed = "select count(*) from batch where name = %s and (state <> 'closed' or retain_s is null)"
    until(lambda: fleet.ask(closed, batch) == [(0,)], "its batch is closed and will be deleted")


def test_deleted_while_it_runs(fleet: Operated, batch: str) -> None:
    """What its workers crawl ends, what has not begun is given up."""
    fleet.apply_sources(requestsPerSecond=0.5)
    try:
        fleet.apply_batch(batch, sources=["cafe24"], maxConcurrent=1, workers=1)
        fleet.await_done(1, batch)
        fleet.kubectl("delete", "crawlbatch", batch, "--timeout=20s")
        until(lambda: jobs(fleet, batch) == [] and fleet.workers(batch) == [], "job and pods go with it")
    finally:
        fleet.apply_sources()
    states = (
        "select distinct task.state::text from task join batch using (batch_id) where name = %s order by 1"
    )
    until(lambda: fleet.ask(states, batch) == [("cancelled",), ("ok",)], "its tasks have ended")


def test_a_batch_that_is_there_twice_by_name_is_two_batches(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, sources=["cafe24"])
    fleet.await_complete(batch)
    fleet.kubectl("delete", "crawlbatch", batch)
    fleet.apply_batch(batch, sources=["cafe24"])
    fleet.await_complete(batch)

    assert len(fleet.ask("select uid from batch where name = %s", batch)) == 2


def test_zero_workers_are_refused(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, **NEVER)
    with pytest.raises(KubectlFailed, match=r"spec\.workers"):
        fleet.kubectl("scale", f"crawlbatch/{batch}", "--replicas=0")


def test_its_metrics_forget_a_deleted_batch(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, sources=["cafe24"])
    fleet.await_complete(batch)
    series = f'crawlfleet_batch_tasks{{batch="{batch}",namespace="{fleet.kubectl.namespace}",source="cafe24",state="ok"}} 3.0'
    until(lambda: series in metrics(fleet), "its tasks")
    assert 'crawlfleet_batches{phase="Complete"}' in metrics(fleet)
    assert "crawlfleet_database_up 1.0" in metrics(fleet)
    fleet.kubectl("delete", "crawlbatch", batch)
    until(lambda: batch not in metrics(fleet), "nothing is left of it")
    for _ in range(2):
        last = resynced(fleet)
        until(lambda last=last: resynced(fleet) > last, "another look at everything")  # type: ignore[misc]  # mypy cannot infer a lambda with a default
    assert batch not in metrics(fleet), "it is back: its rows are there for days"


def resynced(fleet: Operated) -> float:
    """When the operator last looked at everything."""
    (line,) = (
        one for one in metrics(fleet).splitlines() if one.startswith("crawlfleet_last_resync_timestamp")
    )
    return float(line.split()[1])


def metrics(fleet: Operated) -> str:
    """What a scrape of the operator finds."""
    with (
        forwarded(fleet.kubectl, "deployment/crawlfleet-operator", 9090) as port,
        urlopen(f"http://127.0.0.1:{port}/metrics") as answer,
    ):
        said: bytes = answer.read()
    return said.decode()


def test_its_log_tells_each_step(fleet: Operated, batch: str) -> None:
    fleet.apply_batch(batch, sources=["cafe24"])
    fleet.await_complete(batch)
    steps = [
        event["step"]
        for event in fleet.log()
        if event.get("batch", "").endswith(f"/{batch}") and "step" in event
    ]
    assert [step.partition("(")[0] for step in steps][:4] == [
        "PlanTasks",
        "SetLevers",
        "CreateJob",
        "SetBudget",
    ]
