"""The operator's environment, and kopf's settings."""

from __future__ import annotations

from pathlib import Path

import kopf
import pytest

from crawlfleet.errors import BadConfiguration
from crawlfleet_operator import handlers
from crawlfleet_operator.settings import OperatorSettings

ENVIRONMENT = {
    "CRAWLFLEET_DATABASE_URL": "postgresql:///crawlfleet",
    "CRAWLFLEET_KEYS_FILE": "/etc/crawlfleet/keys",
    "CRAWLFLEET_CRAWLER_IMAGE": "registry/crawler:1",
    "CRAWLFLEET_CHROME_IMAGE": "registry/chrome:1",
}


def settings(**env: str) -> OperatorSettings:
    return OperatorSettings.from_environment(ENVIRONMENT | env)


def test_what_is_not_set_has_a_default() -> None:
    assert settings() == OperatorSettings(
        database_url="postgresql:///crawlfleet",
        keys_file=Path("/etc/crawlfleet/keys"),
        crawler_image="registry/crawler:1",
        chrome_image="registry/chrome:1",
        namespaces=(),
        secret="crawlfleet",
        pull_policy="IfNotPresent",
        metrics_port=9090,
        log_json=False,
    )


def test_everything_can_be_set() -> None:
    found = settings(
        CRAWLFLEET_NAMESPACES="one, two,three",
        CRAWLFLEET_SECRET="other",
        CRAWLFLEET_PULL_POLICY="Always",
        CRAWLFLEET_METRICS_PORT="0",
        CRAWLFLEET_LOG_FORMAT="json",
    )

    assert found.namespaces == ("one", "two", "three")
    assert (found.secret, found.pull_policy, found.metrics_port, found.log_json) == (
        "other",
        "Always",
        0,
        True,
    )


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_what_is_required_is_named(name: str) -> None:
    with pytest.raises(BadConfiguration, match=f"{name} is not set"):
        settings(**{name: ""})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "CRAWLFLEET_PULL_POLICY",
            "Sometimes",
            "must be one of IfNotPresent, Always, Never, not 'Sometimes'",
        ),
        ("CRAWLFLEET_METRICS_PORT", "http", "must be a whole number from 0 to 65535, not 'http'"),
    ],
)
def test_what_is_wrong_is_told_with_what_was_expected(name: str, value: str, words: str) -> None:
    with pytest.raises(BadConfiguration) as refused:
        settings(**{name: value})

    assert str(refused.value) == f"{name} {words}"


def test_the_databases_url_may_come_from_a_mounted_secret(tmp_path: Path) -> None:
    """It wins over the variable."""
    file = tmp_path / "database-url"
    file.write_text("postgresql:///mounted\n")

    assert settings(CRAWLFLEET_DATABASE_URL_FILE=str(file)).database_url == "postgresql:///mounted"


def test_a_secret_that_is_not_mounted_is_named() -> None:
    with pytest.raises(
        BadConfiguration, match="CRAWLFLEET_DATABASE_URL_FILE: /nowhere cannot be read: No such file"
    ):
        settings(CRAWLFLEET_DATABASE_URL_FILE="/nowhere")


def test_an_empty_secret_is_no_url(tmp_path: Path) -> None:
    file = tmp_path / "database-url"
    file.write_text("\n")

    with pytest.raises(BadConfiguration, match="database-url is empty"):
        settings(CRAWLFLEET_DATABASE_URL="", CRAWLFLEET_DATABASE_URL_FILE=str(file))


def test_each_setting_of_kopf_is_one_that_it_has() -> None:
    """It takes any name: an upgrade that renames one would go unnoticed."""
    ours, theirs = handlers.settings(), kopf.OperatorSettings()
    for section in vars(ours):
        mine, known = getattr(ours, section), getattr(theirs, section)
        assert set(vars(mine)) == set(vars(known)), section


def test_kopf_is_set_as_the_operator_needs_it() -> None:
    found = handlers.settings()

    assert found.peering.standalone is True
    assert found.posting.enabled is False
    assert found.scanning.disabled is True
    assert found.networking.request_timeout == 30
    assert found.watching.label_selectors["batch", "jobs"].startswith(
        "app.kubernetes.io/managed-by=crawlfleet-operator,"
    )


def test_kopf_marks_objects_in_our_name_if_ever() -> None:
    found = handlers.settings().persistence

    assert found.finalizer == "operator.crawlfleet.dev/finalizer"
    assert isinstance(found.progress_storage, kopf.AnnotationsProgressStorage)
    assert isinstance(found.diffbase_storage, kopf.AnnotationsDiffBaseStorage)
    assert found.progress_storage.prefix == found.diffbase_storage.prefix == "operator.crawlfleet.dev"


def test_what_the_settings_rely_on_is_so_without_them() -> None:
    """Defaults of kopf that the operator would have to set if they were others."""
    found = handlers.settings()

    assert found.watching.inactivity_timeout is not None
    assert found.queueing.worker_limit is None


def test_handlers_only_watch() -> None:
    """A handler of changes would write annotations and finalizers into what it watches."""
    registry = handlers.registry()

    assert len(registry._watching.get_all_handlers()) == 3
    for others in (registry._changing, registry._spawning, registry._indexing, registry._webhooks):
        assert not others.get_all_handlers()


def test_a_start_that_failed_is_tried_again_soon() -> None:
    """kopf would wait a minute, in which nothing is watched and /healthz goes bad."""
    (begin,) = (one for one in handlers.registry()._activities.get_all_handlers() if one.id == "begin")

    assert begin.backoff is not None
    assert begin.backoff <= 10
