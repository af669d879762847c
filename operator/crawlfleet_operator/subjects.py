"""One CrawlBatch as it is reconciled: read from its document, with the sources it names, and what is remembered of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from crawlfleet import documents
from crawlfleet.errors import BadInput
from crawlfleet.manifests import API_VERSION, CrawlBatch, CrawlSource
from crawlfleet.progress import Rate
from crawlfleet_operator.build import Document
from crawlfleet_operator.plan import Trouble
from crawlfleet_operator.sight import SOURCES, Key, Sight
from crawlfleet_operator.times import seconds

M = TypeVar("M", CrawlBatch, CrawlSource)


@dataclass(frozen=True)
class Subject:
    """A CrawlBatch. `missing` are the names of those of its CrawlSources that are not there."""

    key: Key
    uid: str
    version: str
    generation: int
    created_s: float
    batch: CrawlBatch
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
    """Raises BadInput, as `parsed`."""
    batch = parsed(document, CrawlBatch)
    metadata = document["metadata"]
    return Subject(
        key=key,
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        generation=metadata["generation"],
        created_s=seconds(metadata["creationTimestamp"]),
        batch=batch,
        missing=[name for name in batch.spec.sources if sight.get(Key(SOURCES, key.namespace, name)) is None],
    )


def crawl_sources(subject: Subject, sight: Sight) -> dict[str, CrawlSource]:
    """Those of its CrawlSources that can be read, by name: for its plan alone, which keeps what they say."""
    names = subject.batch.spec.sources
    return {name: found for name in names if (found := _source(sight, subject.namespace, name)) is not None}


def parsed(document: Document, model: type[M]) -> M:
    """As the model. Raises BadInput for a spec that the schema let through and that cannot be read."""
    found = documents.parse(_written(document))
    if not isinstance(found, model):
        raise BadInput("; ".join(found) if isinstance(found, list) else f"not a {model.__name__}")
    return found


def _written(document: Document) -> Document:
    """As a person would write it: without what Kubernetes adds."""
    metadata = document["metadata"]
    return {
        "apiVersion": API_VERSION,
        "kind": document["kind"],
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": document.get("spec", {}),
    }


def _source(sight: Sight, namespace: str, name: str) -> CrawlSource | None:
    document = sight.get(Key(SOURCES, namespace, name))
    try:
        return parsed(document, CrawlSource) if document else None
    except BadInput:  # its own status tells
        return None
