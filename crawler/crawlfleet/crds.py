"""The CustomResourceDefinitions, generated from the models of `manifests`: one source of truth for the schema.

Kubernetes wants a *structural* schema: every value typed, nothing referenced, no `anyOf` around types. So
pydantic's JSON schema is rewritten: references inlined, `X or null` becomes an optional X, a value of any
kind keeps its unknown fields. What a schema cannot say (exactly one of these fields) `manifests.load` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from crawlfleet.manifests import API_VERSION, CrawlBatchSpec, CrawlSourceSpec

Schema = dict[str, Any]

GROUP, VERSION = API_VERSION.split("/")
OPEN_OBJECT: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
KEPT = (
    "type",
    "description",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "required",
)
EXACT = 2**53
"""Above it a JSON number is not exact: Kubernetes reads bounds as floating point."""


def definitions() -> list[Schema]:
    """The definitions of CrawlSource and CrawlBatch, as Kubernetes takes them."""
    return [
        _definition("CrawlSource", "crawlsources", "csrc", CrawlSourceSpec),
        _definition("CrawlBatch", "crawlbatches", "cb", CrawlBatchSpec),
    ]


def as_yaml() -> str:
    """One document each, to be applied."""
    return yaml.safe_dump_all(definitions(), explicit_start=True, sort_keys=False, width=110)


def _definition(kind: str, plural: str, short: str, spec: type[BaseModel]) -> Schema:
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "shortNames": [short]}
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": _document(spec)},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def _document(spec: type[BaseModel]) -> Schema:
    schema = spec.model_json_schema(by_alias=True)
    properties = {
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
        "spec": structural(schema, schema.get("$defs", {})),
        "status": dict(OPEN_OBJECT),
    }
    return {"type": "object", "required": ["spec"], "properties": properties}


def structural(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Schema:
    """A JSON schema of pydantic as a structural one; `known` are its `$defs`. Unknown keywords are dropped."""
    if "$ref" in schema:
        siblings = {name: value for name, value in schema.items() if name != "$ref"}
        return structural(known[schema["$ref"].rpartition("/")[2]] | siblings, known)
    if "anyOf" in schema:
        (only,) = (option for option in schema["anyOf"] if option.get("type") != "null")
        return structural(only, known)
    found = {name: schema[name] for name in KEPT if name in schema and not _is_inexact(schema[name])}
    if found.get("type") == "integer":
        found["format"] = "int64"
    if "const" in schema:
        found["enum"] = [schema["const"]]
    if "default" in schema:
        found["default"] = _without_nulls(schema["default"])
    if "properties" in schema:
        found["properties"] = {name: structural(one, known) for name, one in schema["properties"].items()}
    elif schema.get("type") == "object":
        found |= OPEN_OBJECT
    if "items" in schema:
        found["items"] = structural(schema["items"], known)
    return found


def _is_inexact(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > EXACT


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
