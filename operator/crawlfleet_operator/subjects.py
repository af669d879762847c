"""One CrawlBatch as it is reconciled: read from its document, with the sources it names, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crawlfleet import documents
from crawlfleet.errors import BadInput
from crawlfleet.local.watch import Rate
from crawlfleet.manifests import API_VERSION, CrawlBatch, CrawlSource
from crawlfleet_operator.build import Document
from crawlfleet_operator.cluster import SOURCES
from crawlfleet_operator.plan import Trouble
from crawlfleet_operator.sight import Key, Sight
from crawlfleet_operator.times import seconds


@dataclass(frozen=True)
class Subject:
    """A CrawlBatch. `sources` are those of its CrawlSources that are there, `missing` the names of the others."""

    key: Key
    uid: str
    version: str
    generation: int
    created_s: float
    batch: CrawlBatch
    sources: Mapping[str, CrawlSource]
    missing: Sequence[str]

    @property
    def namespace(self) -> str:
        return self.key.namespace


@dataclass
class Memory:
    """What is remembered between two looks, and may be lost. `alive_s`: when a worker was last seen alive."""

    alive_s: float
    obstacle: Trouble | None = None
    trouble: Trouble | None = None
    looked_s: float = 0.0
    budget: int | None = None
    rate: Rate = field(default_factory=Rate)


def read(key: Key, document: Document, sight: Sight) -> Subject:
    """Raises BadInput for a spec that the schema let through and that cannot be read."""
    batch = documents.parse(plain(document))
    if not isinstance(batch, CrawlBatch):
        raise BadInput("; ".join(batch) if isinstance(batch, list) else "not a CrawlBatch")
    metadata, names = document["metadata"], batch.spec.sources
    found = {name: source for name in names if (source := _source(sight, key.namespace, name)) is not None}
    return Subject(
        key=key,
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        generation=metadata["generation"],
        created_s=seconds(metadata["creationTimestamp"]),
        batch=batch,
        sources=found,
        missing=[name for name in names if name not in found],
    )


def plain(document: Document) -> Document:
    """A CrawlBatch or CrawlSource as a person would write it, for the models."""
    metadata = document["metadata"]
    return {
        "apiVersion": API_VERSION,
        "kind": document["kind"],
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": document.get("spec", {}),
    }


def _source(sight: Sight, namespace: str, name: str) -> CrawlSource | None:
    document = sight.get(Key(SOURCES, namespace, name))
    source = documents.parse(plain(document)) if document else None
    return source if isinstance(source, CrawlSource) else None
