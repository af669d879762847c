"""CrawlSource and CrawlBatch on a real API server: what it takes, what it refuses and in which words.

Nothing runs here, so it needs no nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.testbed.kubectl import Document, Kubectl, KubectlFailed
from cluster.testbed.place import REPOSITORY
from schemas import document_schema, values

from crawlfleet.crds import Schema, definitions
from crawlfleet.manifests import API_VERSION, CrawlBatch, CrawlSource, Model
from crawlfleet.statuses import (
    Condition,
    CrawlBatchStatus,
    CrawlSourceStatus,
    Permits,
    SourceCounts,
)

pytestmark = pytest.mark.usefixtures("crds")

SAMPLES = sorted((REPOSITORY / "k8s/samples").iterdir())
MODELS: dict[str, type[Model]] = {"CrawlSource": CrawlSource, "CrawlBatch": CrawlBatch}
NAME = "nightly"
NOON = "2026-11-20T12:00:00Z"


def source(**spec: Any) -> Document:
    return document("CrawlSource", {"adapter": "noop", "maxConcurrent": 10} | spec)


def batch(**spec: Any) -> Document:
    return document("CrawlBatch", {"sources": ["a"]} | spec)


def document(kind: str, spec: Document) -> Document:
    return {"apiVersion": API_VERSION, "kind": kind, "spec": spec} | named(NAME)


def named(name: str) -> Document:
    return {"metadata": {"name": name}}


def taken(kubectl: Kubectl, one: Document) -> Document:
    """The document as it would be stored. Nothing is."""
    words = ("create", "--dry-run=server", "--validate=strict", "-o", "yaml", "-f", "-")
    stored: Document = yaml.safe_load(kubectl.within("default")(*words, stdin=yaml.safe_dump(one)))
    return stored


def refusal(kubectl: Kubectl, one: Document) -> str:
    with pytest.raises(KubectlFailed) as refused:
        taken(kubectl, one)
    return str(refused.value)


# What is taken.


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_a_sample_is_taken(namespace: Kubectl, sample: Path) -> None:
    namespace("apply", "--validate=strict", "-f", str(sample))


def test_a_source_gets_its_defaults(kubectl: Kubectl) -> None:
    assert taken(kubectl, source())["spec"] == {
        "adapter": "noop",
        "maxConcurrent": 10,
        "egresses": [{"name": "direct"}],
        "jobTimeoutSeconds": 600,
        "coolDownSeconds": {"first": 60, "longest": 3600},
        "budgets": {"retry": 4, "crashed": 5, "throttledSeconds": 3600},
        "options": {},
    }


def test_a_batch_gets_its_defaults(kubectl: Kubectl) -> None:
    assert taken(kubectl, batch())["spec"] == {
        "sources": ["a"],
        "users": {"all": True},
        "workers": 2,
        "maxConcurrent": 10,
        "suspend": False,
        "stop": "None",
        "template": {},
    }


def test_a_part_of_a_map_leaves_the_rest_to_the_defaults(kubectl: Kubectl) -> None:
    spec = taken(kubectl, source(coolDownSeconds={"first": 5}, budgets={"retry": 0}))["spec"]

    assert spec["coolDownSeconds"] == {"first": 5, "longest": 3600}
    assert spec["budgets"] == {"retry": 0, "crashed": 5, "throttledSeconds": 3600}


@pytest.mark.parametrize(
    "one",
    [
        pytest.param(source(baseURL="http://shops:8024/{mall_id}"), id="port and path"),
        pytest.param(source(baseURL="https://{mall_id}.example.com"), id="placeholder in the host"),
        pytest.param(source(baseURL="HTTPS://Shop.example.com:65535"), id="upper case"),
        pytest.param(source(baseURL="http://[::1]:8080/"), id="IPv6"),
        pytest.param(source(baseURL="http://a/" + "b" * 1015), id="longest address"),
        pytest.param(source(maxConcurrent=0, egresses=[{"name": "a", "maxConcurrent": 9}]), id="paused"),
        pytest.param(
            source(egresses=[{"name": "a", "maxConcurrent": 9}, {"name": "b"}]), id="just enough permits"
        ),
        pytest.param(
            source(
                maxConcurrent=1000,
                egresses=[{"name": f"e-{number}", "maxConcurrent": 10} for number in range(100)],
            ),
            id="most egresses",
        ),
        pytest.param(batch(sources=[f"s-{number}" for number in range(20)]), id="most sources"),
        pytest.param(batch(users={"ids": list(range(1, 1001))}), id="most ids"),
        pytest.param(batch(users={"ids": [2**63 - 1]}), id="largest id"),
        pytest.param(batch() | named("a" * 45), id="longest name of a batch"),
        pytest.param(source() | named("a" * 63), id="longest name of a source"),
        pytest.param(batch(template={"spec": {"containers": [{"name": "chrome", "x": [1]}]}}), id="template"),
    ],
)
def test_what_is_allowed_is_taken_by_schema_and_model(kubectl: Kubectl, one: Document) -> None:
    stored = taken(kubectl, one)

    model = MODELS[one["kind"]]
    assert model.model_validate(stored | {"metadata": one["metadata"]}) == model.model_validate(one)


# What the schema refuses: each keyword of each field, with the field's path and the bound.


def at(path: str, value: Any) -> Document:
    """The map that has this value at the path, and nothing else."""
    first, _, rest = path.partition(".")
    inner = at(rest, value) if rest else value
    return {first.removesuffix("[]"): [inner] if first.endswith("[]") else inner}


def some(schema: Schema) -> Any:
    """A value that is allowed."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema["type"]:
        case "object":
            return {name: some(schema["properties"][name]) for name in schema.get("required", [])}
        case "string":
            return "a"
    return schema["minimum"]


