"""The CustomResourceDefinitions, generated from the models of `manifests` and `statuses`: one source of truth.

Kubernetes wants a *structural* schema: every value typed, nothing referenced, no `anyOf` around types. So
pydantic's JSON schema is rewritten: references inlined, `X or null` becomes an optional X, a value of any
kind keeps its unknown fields. CEL rules and kinds of lists are the models' own, and passed through. `make crds`
writes the files of `k8s/crds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from crawlfleet.manifests import GROUP, VERSION, CrawlBatch, CrawlSource, Model
from crawlfleet.statuses import CrawlBatchStatus, CrawlSourceStatus

Schema = dict[str, Any]

CATEGORY = "crawlfleet"
OPEN_OBJECT: Schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
OWN_FIELDS: Schema = {
    "apiVersion": {"type": "string"},
    "kind": {"type": "string"},
    "metadata": {"type": "object"},
}
"""Kubernetes checks them by itself, and wants to hear no more about them."""
KEPT = (
    "type",
    "description",
    "format",
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


@dataclass(frozen=True)
class Column:
    """One of `kubectl get`; a wide one is shown by `-o wide` alone."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False

    def as_schema(self) -> Schema:
        shown = {"name": self.name, "type": self.type, "jsonPath": self.path}
        return shown | {"priority": 1} if self.wide else shown


@dataclass(frozen=True)
class Resource:
    """A kind of document as Kubernetes serves it."""

    kind: type[Model]
    status: type[Model]
    plural: str
    short: str
    columns: tuple[Column, ...]
    scale: Schema | None = None


def _of_condition(condition: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{condition}")].{field}'


AGE = Column("Age", ".metadata.creationTimestamp", "date")
RESOURCES = (
    Resource(
        CrawlSource,
        CrawlSourceStatus,
        "crawlsources",
        "csrc",
        columns=(
            Column("Adapter", ".spec.adapter"),
            Column("Available", _of_condition("Available", "status")),
            Column("Held", ".status.permits.held", "integer"),
            Column("Permits", ".status.permits.total", "integer"),
            Column("Cooling", ".status.permits.cooling", "integer"),
            Column("Throttled", _of_condition("Throttled", "message")),
            AGE,
        ),
    ),
    Resource(
        CrawlBatch,
        CrawlBatchStatus,
        "crawlbatches",
        "cb",
        columns=(
            Column("Phase", ".status.phase"),
            Column("Workers", ".status.readyWorkers", "integer"),
            Column("Done", ".status.done", "integer"),
            Column("Failed", ".status.failed", "integer"),
            Column("Total", ".status.total", "integer"),
            Column("ETA", ".status.eta"),
            AGE,
            Column("Revision", ".status.revision", "integer", wide=True),
            Column("Job", ".status.jobName", wide=True),
            Column("Message", _of_condition("Degraded", "message"), wide=True),
        ),
        scale={
            "specReplicasPath": ".spec.workers",
            "statusReplicasPath": ".status.workers",
            "labelSelectorPath": ".status.selector",
        },
    ),
)


def definitions() -> list[Schema]:
    """The definitions of CrawlSource and CrawlBatch, as Kubernetes takes them."""
    return [_definition(resource) for resource in RESOURCES]


def files() -> dict[str, str]:
    """File name → the definition in it, to be applied."""
    return {f"{one['spec']['names']['plural']}.yaml": _as_yaml(one) for one in definitions()}


def _as_yaml(definition: Schema) -> str:
    return yaml.safe_dump(definition, explicit_start=True, sort_keys=False, width=110)


def _definition(resource: Resource) -> Schema:
    kind = resource.kind.__name__
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": resource.plural,
                "singular": kind.lower(),
                "shortNames": [resource.short],
                "categories": [CATEGORY],
            },
            "scope": "Namespaced",
            "versions": [_version(resource)],
        },
    }


def _version(resource: Resource) -> Schema:
    scale = {"scale": resource.scale} if resource.scale else {}
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}, **scale},
        "additionalPrinterColumns": [column.as_schema() for column in resource.columns],
        "schema": {"openAPIV3Schema": _document(resource)},
    }


def _document(resource: Resource) -> Schema:
    document = structural_schema(resource.kind)
    spec, status = document["properties"]["spec"], structural_schema(resource.status)
    return document | {"required": ["spec"], "properties": {**OWN_FIELDS, "spec": spec, "status": status}}


def structural_schema(model: type[Model]) -> Schema:
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Schema:
    """A JSON schema of pydantic as a structural one; `known` are its `$defs`. Unknown keywords are dropped."""
    if "$ref" in schema:
        siblings = {name: value for name, value in schema.items() if name != "$ref"}
        return _structural(known[schema["$ref"].rpartition("/")[2]] | siblings, known)
    if "anyOf" in schema:
        (only,) = (option for option in schema["anyOf"] if option.get("type") != "null")
        return _structural(only, known)
    found = {name: schema[name] for name in KEPT if name in schema and not _is_inexact(schema[name])}
    if found.get("type") == "integer":
        found["format"] = "int64"
    if "const" in schema:
        found["enum"] = [schema["const"]]
    if "default" in schema:
        found["default"] = _without_nulls(schema["default"])
    if "properties" in schema:
        found["properties"] = {name: _structural(one, known) for name, one in schema["properties"].items()}
    elif schema.get("type") == "object":
        found |= _map_of(_structural(schema["additionalProperties"], known))
    if "items" in schema:
        found["items"] = _structural(schema["items"], known)
    return found | {name: value for name, value in schema.items() if name.startswith("x-kubernetes-")}


def _is_inexact(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > EXACT


def _map_of(value: Schema) -> Schema:
    return {"additionalProperties": value} if value else OPEN_OBJECT


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
