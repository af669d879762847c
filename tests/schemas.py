"""Walking through the schemas of the CustomResourceDefinitions."""

from __future__ import annotations

from collections.abc import Iterator

from crawlfleet.crds import Schema


def document_schema(definition: Schema) -> Schema:
    (version,) = definition["spec"]["versions"]
    found: Schema = version["schema"]["openAPIV3Schema"]
    return found


def values(path: str, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Every schema in this one, with its path: `[]` is an entry of a list, `.*` one of a map."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from values(f"{path}.{name}", inner)
    if "items" in schema:
        yield from values(f"{path}[]", schema["items"])
    if "additionalProperties" in schema:
        yield from values(f"{path}.*", schema["additionalProperties"])
