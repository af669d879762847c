"""The source that crawls nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from direct_crawl import DirectCrawl

from crawlfleet.errors import BadInput
from crawlfleet.sources import load_adapter
from crawlfleet.sources.noop import Noop


@pytest.fixture
def crawl() -> Iterator[DirectCrawl]:
    crawl = DirectCrawl(None, {})
    yield crawl
    crawl.close()


def test_it_is_found_by_its_entry_point() -> None:
    assert load_adapter("noop") is Noop


def test_by_default_it_does_nothing_at_all(crawl: DirectCrawl) -> None:
    assert list(Noop({}).crawl(crawl)) == []
    assert crawl.waits == []


def test_it_waits_and_yields_items_of_the_asked_size(crawl: DirectCrawl) -> None:
    items = list(Noop({"duration_s": 0.5, "items": 3, "body_bytes": 10}).crawl(crawl))
    assert crawl.waits == [0.5]
    assert [(item.kind, item.external_id) for item in items] == [("item", "0"), ("item", "1"), ("item", "2")]
    assert items[2].body == {"no": 2, "filler": "x" * 10}


@pytest.mark.parametrize(("duration_s", "waits"), [(2, [2.0]), ("1.5", [1.5]), (0, [])])
def test_an_account_may_have_its_own_duration(
    crawl: DirectCrawl, duration_s: object, waits: list[float]
) -> None:
    crawl.credentials = {"duration_s": duration_s}
    list(Noop({"duration_s": 9}).crawl(crawl))
    assert crawl.waits == waits


@pytest.mark.parametrize(
    "options",
    [
        {"duration_s": -1},
        {"duration_s": "soon"},
        {"duration_s": float("nan")},
        {"duration_s": True},
        {"items": -1},
        {"items": 1.5},
        {"body_bytes": None},
        {"sleep": 1},
    ],
)
def test_a_wrong_option_is_named(options: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=f"'{next(iter(options))}'"):
        Noop(options)


@pytest.mark.parametrize("credentials", [{"duration_s": "soon"}, {"duration_s": None}, {"token": "planted"}])
def test_a_wrong_credential_is_named_and_never_shown(credentials: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=f"'{next(iter(credentials))}'") as raised:
        Noop({}).check_credentials(credentials)
    assert "planted" not in str(raised.value)
