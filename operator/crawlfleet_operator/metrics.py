"""Every metric of the operator. Those of batches are made from what is known at a scrape, so a deleted batch has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from crawlfleet.store.oversight import BatchRow

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library types the rest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

RECONCILE = Histogram(
    "crawlfleet_reconcile_duration_seconds", "One look at one object.", ["kind"], buckets=SECONDS
)
LAST_RESYNC = Gauge("crawlfleet_last_resync_timestamp_seconds", "When all batches were last looked at.")
DATABASE_UP = Gauge("crawlfleet_database_up", "Whether the database answered at the last resync.")
BUILD = Gauge("crawlfleet_operator_build_info", "Always 1.", ["version"])


class FleetCollector(Collector):
    """Batches by phase, and the tasks of each by source and state."""

    def __init__(self, phases: Callable[[], Iterable[str]], rows: Callable[[], Iterable[BatchRow]]) -> None:
        self._phases = phases
        self._rows = rows

    def collect(self) -> Iterator[Metric]:
        by_phase = GaugeMetricFamily("crawlfleet_batches", "CrawlBatches by phase.", labels=["phase"])
        for phase, number in sorted(Counter(self._phases()).items()):
            by_phase.add_metric([phase], number)
        yield by_phase
        labels = ["namespace", "batch", "source", "state"]
        tasks = GaugeMetricFamily("crawlfleet_batch_tasks", "Tasks of a batch by state.", labels=labels)
        for row in self._rows():
            for (source, state), number in sorted(_by_state(row).items()):
                tasks.add_metric([row.namespace, row.name, source, state], number)
        yield tasks


def _by_state(row: BatchRow) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for source, counts in row.counts.items():
        for (state, _), number in counts.items():
            found[source, state] += number
    return found
