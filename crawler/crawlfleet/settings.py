"""The environment of a worker: read once, checked once, with a message that says how to fix it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crawlfleet.errors import BadConfiguration


@dataclass(frozen=True)
class WorkerSettings:
    """What `crawlfleet worker` runs with.

    `worker_id` is the WORKER_ID (the shard it takes first), `max_concurrent` its crawls at once;
    `metrics_port` 0 picks a free port; `memory_mb` None sets no ceiling.
    """

    database_url: str
    batch: str
    worker_id: int
    max_concurrent: int
    keys_file: Path
    metrics_port: int = 9090
    memory_mb: int | None = None
    drain_s: float = 120.0
    chrome_url: str = "http://127.0.0.1:9333"
    log_json: bool = False

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> WorkerSettings:
        """Raises BadConfiguration that names the variable, its value unless secret, and what was expected."""
        return cls(
            database_url=_required(env, "CRAWLFLEET_DATABASE_URL"),
            batch=_required(env, "CRAWLFLEET_BATCH"),
            worker_id=_number(env, "WORKER_ID", None, 0),
            max_concurrent=_number(env, "MAX_CONCURRENT", 10, 1, 1000),
            keys_file=Path(_required(env, "CRAWLFLEET_KEYS_FILE")),
            metrics_port=_number(env, "CRAWLFLEET_METRICS_PORT", 9090, 0, 65535),
            memory_mb=_number(env, "CRAWLFLEET_MEMORY_MB", 0, 0) or _cgroup_memory_mb(),
            chrome_url=env.get("CRAWLFLEET_CHROME_URL") or cls.chrome_url,
            drain_s=_number(env, "CRAWLFLEET_DRAIN_SECONDS", 120, 1),
            log_json=env.get("CRAWLFLEET_LOG_FORMAT", "text") == "json",
        )


def _required(env: Mapping[str, str], name: str) -> str:
    value = env.get(name, "")
    if not value:
        raise BadConfiguration(f"{name} is not set; a worker cannot start without it")
    return value


def _number(env: Mapping[str, str], name: str, default: int | None, low: int, high: int = 2**31 - 1) -> int:
    text = env.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise BadConfiguration(f"{name} must be a whole number from {low} to {high}, not {text!r}")
    return int(text)


def _cgroup_memory_mb() -> int | None:
    """85 % of the container's limit, None without one."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(file).read_text())
        except (OSError, ValueError):
            continue
        return int(limit * 0.85 / 2**20) if limit < 2**50 else None
    return None
