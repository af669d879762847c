"""The CustomResourceDefinitions: structural, as Kubernetes wants them, and in step with the models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from crawlfleet.crds import as_yaml, definitions
from crawlfleet.manifests import CrawlBatchSpec, CrawlSourceSpec, Model

Schema = dict[str, Any]
ALLOWED = {
    "type", "description", "format", "enum", "default", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "minItems", "maxItems", "required", "properties", "items", "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip


def schema(crd: Schema) -> Schema:
    (version,) = crd["spec"]["versions"]
    found: Schema = version["schema"]["openAPIV3Schema"]
    return found


def values(path: str, one: Schema) -> Iterator[tuple[str, Schema]]:
    """Every schema in this one, with its path."""
    yield path, one
    for name, inner in one.get("properties", {}).items():
        yield from values(f"{path}.{name}", inner)
    if "items" in one:
        yield from values(f"{path}[]", one["items"])


EVERY_VALUE = [
    pytest.param(one, id=path)
    for crd in definitions()
    for path, one in values(crd["spec"]["names"]["kind"], schema(crd))
]


@pytest.mark.parametrize("one", EVERY_VALUE)
def test_every_value_is_structural(one: Schema) -> None:
    """Typed, without references, alternatives or keywords that Kubernetes does not know."""
    assert set(one) <= ALLOWED
    assert one["type"] in ("object", "array", "string", "integer", "number", "boolean")
    assert (one["type"] == "array") == ("items" in one)
    is_open = one.get("x-kubernetes-preserve-unknown-fields", False)
    is_metadata = one == {"type": "object"}
    assert (one["type"] == "object") == ("properties" in one or is_open or is_metadata)


@pytest.mark.parametrize("one", EVERY_VALUE)
def test_what_is_required_is_there_and_has_no_default(one: Schema) -> None:
    for name in one.get("required", []):
        assert "default" not in one["properties"][name]


@pytest.mark.parametrize(
    ("kind", "name", "short", "spec"),
    [
        ("CrawlSource", "crawlsources.crawlfleet.dev", "csrc", CrawlSourceSpec),
        ("CrawlBatch", "crawlbatches.crawlfleet.dev", "cb", CrawlBatchSpec),
    ],
)
def test_a_definition_names_its_resource_and_every_field(
    kind: str, name: str, short: str, spec: type[Model]
) -> None:
    crd = next(crd for crd in definitions() if crd["spec"]["names"]["kind"] == kind)

    assert crd["metadata"]["name"] == name
    assert (crd["spec"]["group"], crd["spec"]["scope"]) == ("crawlfleet.dev", "Namespaced")
    assert crd["spec"]["names"]["shortNames"] == [short]
    assert crd["spec"]["versions"][0]["name"] == "v1alpha1"
    assert crd["spec"]["versions"][0]["subresources"] == {"status": {}}
    fields = {info.alias for info in spec.model_fields.values()}
    assert set(schema(crd)["properties"]["spec"]["properties"]) == fields


def test_bounds_patterns_and_defaults_come_from_the_models() -> None:
    source, batch = (schema(crd)["properties"]["spec"]["properties"] for crd in definitions())

    assert source["maxConcurrent"] == {"type": "integer", "format": "int64", "minimum": 0, "maximum": 1000}
    assert source["egresses"]["default"] == [{"name": "direct"}]
    assert source["budgets"]["properties"]["retry"]["default"] == 4
    assert batch["users"]["default"] == {"all": True}
    assert batch["users"]["properties"]["all"]["enum"] == [True]
    assert batch["users"]["properties"]["ids"]["maxItems"] == 1000
    assert batch["stop"] == {"type": "string", "enum": ["None", "Drain", "Cancel"], "default": "None"}


def test_defaults_are_what_a_manifest_would_hold() -> None:
    """Kubernetes writes them into the object: the models must take them back."""
    source, batch = (schema(crd)["properties"]["spec"]["properties"] for crd in definitions())
    written = {name: one["default"] for name, one in source.items() if "default" in one}

    spec = CrawlSourceSpec.model_validate({"adapter": "noop", "maxConcurrent": 1, **written})

    assert spec == CrawlSourceSpec.model_validate({"adapter": "noop", "maxConcurrent": 1})
    written = {name: one["default"] for name, one in batch.items() if "default" in one}
    assert CrawlBatchSpec.model_validate({"sources": ["a"], **written}) == CrawlBatchSpec.model_validate(
        {"sources": ["a"]}
    )


def test_the_text_holds_the_definitions_without_anchors() -> None:
    text = as_yaml()

    assert list(yaml.safe_load_all(text)) == definitions()
    assert "&id" not in text