def breaches(path: str, schema: Schema) -> Iterator[tuple[str, Any, str]]:
    """What breaks the rule, a value that does, and the words of the message."""
    shown = path.replace("[]", "[0]")
    yield (
        "type",
        7 if schema["type"] == "string" else "text",
        f"{shown} in body must be of type {schema['type']}",
    )
    if "minimum" in schema:
        least = f"{shown} in body should be greater than or equal to {schema['minimum']:g}"
        yield "below", schema["minimum"] - 1, least
    if "maximum" in schema:
        yield (
            "above",
            schema["maximum"] + 1,
            f"{shown} in body should be less than or equal to {schema['maximum']}",
        )
    if "minLength" in schema:
        yield "empty", "", f"{shown} in body should be at least {schema['minLength']} chars long"
    if "maxLength" in schema:
        yield (
            "too long",
            "a" * (schema["maxLength"] + 1),
            f"{shown}: Too long: may not be more than {schema['maxLength']}",
        )
    if "pattern" in schema:
        yield "pattern", "Not a name", f"{shown} in body should match '{schema['pattern']}'"
    if "enum" in schema:
        yield "enum", not schema["enum"][0], f"{shown}: Unsupported value"
    if "minItems" in schema:
        yield "no entry", [], f"{shown} in body should have at least {schema['minItems']} items"
    if "maxItems" in schema:
        most = schema["maxItems"]
        yield (
            "too many",
            [some(schema["items"])] * (most + 1),
            f"{shown}: Too many: {most + 1}: must have at most {most}",
        )
        yield "twice", [some(schema["items"])] * 2, f"{shown}[1]: Duplicate value"
    for name in schema.get("required", []):
        yield f"no {name}", {}, f"{shown}.{name}: Required value"
    if "properties" in schema:
        yield "unknown", {"color": "red"}, f'unknown field "{shown}.color"'


def schema_table() -> Iterator[Any]:
    for definition in definitions():
        kind = definition["spec"]["names"]["kind"]
        valid = source() if kind == "CrawlSource" else batch()
        for path, schema in values("spec", document_schema(definition)["properties"]["spec"]):
            for what, value, words in breaches(path, schema):
                yield pytest.param(with_value(valid, path, value), words, id=f"{kind} {path} {what}")


def with_value(valid: Document, path: str, value: Any) -> Document:
    """The document with this value at the path, which begins with `spec`."""
    field = path.removeprefix("spec").removeprefix(".")
    return valid | {"spec": valid["spec"] | at(field, value) if field else value}


@pytest.mark.parametrize(("one", "words"), [*schema_table()])
def test_the_schema_refuses(kubectl: Kubectl, one: Document, words: str) -> None:
    assert words in refusal(kubectl, one)


@pytest.mark.parametrize("one", [source(), batch()], ids=[*MODELS])
def test_an_unknown_field_beside_the_spec_is_refused(kubectl: Kubectl, one: Document) -> None:
    assert 'unknown field "color"' in refusal(kubectl, one | {"color": "red"})


