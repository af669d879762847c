"""The environment of a worker, and of a Chrome."""

from __future__ import annotations

from pathlib import Path

import pytest

from crawlfleet.errors import BadConfiguration
from crawlfleet.settings import ChromeSettings, WorkerSettings

LEAST = {
    "CRAWLFLEET_DATABASE_URL": "postgresql://crawler:planted-password@127.0.0.1/fleet",
    "CRAWLFLEET_BATCH": "nightly",
    "CRAWLFLEET_KEYS_FILE": "/etc/crawlfleet/keys",
    "WORKER_ID": "3",
}


def read(**changes: str | None) -> WorkerSettings:
    env = {name: value for name, value in (LEAST | changes).items() if value is not None}
    return WorkerSettings.from_environment(env)


def test_what_is_not_set_has_a_default() -> None:
    settings = read(CRAWLFLEET_MEMORY_MB="512")

    assert settings == WorkerSettings(
        database_url=LEAST["CRAWLFLEET_DATABASE_URL"],
        batch="nightly",
        worker_id=3,
        max_concurrent=10,
        keys_file=Path("/etc/crawlfleet/keys"),
        metrics_port=9090,
        memory_mb=512,
        drain_s=120,
        log_json=False,
    )


def test_everything_can_be_set() -> None:
    settings = read(
        MAX_CONCURRENT="25",
        CRAWLFLEET_METRICS_PORT="0",
        CRAWLFLEET_DRAIN_SECONDS="7",
        CRAWLFLEET_LOG_FORMAT="json",
    )

    assert (settings.max_concurrent, settings.metrics_port) == (25, 0)
    assert (settings.drain_s, settings.log_json) == (7, True)


@pytest.mark.parametrize("name", LEAST)
@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_a_missing_variable_is_named(name: str, value: str | None) -> None:
    with pytest.raises(BadConfiguration, match=name):
        read(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKER_ID", "-1"),
        ("WORKER_ID", "one"),
        ("MAX_CONCURRENT", "0"),
        ("MAX_CONCURRENT", "1001"),
        ("MAX_CONCURRENT", "2.5"),
        ("MAX_CONCURRENT", "٣"),
        ("CRAWLFLEET_METRICS_PORT", "65536"),
        ("CRAWLFLEET_DRAIN_SECONDS", "0"),
        ("CRAWLFLEET_MEMORY_MB", "1GB"),
    ],
)
def test_a_wrong_number_is_named_with_what_was_expected(name: str, value: str) -> None:
    with pytest.raises(BadConfiguration, match=f"{name} must be a whole number from .* not '{value}'"):
        read(**{name: value})


def test_a_wrong_environment_never_quotes_the_password() -> None:
    with pytest.raises(BadConfiguration) as wrong:
        read(WORKER_ID="planted")

    assert "planted-password" not in str(wrong.value)
    assert wrong.value.exit_code == 78


def test_a_chrome_needs_no_setting() -> None:
    assert ChromeSettings.from_environment({"CRAWLFLEET_CHROME_MEMORY_MB": "900"}) == ChromeSettings(
        chrome="chromium-headless-shell",
        chromedriver="chromedriver",
        port=9333,
        listener=None,
        folder=None,
        memory_mb=900,
        log_json=False,
    )


def test_everything_of_a_chrome_can_be_set() -> None:
    settings = ChromeSettings.from_environment(
        {
            "CRAWLFLEET_CHROME": "chromium",
            "CRAWLFLEET_CHROMEDRIVER": "/opt/chromedriver",
            "CRAWLFLEET_CHROME_PORT": "0",
            "CRAWLFLEET_CHROME_DIR": "/var/tmp/chrome",
            "CRAWLFLEET_CHROME_FD": "7",
            "CRAWLFLEET_LOG_FORMAT": "json",
        }
    )

    assert (settings.chrome, settings.chromedriver) == ("chromium", "/opt/chromedriver")
    assert (settings.port, settings.listener, settings.folder) == (0, 7, Path("/var/tmp/chrome"))
    assert settings.log_json


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CRAWLFLEET_CHROME_PORT", "65536"),
        ("CRAWLFLEET_CHROME_FD", "-1"),
        ("CRAWLFLEET_CHROME_MEMORY_MB", "1GB"),
    ],
)
def test_a_wrong_number_of_a_chrome_is_named(name: str, value: str) -> None:
    with pytest.raises(BadConfiguration, match=f"{name} must be a whole number from .* not '{value}'"):
        ChromeSettings.from_environment({name: value})
