"""docker-compose.yml: what it builds is there, what it runs the command line takes, what it sets the settings take."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from dockerfiles import ROOT, command, stages
from psycopg.conninfo import conninfo_to_dict

from crawlfleet import cli
from crawlfleet.browser.preflight import SHM_MB
from crawlfleet.settings import ChromeSettings, WorkerSettings

Service = dict[str, Any]

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Service] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
CRAWLERS = {name: service for name, service in OURS.items() if name.startswith("crawler-")}
CHROMES = {name: service for name, service in OURS.items() if name.startswith("chrome-")}
SECRETS = "/run/secrets/"


def environment(service: Service) -> dict[str, str]:
    """As a container gets it if the person sets nothing: of `${NAME:-default}` the default."""
    return {
        name: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", value)
        for name, value in service.get("environment", {}).items()
    }


def settings(service: Service) -> WorkerSettings:
    return WorkerSettings.from_environment(environment(service))


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


@pytest.mark.parametrize("name", OURS)
def test_what_is_built_is_a_stage_whose_command_is_one_of_ours(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "function_of", lambda _: lambda _: 0)
    build = OURS[name]["build"]
    stage = stages(ROOT / build["dockerfile"])[build["target"]]

    assert OURS[name]["image"] == f"crawlfleet/{build['target']}"
    words = command(stage, OURS[name].get("command"))
    assert words[:3] == ["tini", "--", "crawlfleet"]
    assert cli.main(words[3:]) == 0


def test_each_worker_has_a_number_and_a_chrome_of_its_own() -> None:
    assert [settings(service).worker_id for service in CRAWLERS.values()] == list(range(len(CRAWLERS)))
    assert [service["network_mode"] for service in CRAWLERS.values()] == [
        f"service:{name}" for name in CHROMES
    ]


def test_the_worker_finds_the_chrome_beside_it() -> None:
    ports = {ChromeSettings.from_environment(environment(service)).port for service in CHROMES.values()}

    assert {settings(service).chrome_url for service in CRAWLERS.values()} == {
        f"http://127.0.0.1:{port}" for port in ports
    }


def test_the_workers_have_time_to_drain() -> None:
    for service in CRAWLERS.values():
        assert seconds(service["stop_grace_period"]) >= settings(service).drain_s + 20


def test_chrome_has_shared_memory_to_spare() -> None:
    for service in CHROMES.values():
        assert int(service["shm_size"].removesuffix("m")) > SHM_MB


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_documented(name: str) -> None:
    """The settings ignore what they do not know: a misspelt one would go unnoticed."""
    documented = set(re.findall(r"`([A-Z_]+)`", (ROOT / "docs" / "operations.md").read_text()))

    assert {key for key in environment(OURS[name]) if not key.startswith("PG")} <= documented


@pytest.mark.parametrize("name", OURS)
def test_a_container_may_do_next_to_nothing(name: str) -> None:
    service = OURS[name]

    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", SERVICES)
def test_secrets_are_files_and_no_variable_holds_one(name: str) -> None:
    service = SERVICES[name]
    named = {value for value in environment(service).values() if value.startswith(SECRETS)}

    assert named == {SECRETS + secret for secret in service.get("secrets", [])}
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    url = environment(service).get("CRAWLFLEET_DATABASE_URL", "")
    assert "password" not in conninfo_to_dict(url)


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_is_there_and_can_end(name: str) -> None:
    for other, wish in SERVICES[name].get("depends_on", {}).items():
        needed = {"service_healthy": "healthcheck", "service_completed_successfully": "command"}
        assert needed[wish["condition"]] in SERVICES[other]