@pytest.mark.parametrize("kind", MODELS)
def test_a_document_without_a_spec_is_refused(kubectl: Kubectl, kind: str) -> None:
    bare = {"apiVersion": API_VERSION, "kind": kind} | named(NAME)

    assert "spec: Required value" in refusal(kubectl, bare)


# What the rules refuse.

NO_ADDRESS = (
    'spec.baseURL: Invalid value: "string": baseURL must be an http:// or https:// address with a host'
)
NO_ROOM = "egresses must fit into the source's maxConcurrent"
ONE_OF = "users must have exactly one of the fields all, tiers, ids and idModulo"


@pytest.mark.parametrize(
    ("one", "words"),
    [
        pytest.param(source(baseURL=""), NO_ADDRESS, id="empty address"),
        pytest.param(source(baseURL="shop.example.com"), NO_ADDRESS, id="no scheme"),
        pytest.param(source(baseURL="ftp://shop.example.com"), NO_ADDRESS, id="another scheme"),
        pytest.param(source(baseURL="https:///path"), NO_ADDRESS, id="no host"),
        pytest.param(source(baseURL="https://a:0"), NO_ADDRESS, id="port 0"),
        pytest.param(source(baseURL="https://a:65536"), NO_ADDRESS, id="no such port"),
        pytest.param(source(baseURL="https://a/b c"), NO_ADDRESS, id="space"),
        pytest.param(source(baseURL="https://a\\b"), NO_ADDRESS, id="backslash"),
        pytest.param(source(baseURL="https://[::1"), NO_ADDRESS, id="open bracket"),
        pytest.param(source(baseURL="https://a:b@c"), "must not hold a user name or password", id="password"),
        pytest.param(source(baseURL="https://a/?b=c"), "must end with the path, without ? or #", id="query"),
        pytest.param(source(baseURL="https://a/#b"), "must end with the path, without ? or #", id="fragment"),
        pytest.param(
            source(baseURL="https://{mall}.a"), "the placeholder {mall_id} and no other", id="braces"
        ),
        pytest.param(
            source(egresses=[{"name": "a", "maxConcurrent": 9}, {"name": "b", "maxConcurrent": 2}]),
            NO_ROOM,
            id="egresses exceed the source",
        ),
        pytest.param(
            source(egresses=[{"name": "a", "maxConcurrent": 10}, {"name": "b"}]),
            NO_ROOM,
            id="nothing is left for an egress",
        ),
        pytest.param(
            source(coolDownSeconds={"first": 9, "longest": 8}),
            "coolDownSeconds.longest must not be below coolDownSeconds.first",
            id="cool-down",
        ),
        pytest.param(
            source(coolDownSeconds={"first": 7200}),
            "coolDownSeconds.longest must not be below coolDownSeconds.first",
            id="cool-down beyond the default",
        ),
        pytest.param(batch(users={}), ONE_OF, id="no users"),
        pytest.param(batch(users={"all": True, "ids": [1]}), ONE_OF, id="users twice"),
        pytest.param(
            batch(users={"idModulo": {"divisor": 4, "remainder": 4}}),
            "idModulo.remainder must be below idModulo.divisor",
            id="remainder",
        ),
        pytest.param(batch() | named("a" * 46), "must be at most 45 lower-case letters", id="long batch"),
        pytest.param(batch() | named("a.b"), "must be at most 45 lower-case letters", id="dot in a batch"),
        pytest.param(source() | named("a" * 64), "must be at most 63 lower-case letters", id="long source"),
        pytest.param(source() | named("a.b"), "must be at most 63 lower-case letters", id="dot in a source"),
    ],
)
def test_a_rule_refuses(kubectl: Kubectl, one: Document, words: str) -> None:
    assert words in refusal(kubectl, one)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        pytest.param({"sources": ["a"]}, {"sources": ["b"]}, "sources is immutable", id="another source"),
        pytest.param(
            {"sources": ["a"]}, {"sources": ["a", "b"]}, "sources is immutable", id="one more source"
        ),
        pytest.param(
            {"users": {"ids": [1]}}, {"users": {"ids": [1, 2]}}, "users is immutable", id="one more user"
        ),
        pytest.param(
            {"users": {"ids": [1]}}, {"users": {"tiers": ["LOW"]}}, "users is immutable", id="other users"
        ),
        pytest.param({"users": {"ids": [1]}}, {}, "users is immutable", id="users removed"),
        pytest.param({}, {"users": {"ids": [1]}}, "users is immutable", id="users added to the default"),
    ],
)
def test_a_batch_keeps_its_sources_and_users(
    namespace: Kubectl, before: Document, after: Document, words: str
) -> None:
    namespace.apply(batch(**before))

    with pytest.raises(KubectlFailed, match=words):
        namespace.apply(batch(**after))


