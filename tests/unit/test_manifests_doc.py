"""docs/manifests.md names every field of the models, with its default and its bounds; its examples load."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from crawlfleet.crds import Schema, definitions, structural_schema
from crawlfleet.documents import load
from crawlfleet.manifests import CrawlBatch, CrawlSource, Model, Secret, proxy_url

DOC = (Path(__file__).parents[2] / "docs" / "manifests.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)$(.*?)(?=^## |\Z)", DOC, re.MULTILINE | re.DOTALL))


def fields(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema, bool]]:
    """Path, schema and whether it is required, of every field below."""
    for name, one in schema.get("properties", {}).items():
        yield path + name, one, name in schema.get("required", ())
        yield from fields(one, f"{path}{name}.")
        yield from fields(one.get("items", {}), f"{path}{name}[].")


def described() -> Iterator[Any]:
    models: tuple[type[Model], ...] = (CrawlSource, CrawlBatch, Secret)
    for model in models:
        for path, one, required in fields(structural_schema(model)):
            if path not in ("metadata", "spec"):
                yield pytest.param(model.__name__, path, one, required, id=f"{model.__name__}-{path}")


def row(kind: str, path: str) -> list[str]:
    """The cells of the field's row."""
    text = (
        DOC.partition("## CrawlSource")[0]
        if path.startswith("metadata") or path in ("apiVersion", "kind")
        else SECTIONS[kind]
    )
    path = path.removeprefix("spec.")
    for line in text.splitlines():
        if line.startswith(f"| `{path}` |"):
            return [cell.strip() for cell in line.strip("|").split(" | ")]
    pytest.fail(f"docs/manifests.md does not name {path} of {kind}")


@pytest.mark.parametrize(("kind", "path", "schema", "required"), [*described()])
def test_every_field_has_its_row(kind: str, path: str, schema: Mapping[str, Any], required: bool) -> None:
    _, bounds, default, meaning = row(kind, path)

    assert meaning
    if required:
        assert default == "required"
    elif "default" in schema:
        assert default == f"`{json.dumps(schema['default'])}`"
    else:
        assert default == "none"
    if "minimum" in schema and "maximum" in schema:
        assert f"{schema['minimum']:g} to {schema['maximum']:.0f}".replace("e+06", "000000") in bounds
    if "maxItems" in schema:
        assert f"list of {schema['minItems']} to {schema['maxItems']}" in bounds


def test_the_examples_load(tmp_path: Path) -> None:
    file = tmp_path / "examples.yaml"
    file.write_text("\n---\n".join(re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)))

    manifests = load([file])

    assert [batch.metadata.name for batch in manifests.batches] == ["nightly"]
    urls = [proxy_url(manifests, egress) for egress in manifests.sources["cafe24"].spec.egresses]
    assert urls == [None, "http://crawler:change%20me@proxy.example.com:3128"]


def descriptions(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("description"), str):
            yield schema["description"]
        for inner in schema.values():
            yield from descriptions(inner)
    if isinstance(schema, list):
        for inner in schema:
            yield from descriptions(inner)


def test_descriptions_speak_of_manifests_and_not_of_python() -> None:
    found = list(descriptions(definitions()))

    assert found
    assert [text for text in found if re.search(r"[a-z]_[a-z]|None", text)] == []
