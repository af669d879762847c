"""The CustomResourceDefinitions: structural, as Kubernetes wants them, and in step with the models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from schemas import document_schema, values

from crawlfleet.crds import Schema, definitions, files
from crawlfleet.documents import load
from crawlfleet.manifests import CrawlBatchSpec, CrawlSourceSpec, Model
from crawlfleet.statuses import CrawlBatchStatus, CrawlSourceStatus

K8S = Path(__file__).parents[2] / "k8s"
ALLOWED = {
    "type", "description", "format", "enum", "default", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "required", "properties", "additionalProperties", "items",
    "x-kubernetes-preserve-unknown-fields", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
}  # fmt: skip


EVERY_VALUE = [
    pytest.param(one, id=path)
    for crd in definitions()
    for path, one in values(crd["spec"]["names"]["kind"], document_schema(crd))
]


@pytest.mark.parametrize("one", EVERY_VALUE)
def test_every_value_is_structural(one: Schema) -> None:
    """Typed, without references, alternatives or keywords that Kubernetes does not know."""
    assert set(one) <= ALLOWED
    assert one["type"] in ("object", "array", "string", "integer", "number", "boolean")
    assert (one["type"] == "array") == ("items" in one)
    inside = {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"} & set(one)
    is_metadata = one == {"type": "object"}
    assert (one["type"] == "object") == (len(inside) == 1 or is_metadata)


@pytest.mark.parametrize("one", EVERY_VALUE)
def test_every_list_has_a_most_and_refuses_the_same_twice(one: Schema) -> None:
    """Without a most Kubernetes cannot tell what a rule costs."""
    if one["type"] == "array":
        assert one["maxItems"] >= one["minItems"]
        assert one["x-kubernetes-list-type"] in ("set", "map")


@pytest.mark.parametrize("one", EVERY_VALUE)
def test_every_rule_has_a_sentence(one: Schema) -> None:
    for rule in one.get("x-kubernetes-validations", []):
        assert rule["message"]


@pytest.mark.parametrize("one", EVERY_VALUE)
def test_what_is_required_is_there_and_has_no_default(one: Schema) -> None:
    for name in one.get("required", []):
        assert "default" not in one["properties"][name]


@pytest.mark.parametrize(
    ("kind", "name", "short", "spec", "status"),
    [
        ("CrawlSource", "crawlsources.crawlfleet.dev", "csrc", CrawlSourceSpec, CrawlSourceStatus),
        ("CrawlBatch", "crawlbatches.crawlfleet.dev", "cb", CrawlBatchSpec, CrawlBatchStatus),
    ],
)
def test_a_definition_names_its_resource_and_every_field(
    kind: str, name: str, short: str, spec: type[Model], status: type[Model]
) -> None:
    crd = next(crd for crd in definitions() if crd["spec"]["names"]["kind"] == kind)

    assert crd["metadata"]["name"] == name
    assert (crd["spec"]["group"], crd["spec"]["scope"]) == ("crawlfleet.dev", "Namespaced")
    assert crd["spec"]["names"]["shortNames"] == [short]
    assert crd["spec"]["versions"][0]["name"] == "v1alpha1"
    for field, model in (("spec", spec), ("status", status)):
        fields = {info.alias for info in model.model_fields.values()}
        assert set(document_schema(crd)["properties"][field]["properties"]) == fields


@pytest.mark.parametrize("crd", definitions(), ids=lambda crd: crd["metadata"]["name"])
def test_columns_and_scale_lead_to_fields_that_are_there(crd: Schema) -> None:
    """A path that leads nowhere is no error for Kubernetes: the column stays empty."""
    known = {path.replace("[]", "") for path, _ in values("", document_schema(crd))} | {
        ".metadata.creationTimestamp"
    }
    (version,) = crd["spec"]["versions"]
    columns = [column["jsonPath"] for column in version["additionalPrinterColumns"]]
    paths = [re.sub(r"\[.*?\]", "", path) for path in columns]

    assert set(paths) | set(version["subresources"].get("scale", {}).values()) <= known


@pytest.mark.parametrize("model", [CrawlSourceStatus, CrawlBatchStatus])
def test_a_status_may_be_empty(model: type[Model]) -> None:
    assert model.model_validate({}).model_dump(exclude_none=True) == {}


def test_bounds_patterns_and_defaults_come_from_the_models() -> None:
    source, batch = (document_schema(crd)["properties"]["spec"]["properties"] for crd in definitions())

    assert source["maxConcurrent"] == {"type": "integer", "format": "int64", "minimum": 0, "maximum": 1000}
    assert source["egresses"]["default"] == [{"name": "direct"}]
    assert source["budgets"]["properties"]["retry"]["default"] == 4
    assert batch["users"]["default"] == {"all": True}
    assert batch["users"]["properties"]["all"]["enum"] == [True]
    assert batch["users"]["properties"]["ids"]["maxItems"] == 1000
    assert batch["stop"] == {"type": "string", "enum": ["None", "Drain", "Cancel"], "default": "None"}


def test_defaults_are_what_a_manifest_would_hold() -> None:
    """Kubernetes writes them into the object: the models must take them back."""
    source, batch = (document_schema(crd)["properties"]["spec"]["properties"] for crd in definitions())
    written = {name: one["default"] for name, one in source.items() if "default" in one}

    spec = CrawlSourceSpec.model_validate({"adapter": "noop", "maxConcurrent": 1, **written})

    assert spec == CrawlSourceSpec.model_validate({"adapter": "noop", "maxConcurrent": 1})
    written = {name: one["default"] for name, one in batch.items() if "default" in one}
    assert CrawlBatchSpec.model_validate({"sources": ["a"], **written}) == CrawlBatchSpec.model_validate(
        {"sources": ["a"]}
    )


def test_the_files_hold_the_definitions_without_anchors() -> None:
    text = "".join(files().values())

    assert list(yaml.safe_load_all(text)) == definitions()
    assert "&id" not in text


def test_the_files_are_those_of_k8s_crds() -> None:
    """`make crds` writes them."""
    assert {file.name: file.read_text(encoding="utf-8") for file in (K8S / "crds").iterdir()} == files()


# The samples.


@pytest.mark.parametrize(
    "names",
    [["local-batch.yaml"], ["sources.yaml"], ["sources.yaml", "batch.yaml"], ["every-field.yaml"]],
    ids=" and ".join,
)
def test_a_sample_loads(names: list[str]) -> None:
    assert load([K8S / "samples" / name for name in names]).sources


def fields_set(path: str, content: Any) -> Iterator[str]:
    """The path of each field in a document, as `values` writes it."""
    yield path
    if isinstance(content, dict):
        for name, inner in content.items():
            yield from fields_set(f"{path}.{name}", inner)
    if isinstance(content, list):
        for inner in content:
            yield from fields_set(f"{path}[]", inner)


@pytest.mark.parametrize("crd", definitions(), ids=lambda crd: crd["metadata"]["name"])
def test_a_sample_sets_every_field(crd: Schema) -> None:
    documents = yaml.safe_load_all((K8S / "samples" / "every-field.yaml").read_text(encoding="utf-8"))
    own = [document["spec"] for document in documents if document["kind"] == crd["spec"]["names"]["kind"]]
    set_there = {path for spec in own for path in fields_set("spec", spec)}
    known = {path for path, _ in values("spec", document_schema(crd)["properties"]["spec"])}

    assert {path for path in known - set_there if not path.endswith(".*")} == set()
