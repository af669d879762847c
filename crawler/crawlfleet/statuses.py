"""The statuses of CrawlBatch and CrawlSource, as typed models: what the operator writes and `kubectl get` shows.

Every field may be absent, since little is known at first. `crds.py` takes the schema from here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from crawlfleet.manifests import INT64, Distinct, Model, Whole

Count = Annotated[int, Whole(0, INT64)]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class _Status(Model):
    """Made in Python too, so its fields go by both their names."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)


class Condition(_Status):
    """One thing that is so or not, since when, and why; as conditions are everywhere in Kubernetes."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str | None = None
    message: str | None = None
    last_transition_time: Time | None = None
    observed_generation: Count | None = None


Conditions = Annotated[tuple[Condition, ...], Distinct(20, least=0, key="type")]


class SourceCounts(_Status):
    """What became of the tasks of one source so far; `failures` counts the dead ones by verdict."""

    name: str
    total: Count | None = None
    ready: Count | None = None
    leased: Count | None = None
    ok: Count | None = None
    retrying: Count | None = None
    dead: Count | None = None
    cancelled: Count | None = None
    failures: dict[str, Count] | None = None


class CrawlBatchStatus(_Status):
    """Where a batch stands. The sums are over all its sources; `workers` is the present size of its Job."""

    observed_generation: Count | None = None
    phase: str | None = None
    conditions: Conditions | None = None
    total: Count | None = None
    done: Count | None = None
    failed: Count | None = None
    cancelled: Count | None = None
    sources: Annotated[tuple[SourceCounts, ...], Distinct(20, least=0, key="name")] | None = None
    workers: Count | None = None
    ready_workers: Count | None = None
    selector: str | None = None
    eta: str | None = None
    round: Count | None = None
    revision: Count | None = None
    job_name: str | None = None
    start_time: Time | None = None
    completion_time: Time | None = None


class Permits(_Status):
    """How many crawls the source admits at once, how many run, and how many rest with their egress."""

    total: Count | None = None
    held: Count | None = None
    cooling: Count | None = None


class CrawlSourceStatus(_Status):
    """How a source fares: its permits, and how often the platform asked to wait or banned an egress."""

    observed_generation: Count | None = None
    conditions: Conditions | None = None
    permits: Permits | None = None
    throttled: Count | None = None
    blocked: Count | None = None
