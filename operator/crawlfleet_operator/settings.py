"""The environment of the operator: read once, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crawlfleet.errors import BadConfiguration
from crawlfleet.settings import is_json, number, required, required_database_url

PULL_POLICIES = ("IfNotPresent", "Always", "Never")


@dataclass(frozen=True)
class OperatorSettings:
    """What `crawlfleet-operator` runs with.

    `namespaces` are those it looks after, none means all of them. `secret` names the Secret with `database-url` and
    `keys` that every namespace with batches has. `metrics_port` 0 picks a free port.
    """

    database_url: str
    keys_file: Path
    crawler_image: str
    chrome_image: str
    namespaces: tuple[str, ...] = ()
    secret: str = "crawlfleet"  # noqa: S105  a name
    pull_policy: str = "IfNotPresent"
    metrics_port: int = 9090
    log_json: bool = False

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> OperatorSettings:
        """Raises BadConfiguration that names the variable, its value unless secret, and what was expected."""
        return cls(
            database_url=required_database_url(env),
            keys_file=Path(required(env, "CRAWLFLEET_KEYS_FILE")),
            crawler_image=required(env, "CRAWLFLEET_CRAWLER_IMAGE"),
            chrome_image=required(env, "CRAWLFLEET_CHROME_IMAGE"),
            namespaces=tuple(env.get("CRAWLFLEET_NAMESPACES", "").replace(",", " ").split()),
            secret=env.get("CRAWLFLEET_SECRET") or cls.secret,
            pull_policy=_pull_policy(env),
            metrics_port=number(env, "CRAWLFLEET_METRICS_PORT", cls.metrics_port, 0, 65535),
            log_json=is_json(env),
        )


def _pull_policy(env: Mapping[str, str]) -> str:
    policy = env.get("CRAWLFLEET_PULL_POLICY") or OperatorSettings.pull_policy
    if policy not in PULL_POLICIES:
        raise BadConfiguration(
            f"CRAWLFLEET_PULL_POLICY must be one of {', '.join(PULL_POLICIES)}, not {policy!r}"
        )
    return policy
