"""Every metric of a worker, in one place. Labels are bounded: sources, verdicts, closed lists of words."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from crawlfleet.errors import Verdict

disable_created_metrics()  # type: ignore[no-untyped-call]  # the library types the rest

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 45, 60, 90, 120, 300)
TURN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

CRAWLS = Counter("crawling_total", "Crawls that ended, by verdict.", ["source", "status"])
CRAWL_SECONDS = Histogram(
    "crawling_duration_seconds", "How long a crawl took.", ["source", "status"], buckets=SECONDS
)
ITEMS = Counter("crawlfleet_items_total", "Items collected.", ["source"])
SLOTS = Gauge("crawlfleet_slots", "Crawls this worker may run at once.")
CRAWLS_RUNNING = Gauge("crawlfleet_crawls_running", "Crawls under way in this worker.", ["source"])
PERMITS = Gauge("crawlfleet_permits_held", "Permits this worker holds, until their crawl is committed.")
THROTTLES = Counter("crawlfleet_throttles_total", "Replies that asked to wait.", ["source", "scope"])
CUTS = Counter("crawlfleet_cuts_seen_total", "Times this worker saw an egress cut.", ["source"])
PACE_SECONDS = Histogram(
    "crawlfleet_pace_wait_seconds", "Time a request waited for its turn.", ["source"], buckets=SECONDS
)
RETRIES = Counter(
    "crawlfleet_retries_total", "Tasks sent back to the queue, by verdict.", ["source", "status"]
)
REFRESHES = Counter("crawlfleet_refreshes_total", "Token refreshes, by how they ended.", ["source", "result"])
FENCED = Counter("crawlfleet_fenced_total", "Results dropped since their permit had been rescued.")
RESCUED = Counter("crawlfleet_rescued_total", "Permits of lost workers that this worker freed.")
TURN = Histogram("crawlfleet_turn_duration_seconds", "One turn: commit and take.", buckets=TURN_SECONDS)
DATABASE_ERRORS = Counter("crawlfleet_database_errors_total", "Failed database operations.", ["operation"])
LAST_TURN = Gauge("crawlfleet_last_turn_timestamp_seconds", "When the loop last turned.")
LAST_RENEWAL = Gauge("crawlfleet_last_renewal_timestamp_seconds", "When the permits were last renewed.")
BROWSER_CONTEXTS = Gauge("crawlfleet_browser_contexts", "Browser contexts that crawls of this worker use.")
BROWSER_MEMORY = Gauge("crawlfleet_browser_memory_bytes", "Memory of the Chrome beside this worker.")
BROWSER_LAUNCH = Gauge("crawlfleet_browser_launch_seconds", "How long Chrome's last launch took.")
BROWSER_RESTARTS = Counter(
    "crawlfleet_browser_restarts_total", "Chrome was started afresh, by reason.", ["reason"]
)
COMMAND_TIMEOUTS = Counter(
    "crawlfleet_browser_command_timeouts_total", "Browser commands that took too long."
)
BUILD = Gauge("crawlfleet_build_info", "Always 1.", ["version"])


def declare_source(source: str) -> None:
    """Create the series of a source at 0, so that a rate over them never misses its first crawl."""
    for verdict in Verdict:
        CRAWLS.labels(source, verdict.value)
        CRAWL_SECONDS.labels(source, verdict.value)
    for result in ("rotated", "adopted", "refused", "undecided"):
        REFRESHES.labels(source, result)
    for scope in ("account", "egress"):
        THROTTLES.labels(source, scope)
    for metric in (ITEMS, CUTS, CRAWLS_RUNNING, PACE_SECONDS):
        metric.labels(source)
