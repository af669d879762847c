"""Manifests: what is read, what is refused and in which words, and that no message shows a secret."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from crawlfleet.documents import load
from crawlfleet.errors import BadInput
from crawlfleet.manifests import (
    CrawlSource,
    CrawlSourceSpec,
    Manifests,
    Secret,
    Users,
    egress_caps,
    exit_identity,
    proxy_url,
)

SAMPLE = Path(__file__).parents[2] / "k8s" / "samples" / "local-batch.yaml"
PLANTED = "hunter2-planted"
PROXY = {"url": "http://proxy.example.com:3128", "username": "crawler", "password": PLANTED}


def source(name: str = "shop", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "crawlfleet.dev/v1alpha1",
        "kind": "CrawlSource",
        "metadata": {"name": name},
        "spec": {"adapter": "noop", "maxConcurrent": 10} | spec,
    }


def batch(name: str = "nightly", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "crawlfleet.dev/v1alpha1",
        "kind": "CrawlBatch",
        "metadata": {"name": name},
        "spec": {"sources": ["shop"]} | spec,
    }


def secret(**fields: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "proxy"}} | fields


def via_proxy(name: str = "proxied") -> dict[str, Any]:
    return {"name": name, "proxySecretRef": {"name": "proxy"}}


def spec_of(**spec: Any) -> CrawlSourceSpec:
    return CrawlSource.model_validate(source(**spec)).spec


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fleet.yaml"


def load_documents(file: Path, *documents: Any) -> Manifests:
    file.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    return load([file])


def refusal(file: Path, *documents: Any) -> str:
    """The message, without the part that names file and document, if it is one line about the first document."""
    with pytest.raises(BadInput) as refused:
        load_documents(file, *documents)
    assert PLANTED not in str(refused.value)
    return str(refused.value).removeprefix(f"{file}, document 1: ")


def refusal_of_text(file: Path, content: str | bytes) -> str:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput) as refused:
        load([file])
    assert PLANTED not in str(refused.value)
    return str(refused.value).removeprefix(str(file))


# What is read.


def test_the_sample_loads() -> None:
    manifests = load([SAMPLE])
    spec = manifests.sources["cafe24"].spec
    assert (spec.adapter, spec.base_url) == ("cafe24", "http://127.0.0.1:8024/{mall_id}")
    assert (spec.max_concurrent, spec.requests_per_second, spec.options) == (20, 100.0, {"days": 7})
    spec = manifests.sources["ably"].spec
    assert (spec.adapter, spec.base_url) == ("ably", "http://127.0.0.1:8025")
    assert (spec.max_concurrent, spec.requests_per_second, spec.options) == (10, 50.0, {"days": 7})
    (local,) = manifests.batches
    assert (local.metadata.name, local.spec.sources) == ("local-batch", ("cafe24", "ably"))
    assert (local.spec.workers, local.spec.max_concurrent, local.spec.users.all) == (2, 20, True)


def test_a_source_has_the_documented_defaults() -> None:
    spec = spec_of()
    assert [(egress.name, egress.proxy_secret_ref) for egress in spec.egresses] == [("direct", None)]
    assert (spec.job_timeout_seconds, spec.requests_per_second, spec.base_url) == (600, None, None)
    assert (spec.cool_down_seconds.first, spec.cool_down_seconds.longest) == (60, 3600)
    assert (spec.budgets.retry, spec.budgets.crashed, spec.budgets.throttled_seconds) == (4, 5, 3600)


def test_a_batch_has_the_documented_defaults(file: Path) -> None:
    spec = load_documents(file, source(), batch()).batches[0].spec
    assert (spec.workers, spec.max_concurrent, spec.suspend, spec.stop) == (2, 10, False, "None")
    assert spec.users == Users(all=True)
    assert spec.ttl_seconds_after_finished is None


@pytest.mark.parametrize(
    "users",
    [
        {"all": True},
        {"tiers": ["HIGH", "LOW"]},
        {"ids": [1, 2**63 - 1]},
        {"ids": list(range(1, 1001))},
        {"idModulo": {"divisor": 4, "remainder": 3}},
    ],
    ids=["all", "tiers", "ids", "1000 ids", "modulo"],
)
def test_users_can_be_selected_in_four_ways(file: Path, users: dict[str, Any]) -> None:
    selected = load_documents(file, source(), batch(users=users)).batches[0].spec.users
    assert selected.model_dump(mode="json", by_alias=True, exclude_none=True) == users


def test_labels_annotations_and_a_namespace_are_allowed(file: Path) -> None:
    document = source()
    document["metadata"] |= {
        "namespace": "crawl",
        "labels": {"a": "b"},
        "annotations": {"example.com/c": "d"},
    }
    assert load_documents(file, document).sources["shop"].metadata.namespace == "crawl"


def test_a_template_is_kept_as_it_is(file: Path) -> None:
    spec = {
        "containers": [{"name": "crawler", "resources": {"limits": {"memory": "2Gi", "cpu": 1.5}}}],
        "tolerations": [{"operator": "Exists"}],
    }
    template = {"metadata": {"labels": {"team": "data"}}, "spec": spec}
    read = load_documents(file, source(), batch(template=template)).batches[0].spec.template
    assert read.model_dump(exclude_none=True) == template


def test_documents_of_several_files_refer_to_each_other(tmp_path: Path) -> None:
    first, second = tmp_path / "batch.yaml", tmp_path / "source.yaml"
    first.write_text(yaml.safe_dump(batch()), encoding="utf-8")
    second.write_text(yaml.safe_dump(source()), encoding="utf-8")
    assert load([first, second]).batches[0].spec.sources == ("shop",)


def test_empty_documents_are_skipped_but_counted(file: Path) -> None:
    file.write_text(f"---\n---\n{yaml.safe_dump(source(color='red'))}", encoding="utf-8")
    with pytest.raises(BadInput, match=r"document 2: CrawlSource/shop: spec\.color: unknown field"):
        load([file])


def test_a_byte_order_mark_is_skipped(file: Path) -> None:
    file.write_text("\ufeff" + yaml.safe_dump(source()), encoding="utf-8")
    assert "shop" in load([file]).sources


def test_a_date_in_options_stays_text(file: Path) -> None:
    """As in the cluster, where YAML becomes JSON."""
    file.write_text(yaml.safe_dump(source()) + "  options: {since: 2026-11-20}\n", encoding="utf-8")
    assert load([file]).sources["shop"].spec.options == {"since": "2026-11-20"}


def test_a_merged_key_may_be_overridden(file: Path) -> None:
    file.write_text(
        yaml.safe_dump(source()) + "  options: {a: &a {x: 1}, b: {<<: *a, x: 2}}\n", encoding="utf-8"
    )
    assert load([file]).sources["shop"].spec.options["b"] == {"x": 2}


def test_a_model_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        spec_of().max_concurrent = 5  # type: ignore[misc]  # what this test is about


# What is refused.

WHOLE = "expected a whole number from"
NAME = "expected a name of at most 63 lower-case letters, digits and inner hyphens"


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"maxConcurrent": "ten"}, f"maxConcurrent: {WHOLE} 0 to 1000, not 'ten'"),
        ({"maxConcurrent": "10"}, f"maxConcurrent: {WHOLE} 0 to 1000, not '10'"),
        ({"maxConcurrent": 10.0}, f"maxConcurrent: {WHOLE} 0 to 1000, not 10.0"),
        ({"maxConcurrent": True}, f"maxConcurrent: {WHOLE} 0 to 1000, not true"),
        ({"maxConcurrent": None}, f"maxConcurrent: {WHOLE} 0 to 1000, not null"),
        ({"maxConcurrent": -1}, f"maxConcurrent: {WHOLE} 0 to 1000, not -1"),
        ({"maxConcurrent": 1001}, f"maxConcurrent: {WHOLE} 0 to 1000, not 1001"),
        ({"requestsPerSecond": 0}, "requestsPerSecond: expected a number from 0.001 to 1000000, not 0"),
        ({"requestsPerSecond": True}, "requestsPerSecond: expected a number from 0.001 to 1000000, not true"),
        ({"adapter": ""}, "adapter: expected text, not ''"),
        ({"jobTimeoutSeconds": 0}, f"jobTimeoutSeconds: {WHOLE} 1 to 86400, not 0"),
        (
            {"coolDownSeconds": {"first": 9, "longest": 8}},
            "coolDownSeconds: longest (8) must not be below first (9)",
        ),
        ({"budgets": {"retry": 101}}, f"budgets.retry: {WHOLE} 0 to 100, not 101"),
        ({"options": [1]}, "options: expected a mapping, not a list"),
        ({"egresses": []}, "egresses: expected at least one entry"),
        ({"egresses": {"name": "a"}}, "egresses: expected a list, not a mapping"),
        ({"egresses": [{"name": "a"}, {}]}, "egresses[1].name: is missing"),
        ({"egresses": [{"name": "Exit 1"}]}, f"egresses[0].name: {NAME}, not this text"),
        ({"egresses": [{"name": "a"}, {"name": "a"}]}, "egresses: names a twice"),
        (
            {"egresses": [{"name": "a", "maxConcurrent": 0}]},
            f"egresses[0].maxConcurrent: {WHOLE} 1 to 1000, not 0",
        ),
        (
            {"egresses": [{"name": "a", "maxConcurrent": 9}, {"name": "b", "maxConcurrent": 2}]},
            "egresses: their maxConcurrent sum to 11, more than the source's 10",
        ),
        (
            {"egresses": [{"name": "a", "maxConcurrent": 10}, {"name": "b"}]},
            "egresses: 0 of the source's maxConcurrent 10 is left for b; each egress needs at least 1",
        ),
    ],
)
def test_a_bad_source_is_refused(file: Path, spec: dict[str, Any], problem: str) -> None:
    assert refusal(file, source(**spec)) == f"CrawlSource/shop: spec.{problem}"


@pytest.mark.parametrize(
    "url",
    [
        "shop.example.com",
        "ftp://shop.example.com",
        "https:///path",
        "https://shop.example.com:99999",
        "https://shop.example.com/a b",
        "https://[::1",
        "https://{mall}.example.com",
        "https://{mall_id.example.com",
        "https://shop.example.com/?a=b",
        "https://shop.example.com/?",
        "https://shop.example.com/" + "a" * 1000,
        "https://shop.example.com/#a",
        f"https://user:{PLANTED}@shop.example.com",
    ],
)
def test_a_bad_base_url_is_refused_without_being_shown(file: Path, url: str) -> None:
    message = refusal(file, source(baseURL=url))
    assert message.startswith("CrawlSource/shop: spec.baseURL: ")
    assert url not in message


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"sources": []}, "sources: expected at least one entry"),
        ({"sources": "shop"}, "sources: expected a list, not 'shop'"),
        ({"sources": ["shop", "shop"]}, "sources: names shop twice"),
        (
            {"sources": [f"shop-{number}" for number in range(21)]},
            "sources: expected at most 20 entries, not 21",
        ),
        ({"workers": 0}, f"workers: {WHOLE} 1 to 1000, not 0"),
        ({"maxConcurrent": 1001}, f"maxConcurrent: {WHOLE} 1 to 1000, not 1001"),
        ({"suspend": "yes"}, "suspend: expected true or false, not 'yes'"),
        ({"stop": "drain"}, "stop: expected 'None', 'Drain' or 'Cancel', not 'drain'"),
        ({"activeDeadlineSeconds": 0}, f"activeDeadlineSeconds: {WHOLE} 1 to 2147483647, not 0"),
        ({"ttlSecondsAfterFinished": -1}, f"ttlSecondsAfterFinished: {WHOLE} 0 to 2147483647, not -1"),
        ({"template": "big"}, "template: expected a mapping, not this text"),
        ({"template": {"resources": {}}}, "template.resources: unknown field; known: metadata, spec"),
        ({"users": {}}, "users: expected exactly one of all, tiers, ids, idModulo"),
        ({"users": {"tiers": None}}, "users: expected exactly one of all, tiers, ids, idModulo"),
        ({"users": {"all": True, "ids": [1]}}, "users: expected exactly one of all, tiers, ids, idModulo"),
        ({"users": {"all": False}}, "users.all: expected true, not false"),
        ({"users": {"all": 1}}, "users.all: expected true, not 1"),
        ({"users": {"tiers": []}}, "users.tiers: expected at least one entry"),
        ({"users": {"tiers": ["high"]}}, "users.tiers[0]: expected 'HIGH', 'MEDIUM' or 'LOW', not 'high'"),
        ({"users": {"tiers": ["LOW", "LOW"]}}, "users.tiers: names LOW twice"),
        ({"users": {"ids": [9, 7, 9, 7]}}, "users.ids: names 7, 9 twice"),
        ({"users": {"ids": [7, 0]}}, f"users.ids[1]: {WHOLE} 1 to 9223372036854775807, not 0"),
        ({"users": {"ids": list(range(1, 1002))}}, "users.ids: expected at most 1000 entries, not 1001"),
        (
            {"users": {"idModulo": {"divisor": 4, "remainder": 4}}},
            "users.idModulo: remainder (4) must be below divisor (4)",
        ),
        (
            {"users": {"idModulo": {"divisor": 0, "remainder": 0}}},
            f"users.idModulo.divisor: {WHOLE} 1 to 2147483647, not 0",
        ),
    ],
)
def test_a_bad_batch_is_refused(file: Path, spec: dict[str, Any], problem: str) -> None:
    assert refusal(file, batch(**spec)) == f"CrawlBatch/nightly: spec.{problem}"


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"maxConcurent": 1}, "spec.maxConcurent: unknown field; did you mean maxConcurrent?"),
        ({"base_url": "x"}, "spec.base_url: unknown field; did you mean baseURL?"),
        ({"budgets": {"retries": 1}}, "spec.budgets.retries: unknown field; did you mean retry?"),
        (
            {"egresses": [{"name": "a", "proxySecretRef": {"names": "b", "name": "b"}}]},
            "spec.egresses[0].proxySecretRef.names: unknown field; did you mean name?",
        ),
        (
            {"coolDownSeconds": {"zzz": 1}},
            "spec.coolDownSeconds.zzz: unknown field; known: first, longest",
        ),
    ],
)
def test_an_unknown_field_is_told_the_closest_known_one(
    file: Path, spec: dict[str, Any], problem: str
) -> None:
    assert refusal(file, source(**spec)) == f"CrawlSource/shop: {problem}"


@pytest.mark.parametrize("name", ["", "Shop", "-shop", "shop-", "shop.example", "shop\n", "a" * 64, 7])
def test_a_name_is_a_dns_label(file: Path, name: Any) -> None:
    assert f": metadata.name: {NAME}" in refusal(file, source(name))


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        (["a"], "expected a mapping with apiVersion, kind and metadata, not a list"),
        ("text", "expected a mapping with apiVersion, kind and metadata, not 'text'"),
        ({"a": 1}, "kind: expected CrawlSource, CrawlBatch or Secret, but there is no kind"),
        ({"kind": "CronJob"}, "kind: expected CrawlSource, CrawlBatch or Secret, not 'CronJob'"),
        ({"kind": ["Secret"]}, "kind: expected CrawlSource, CrawlBatch or Secret, not a list"),
        (
            source() | {"apiVersion": "crawlfleet.dev/v1"},
            "CrawlSource/shop: apiVersion: expected 'crawlfleet.dev/v1alpha1', not 'crawlfleet.dev/v1'",
        ),
        (source() | {"spec": None}, "CrawlSource/shop: spec: expected a mapping, not null"),
        (source() | {"metadata": None}, "CrawlSource: metadata: expected a mapping, not null"),
    ],
)
def test_a_document_of_another_sort_is_refused(file: Path, document: Any, problem: str) -> None:
    assert refusal(file, document) == problem


def test_every_problem_has_a_line_of_its_own(file: Path) -> None:
    lines = refusal(file, source(maxConcurrent="ten", color="red"), batch(workers=0)).splitlines()
    assert len(lines) == 3
    assert lines[2] == f"{file}, document 2: CrawlBatch/nightly: spec.workers: {WHOLE} 1 to 1000, not 0"


def test_a_document_that_stands_twice_is_refused_with_both_places(file: Path) -> None:
    assert refusal(file, source(), batch(), source()) == (
        f"{file}, document 3: CrawlSource/shop: stands already in {file}, document 1"
    )


def test_a_source_and_a_batch_may_have_the_same_name(file: Path) -> None:
    assert len(load_documents(file, source("shop"), batch("shop")).batches) == 1


def test_a_batch_of_an_unknown_source_is_refused(file: Path) -> None:
    assert refusal(file, batch(sources=["shop", "mall"]), source()) == (
        "CrawlBatch/nightly: spec.sources[1]: there is no CrawlSource 'mall' in the files (there are"
        " shop); add its document, even if the source is declared already: the batch takes its settings from there"
    )


def test_two_sources_of_one_exit_are_refused(file: Path) -> None:
    one = source("one", baseURL="https://shop.example.com/a")
    other = source("other", baseURL="https://SHOP.example.com/b")
    assert refusal(file, one, other) == (
        f"{file}, document 2: CrawlSource/other: spec.egresses[0]: is the same exit (shop.example.com via direct) as"
        " egress 'direct' of CrawlSource/one; one exit has one cap: use another proxy"
    )


def test_two_egresses_of_one_exit_are_refused(file: Path) -> None:
    assert "spec.egresses[1]: is the same exit (noop via direct) as egress 'a'" in refusal(
        file, source(egresses=[{"name": "a"}, {"name": "b"}])
    )


def test_a_proxy_whose_secret_is_missing_is_refused(file: Path) -> None:
    assert refusal(file, source(egresses=[via_proxy()])) == (
        "CrawlSource/shop: spec.egresses[0].proxySecretRef: egress 'proxied': there is no Secret/proxy in the given files"
    )


# Files that are no YAML, or none that we take.


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: 1\nb: 'x\n", ", line 3, column 1: found unexpected end of stream"),
        ("a: b: c\n", ", line 1, column 5: mapping values are not allowed here"),
        ("a: 1\na: 2\n", ", line 2, column 1: the key a stands twice, first on line 1"),
        ("x:\n  - {a: 1, a: 2}\n", ", line 2, column 12: the key a stands twice, first on line 2"),
        ("1: a\n", ", line 1, column 1: a key must be text; quote it"),
        ("[a]: b\n", ", line 1, column 1: a key must be text; quote it"),
        (
            f"password: *{PLANTED}\n",
            ", line 1, column 11: found undefined alias ...; does a text need quotes there?",
        ),
        (
            f"password: !{PLANTED} x\n",
            ", line 1, column 11: could not determine a constructor for the tag ...",
        ),
        (
            "a: !!python/name:os.system x\n",
            ", line 1, column 4: could not determine a constructor for the tag ...",
        ),
        ("a: !!binary aGk=\n", ", line 1, column 4: could not determine a constructor for the tag ..."),
        (f"a: !!int {PLANTED}\n", ", line 1, column 4: a value that cannot be read or stored"),
        ("a: .inf\n", ", line 1, column 4: a value that cannot be read or stored"),
        ('a: "\\0"\n', ", line 1, column 4: a value that cannot be read or stored"),
        ('a: "\\ud800"\n', ", line 1, column 4: a value that cannot be read or stored"),
        ("a: 1\nb: \x00\n", ", line 2: a character that YAML does not allow"),
        (b"a: 1\nb: \xff\n", ", line 2: not UTF-8; save the file as UTF-8"),
        ("[" * 5000, ": nested too deeply"),
        ("", " is empty: it holds no document"),
        ("# nothing\n---\n", " is empty: it holds no document"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_place(
    file: Path, content: str | bytes, problem: str
) -> None:
    assert refusal_of_text(file, content).startswith(problem)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml does not exist"):
        load([tmp_path / "nowhere.yaml"])


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a directory; name the files in it"):
        load([tmp_path])


def test_one_bad_file_does_not_hide_the_problems_of_another(file: Path, tmp_path: Path) -> None:
    file.write_text(yaml.safe_dump(source(color="red")), encoding="utf-8")
    with pytest.raises(BadInput, match=r"nowhere\.yaml does not exist\n.*spec\.color: unknown field"):
        load([tmp_path / "nowhere.yaml", file])


# Secrets and proxies.


def test_a_proxy_is_built_from_its_secret_with_quoting(file: Path) -> None:
    values = PROXY | {"username": "user@example.com", "password": "p:/ @%"}
    manifests = load_documents(file, secret(stringData=values), source(egresses=[via_proxy()]))
    (egress,) = manifests.sources["shop"].spec.egresses
    assert proxy_url(manifests, egress) == "http://user%40example.com:p%3A%2F%20%40%25@proxy.example.com:3128"


def test_a_secret_may_be_base64(file: Path) -> None:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in PROXY.items()}
    manifests = load_documents(file, secret(data=data, type="Opaque"))
    assert manifests.secrets["proxy"].text("password") == PLANTED


def test_string_data_wins_over_data(file: Path) -> None:
    manifests = load_documents(file, secret(data={"a": "b2xk"}, stringData={"a": "new"}))
    assert manifests.secrets["proxy"].text("a") == "new"


def test_an_egress_without_a_proxy_goes_out_directly() -> None:
    assert proxy_url(Manifests(), spec_of().egresses[0]) is None


def test_a_proxy_without_authentication_has_an_empty_user(file: Path) -> None:
    values = PROXY | {"username": "", "password": ""}
    manifests = load_documents(file, secret(stringData=values), source(egresses=[via_proxy()]))
    assert proxy_url(manifests, manifests.sources["shop"].spec.egresses[0]) == PROXY["url"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"url": PROXY["url"]}, "missing username, password; a proxy needs url, username and password"),
        ({}, "missing url, username, password"),
        (PROXY | {"url": PLANTED}, "url must be http://HOST:PORT or https://HOST:PORT"),
        (PROXY | {"url": f"socks5://{PLANTED}:1"}, "url must be http://HOST:PORT"),
        (PROXY | {"url": f"http://u:{PLANTED}@proxy.example.com"}, "url must not hold a user"),
        (PROXY | {"url": f"http://proxy.example.com/{PLANTED}"}, "url must be http://HOST:PORT"),
        (PROXY | {"username": ""}, "username is empty, but password is not"),
        (PROXY | {"password": f"{PLANTED}\n"}, "the value of 'password' must be one line of UTF-8 text"),
    ],
)
def test_a_bad_proxy_secret_is_refused_without_its_values(
    file: Path, values: dict[str, str], problem: str
) -> None:
    message = refusal(file, source(egresses=[via_proxy()]), secret(stringData=values))
    assert f"spec.egresses[0].proxySecretRef: Secret/proxy: {problem}" in message


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"stringData": PLANTED}, "stringData: expected a mapping, not this text"),
        ({"stringData": {"a": [PLANTED]}}, "stringData.a: expected text, not a list"),
        ({"stringData": {"a": 20261120}}, "stringData.a: expected text, not a number"),
        ({"data": {"a": f"{PLANTED}!"}}, "data.a: expected base64 text (plain text belongs in stringData)"),
        ({"type": [PLANTED]}, "type: expected text, not a list"),
        ({"stringdata": {"a": PLANTED}}, "stringdata: unknown field; did you mean stringData?"),
        (
            {"metadata": {"name": "proxy", "labels": PLANTED}},
            "metadata.labels: expected a mapping, not this text",
        ),
    ],
)
def test_a_bad_secret_is_refused_without_its_values(file: Path, fields: dict[str, Any], problem: str) -> None:
    message = refusal(file, secret(**fields))
    assert message == f"Secret/proxy: {problem}"
    assert "20261120" not in message


@pytest.mark.parametrize(
    "spec",
    [
        {"baseURL": [PLANTED]},
        {"egresses": [{"name": "a", "proxySecretRef": PLANTED}]},
        {"egresses": [{"name": "a", "proxySecretRef": {"name": f"http://u:{PLANTED}@proxy.example.com"}}]},
        {"options": PLANTED},
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(file: Path, spec: dict[str, Any]) -> None:
    assert ": expected " in refusal(file, source(**spec))


def test_the_repr_hides_the_values_of_secrets(file: Path) -> None:
    encoded = base64.b64encode(PLANTED.encode()).decode()
    manifests = load_documents(file, secret(stringData={"a": PLANTED}, data={"b": encoded}))
    assert "proxy" in repr(manifests)
    assert PLANTED not in repr(manifests)
    assert encoded not in repr(manifests)


def test_the_error_of_a_model_built_without_files_hides_its_input() -> None:
    with pytest.raises(ValueError, match="2 validation errors") as refused:
        Secret.model_validate(secret(stringData={"a": [PLANTED]}, data={"b": f"{PLANTED}!"}))
    assert PLANTED not in str(refused.value)


# What follows from a source.


@pytest.mark.parametrize(
    ("total", "caps", "expected"),
    [
        (10, [None], [10]),
        (10, [None, None, None], [4, 3, 3]),
        (10, [4, None, None], [4, 3, 3]),
        (10, [None, 8, None], [1, 8, 1]),
        (10, [4, 4], [4, 4]),
        (0, [None, 5], [0, 0]),
    ],
)
def test_the_cap_is_shared_among_the_egresses(
    total: int, caps: list[int | None], expected: list[int]
) -> None:
    egresses = [{"name": f"e{no}"} | ({"maxConcurrent": cap} if cap else {}) for no, cap in enumerate(caps)]
    spec = spec_of(maxConcurrent=total, egresses=egresses)
    assert list(egress_caps(spec).values()) == expected


@pytest.mark.parametrize(
    ("base_url", "proxy", "identity"),
    [
        (None, None, "noop via direct"),
        ("https://{mall_id}.Example.com/api", None, "{mall_id}.example.com via direct"),
        ("HTTPS://shop.example.com.:443", None, "shop.example.com via direct"),
        ("http://127.0.0.1:8024/{mall_id}", None, "127.0.0.1:8024 via direct"),
        ("http://[::1]:8024", None, "[::1]:8024 via direct"),
        (None, f"http://user:{PLANTED}@Proxy.example.com:3128", "noop via proxy.example.com:3128"),
        (None, "https://proxy.example.com", "noop via proxy.example.com:443"),
    ],
)
def test_an_exit_is_the_platform_seen_through_one_ip(
    base_url: str | None, proxy: str | None, identity: str
) -> None:
    assert exit_identity("noop", base_url, proxy) == identity