def test_removing_users_and_adding_others_does_not_change_them(namespace: Kubectl) -> None:
    chosen = {"ids": [1]}
    namespace.apply(batch(users=chosen))
    for users in ({}, {"users": {"ids": [2]}}):
        with pytest.raises(KubectlFailed, match="users is immutable"):
            namespace.apply(batch(**users))

    assert namespace.get("cb", NAME)["spec"]["users"] == chosen


def test_the_sources_of_a_batch_cannot_be_removed(namespace: Kubectl) -> None:
    namespace.apply(batch())

    with pytest.raises(KubectlFailed, match=r"spec\.sources: Required value"):
        namespace.patch("cb", NAME, {"spec": {"sources": None}})


def test_the_order_of_sources_and_users_is_no_part_of_them(namespace: Kubectl) -> None:
    namespace.apply(batch(sources=["a", "b"], users={"ids": [1, 2]}))
    namespace.apply(batch(sources=["b", "a"], users={"ids": [2, 1]}))


def test_a_batch_of_the_most_users_may_be_changed(namespace: Kubectl) -> None:
    """To compare them costs no more than Kubernetes allows a rule."""
    users = {"ids": list(range(1, 1001))}
    namespace.apply(batch(users=users))
    namespace.apply(batch(users=users, workers=7))


def test_all_else_of_a_batch_may_be_changed(namespace: Kubectl) -> None:
    namespace.apply(batch())
    changed = {
        "workers": 7,
        "maxConcurrent": 30,
        "suspend": True,
        "stop": "Drain",
        "activeDeadlineSeconds": 60,
        "startDeadlineSeconds": 60,
        "ttlSecondsAfterFinished": 0,
        "template": {"spec": {"nodeSelector": {"a": "b"}}},
    }
    namespace.apply(batch(**changed))

    assert namespace.get("cb", NAME)["spec"] == {"sources": ["a"], "users": {"all": True}} | changed


# What it is besides: scaled, listed, given a status.


def test_a_batch_is_scaled_by_its_workers(namespace: Kubectl) -> None:
    namespace.apply(batch())
    namespace("scale", f"cb/{NAME}", "--replicas=5")

    assert namespace.get("cb", NAME)["spec"]["workers"] == 5


@pytest.mark.parametrize(
    ("workers", "words"),
    [(0, "should be greater than or equal to 1"), (1001, "should be less than or equal to 1000")],
)
def test_a_batch_is_not_scaled_out_of_bounds(namespace: Kubectl, workers: int, words: str) -> None:
    namespace.apply(batch())

    with pytest.raises(KubectlFailed, match=f"spec.workers in body {words}"):
        namespace("scale", f"cb/{NAME}", f"--replicas={workers}")


READY = Condition(type="Available", status="True", reason="Ready", message="", last_transition_time=NOON)
THROTTLED = Condition(type="Throttled", status="True", message="until noon", observed_generation=1)
DEGRADED = Condition(type="Degraded", status="True", reason="NoCapacity", message="no node is free")
SOURCE_STATUS = CrawlSourceStatus(
    observed_generation=1,
    conditions=(READY, THROTTLED),
    permits=Permits(total=30, held=12, cooling=5),
    throttled=3,
    blocked=1,
)
BATCH_STATUS = CrawlBatchStatus(
    observed_generation=1,
    phase="Running",
    conditions=(DEGRADED,),
    total=100,
    done=60,
    failed=2,
    cancelled=1,
    sources=(
        SourceCounts(
            name="a",
            total=100,
            ready=30,
            leased=7,
            ok=58,
            retrying=2,
            dead=2,
            cancelled=1,
            failures={"auth": 2},
        ),
    ),
    workers=4,
    ready_workers=3,
    selector="crawlfleet.dev/batch=nightly",
    eta="3m20s",
    round=1,
    revision=2,
    job_name="nightly-1-2",
    start_time=NOON,
    completion_time=NOON,
)


