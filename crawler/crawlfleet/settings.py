"""The environment of a worker or a Chrome: read once, checked once, with a message that says how to fix it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crawlfleet import cgroup
from crawlfleet.errors import BadConfiguration

OF_THE_CONTAINER = 0.85
"""How much of a container's memory limit is used unless a setting says otherwise."""


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
            database_url=required_database_url(env),
            batch=required(env, "CRAWLFLEET_BATCH"),
            worker_id=number(env, "WORKER_ID", None, 0),
            max_concurrent=number(env, "MAX_CONCURRENT", 10, 1, 1000),
            keys_file=Path(required(env, "CRAWLFLEET_KEYS_FILE")),
            metrics_port=number(env, "CRAWLFLEET_METRICS_PORT", 9090, 0, 65535),
            memory_mb=_memory_mb(env, "CRAWLFLEET_MEMORY_MB"),
            chrome_url=env.get("CRAWLFLEET_CHROME_URL") or cls.chrome_url,
            drain_s=number(env, "CRAWLFLEET_DRAIN_SECONDS", 120, 1),
            log_json=is_json(env),
        )


@dataclass(frozen=True)
class ChromeSettings:
    """What `crawlfleet chrome` runs with.

    `port` 0 picks a free one; `listener` is the number of a listening socket that the parent handed over, used
    instead. `folder` None makes a temporary one; `memory_mb` None sets no limit.
    """

    chrome: str = "chromium-headless-shell"
    chromedriver: str = "chromedriver"
    port: int = 9333
    listener: int | None = None
    folder: Path | None = None
    memory_mb: int | None = None
    log_json: bool = False

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> ChromeSettings:
        """Raises BadConfiguration that names the variable, its value and what was expected."""
        folder = env.get("CRAWLFLEET_CHROME_DIR")
        return cls(
            chrome=env.get("CRAWLFLEET_CHROME") or cls.chrome,
            chromedriver=env.get("CRAWLFLEET_CHROMEDRIVER") or cls.chromedriver,
            port=number(env, "CRAWLFLEET_CHROME_PORT", cls.port, 0, 65535),
            listener=number(env, "CRAWLFLEET_CHROME_FD", 0, 0) or None,
            folder=Path(folder) if folder else None,
            memory_mb=_memory_mb(env, "CRAWLFLEET_CHROME_MEMORY_MB"),
            log_json=is_json(env),
        )


def is_json(env: Mapping[str, str]) -> bool:
    """Whether logs are for machines."""
    return env.get("CRAWLFLEET_LOG_FORMAT", "text") == "json"


def database_url(env: Mapping[str, str]) -> str | None:
    """The database's URL, from the environment, or from the file that it names: a mounted Secret. None if there is neither.

    The file wins. Raises BadConfiguration if it cannot be read, or is empty.
    """
    path = env.get("CRAWLFLEET_DATABASE_URL_FILE")
    if not path:
        return env.get("CRAWLFLEET_DATABASE_URL")
    try:
        url = Path(path).read_text().strip()
    except OSError as exc:
        raise BadConfiguration(
            f"CRAWLFLEET_DATABASE_URL_FILE: {path} cannot be read: {exc.strerror}; mount the Secret there"
        ) from exc
    if not url:
        raise BadConfiguration(f"CRAWLFLEET_DATABASE_URL_FILE: {path} is empty; it has to hold the URL")
    return url


def required_database_url(env: Mapping[str, str]) -> str:
    """The same. Raises BadConfiguration if there is none."""
    return database_url(env) or required(env, "CRAWLFLEET_DATABASE_URL")


def required(env: Mapping[str, str], name: str) -> str:
    """The variable's value. Raises BadConfiguration if there is none."""
    value = env.get(name, "")
    if not value:
        raise BadConfiguration(f"{name} is not set; nothing can start without it")
    return value


def number(env: Mapping[str, str], name: str, default: int | None, low: int, high: int = 2**31 - 1) -> int:
    """The variable as a whole number. Raises BadConfiguration."""
    text = env.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise BadConfiguration(f"{name} must be a whole number from {low} to {high}, not {text!r}")
    return int(text)


def _memory_mb(env: Mapping[str, str], name: str) -> int | None:
    """What is set, else a share of the container's limit, None without one."""
    limit_mb = cgroup.limit_mb()
    return number(env, name, 0, 0) or (int(limit_mb * OF_THE_CONTAINER) if limit_mb else None)