def give_status(kubectl: Kubectl, kind: str, status: CrawlBatchStatus | CrawlSourceStatus) -> None:
    content = status.model_dump(by_alias=True, exclude_none=True)
    kubectl.patch(kind, NAME, {"status": content}, "--subresource=status")


def test_a_batch_has_the_status_of_the_model(namespace: Kubectl) -> None:
    namespace.apply(batch())
    give_status(namespace, "cb", BATCH_STATUS)

    stored = namespace.get("cb", NAME)
    assert CrawlBatchStatus.model_validate(stored["status"]) == BATCH_STATUS
    assert stored["metadata"]["generation"] == 1


def test_a_source_has_the_status_of_the_model(namespace: Kubectl) -> None:
    namespace.apply(source())
    give_status(namespace, "csrc", SOURCE_STATUS)

    stored = namespace.get("csrc", NAME)
    assert CrawlSourceStatus.model_validate(stored["status"]) == SOURCE_STATUS
    assert stored["metadata"]["generation"] == 1


@pytest.mark.parametrize("one", [source(), batch()], ids=[*MODELS])
def test_a_status_in_a_document_is_ignored(kubectl: Kubectl, one: Document) -> None:
    assert "status" not in taken(kubectl, one | {"status": {"observedGeneration": 7}})


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"done": "many"}, 'status.done: Invalid value: "string": done in body must be of type integer'),
        (
            {"startTime": "noon"},
            'status.startTime: Invalid value: "noon": startTime in body must be of type date-time',
        ),
        ({"conditions": [{"type": "Complete", "status": "Yes"}]}, 'Unsupported value: "Yes"'),
    ],
    ids=["count", "time", "condition"],
)
def test_a_status_is_typed(namespace: Kubectl, status: Document, words: str) -> None:
    namespace.apply(batch())

    with pytest.raises(KubectlFailed) as refused:
        namespace.patch("cb", NAME, {"status": status}, "--subresource=status")
    assert words in str(refused.value)


def test_an_autoscaler_finds_workers_and_selector(namespace: Kubectl) -> None:
    namespace.apply(batch())
    give_status(namespace, "cb", BATCH_STATUS)

    words = ("get", f"cb/{NAME}", "--subresource=scale", "-o", "yaml")
    scale = yaml.safe_load(namespace(*words))
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 4, "selector": "crawlfleet.dev/batch=nightly"}


def listed(kubectl: Kubectl, *words: str) -> dict[str, str]:
    """The one line, by the heads of its columns."""
    heads, line = kubectl("get", *words).splitlines()
    starts = [heads.index(head) for head in heads.split()]
    ends = [*starts[1:], None]
    return {
        heads[start:end].strip(): line[start:end].strip() for start, end in zip(starts, ends, strict=True)
    }


def test_batches_are_listed_with_their_progress(namespace: Kubectl) -> None:
    namespace.apply(batch())
    give_status(namespace, "cb", BATCH_STATUS)

    shown = listed(namespace, "cb")
    assert shown.pop("AGE")
    assert shown == {
        "NAME": NAME,
        "PHASE": "Running",
        "WORKERS": "3",
        "DONE": "60",
        "FAILED": "2",
        "TOTAL": "100",
        "ETA": "3m20s",
    }
    wide = listed(namespace, "cb", "-o", "wide")
    assert (wide["REVISION"], wide["JOB"], wide["MESSAGE"]) == ("2", "nightly-1-2", "no node is free")


def test_sources_are_listed_with_their_permits(namespace: Kubectl) -> None:
    namespace.apply(source())
    give_status(namespace, "csrc", SOURCE_STATUS)

    shown = listed(namespace, "csrc")
    assert shown.pop("AGE")
    assert shown == {
        "NAME": NAME,
        "ADAPTER": "noop",
        "AVAILABLE": "True",
        "HELD": "12",
        "PERMITS": "30",
        "COOLING": "5",
        "THROTTLED": "until noon",
    }


def test_the_category_lists_both_kinds(namespace: Kubectl) -> None:
    namespace.apply(source(), batch())

    assert namespace("get", "crawlfleet", "-o", "name").split() == [
        f"crawlbatch.crawlfleet.dev/{NAME}",
        f"crawlsource.crawlfleet.dev/{NAME}",
    ]
