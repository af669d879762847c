"""Ably's adapter without a browser: options, credentials, and the strategy `http` with a living session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from direct_crawl import DirectCrawl
from scripted_shop import Reply, Request, ScriptedShop, html_reply, json_reply

from crawlfleet.errors import AuthFailed, BadInput, Blocked, Bug, CrawlEnded, Retry, Throttled
from crawlfleet.sources import load_adapter
from crawlfleet.sources.ably import PASSES, Ably, Pass, read_pages, read_until_agreed

ORDERS = "/seller/order_items/"


class FakeAdmin:
    """An order API of pages."""

    def __init__(self, *pages: list[int]) -> None:
        self.pages = list(pages)
        self.override: Reply | None = None

    def __call__(self, request: Request) -> Reply:
        if self.override is not None:
            return self.override
        numbers = self.pages[int(request.query["page"]) - 1]
        items = [{"sno": number, "goods_name": "옷"} for number in numbers]
        return json_reply({"order_items": items, "max_page_number": len(self.pages)})


@pytest.fixture
def admin() -> FakeAdmin:
    return FakeAdmin([5, 4, 3], [2, 1])


@pytest.fixture
def shop(admin: FakeAdmin) -> Iterator[ScriptedShop]:
    with ScriptedShop(admin) as shop:
        yield shop


@pytest.fixture
def crawl(shop: ScriptedShop) -> Iterator[DirectCrawl]:
    crawl = DirectCrawl(shop.url, {"token": "live"})
    yield crawl
    crawl.close()


def read(crawl: DirectCrawl, **options: Any) -> dict[str, Any]:
    return {item.external_id: item.body for item in Ably({"strategy": "http", **options}).crawl(crawl)}


def ending(crawl: DirectCrawl) -> CrawlEnded:
    with pytest.raises(CrawlEnded) as raised:
        read(crawl)
    return raised.value


# Options and credentials.


def test_the_adapter_is_found_by_its_entry_point() -> None:
    assert load_adapter("ably") is Ably


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"day": 7}, "'day'"),
        ({"days": 0}, "'days'"),
        ({"strategy": "magic"}, "'strategy'"),
        ({"selectors": {"tabel": "table"}}, "'tabel'"),
        ({"selectors": {"table": ""}}, "'selectors'"),
        ({"selectors": "table"}, "'selectors'"),
        ({"paths": {"orders": 1}}, "'paths'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        Ably(options)


@pytest.mark.parametrize(
    "credentials",
    [
        {"email": "a@example.com", "password": "secret"},
        {"token": "t"},
        {"email": "", "password": "", "token": "t"},
        {"email": "a@example.com", "password": "secret", "token": "t"},
    ],
)
def test_a_password_or_a_token_is_enough(credentials: dict[str, str]) -> None:
    Ably({}).check_credentials(credentials)


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"email": "a@example.com"},
        {"password": "hidden"},
        {"token": ""},
        {"token": "hid\nden"},
        {"pasword": "hidden"},
    ],
)
def test_wrong_credentials_are_refused_and_never_shown(credentials: dict[str, str]) -> None:
    with pytest.raises(BadInput) as raised:
        Ably({}).check_credentials(credentials)
    assert "hid" not in str(raised.value)


# Reading.


def test_all_pages_become_items(crawl: DirectCrawl) -> None:
    assert sorted(read(crawl)) == ["1", "2", "3", "4", "5"]


def test_a_call_carries_token_and_window(crawl: DirectCrawl, shop: ScriptedShop) -> None:
    read(crawl, days=2)
    [first, *_] = shop.requests
    assert first.headers["Authorization"] == "JWT live"
    assert first.query == {
        "start_date": "2026-03-08",
        "end_date": "2026-03-10",
        "page": "1",
        "per_page": "100",
    }


def test_a_list_of_several_pages_is_read_until_two_passes_agree(
    crawl: DirectCrawl, shop: ScriptedShop
) -> None:
    read(crawl)
    assert shop.paths().count(ORDERS) == 4


def test_a_list_of_one_page_is_read_once(crawl: DirectCrawl, shop: ScriptedShop, admin: FakeAdmin) -> None:
    admin.pages = [[1]]
    read(crawl)
    assert shop.paths() == [ORDERS]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (json_reply({"detail": "expired"}, 401), AuthFailed),
        (json_reply({}, 429, {"Retry-After": "3"}), Throttled),
        (html_reply(403), Blocked),
        (json_reply({}, 500), Retry),
        (json_reply({"error": "internal", "order_items": [], "max_page_number": 0}), Bug),
        (html_reply(200), Bug),
        (json_reply({"order_items": [{"goods_name": "no number"}], "max_page_number": 1}), Bug),
    ],
)
def test_anything_else_ends_the_crawl(
    crawl: DirectCrawl, admin: FakeAdmin, reply: Reply, verdict: type[CrawlEnded]
) -> None:
    admin.override = reply
    assert isinstance(ending(crawl), verdict)


# Lists that move.


def passes(*seen: list[str], pages: int = 2, whole: bool = True) -> Callable[[], Pass]:
    """A reader that sees one after the other, the last one for ever."""
    todo = list(seen)

    def read_pass() -> Pass:
        rows = todo.pop(0) if len(todo) > 1 else todo[0]
        return Pass({sno: {} for sno in rows}, pages, whole)

    return read_pass


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        ([["3", "2", "1"], ["3", "2", "1"]], ["3", "2", "1"]),
        ([["3", "2", "1"], ["4", "3", "2", "1"]], ["4", "3", "2", "1"]),
        ([["3", "1"], ["3", "2", "1"], ["3", "2", "1"]], ["3", "2", "1"]),
        ([["3", "2", "1"], ["3", "1"], ["3", "1"]], ["3", "1"]),
        ([["3", "2"], ["3", "2", "1"], ["4", "3", "2", "1"]], ["4", "3", "2", "1"]),
    ],
    ids=[
        "at rest",
        "one came in",
        "one had slipped between two pages",
        "one went",
        "one had slipped at the end",
    ],
)
def test_passes_are_repeated_until_two_agree(seen: list[list[str]], wanted: list[str]) -> None:
    assert list(read_until_agreed(passes(*seen))) == wanted


def test_a_list_that_loses_its_pages_is_read_once_more() -> None:
    seen = [
        Pass({"3": {}, "2": {}, "1": {}}, 2, True),
        Pass({}, 1, True),
        Pass({"3": {}, "2": {}, "1": {}}, 2, True),
    ]
    seen.append(seen[-1])
    assert list(read_until_agreed(lambda: seen.pop(0))) == ["3", "2", "1"]


def test_a_list_that_never_rests_is_read_again_later() -> None:
    with pytest.raises(Retry, match="ListMoved"):
        read_until_agreed(passes(*[[str(n)] for n in range(PASSES + 1)]))


def test_passes_that_are_not_whole_never_agree() -> None:
    with pytest.raises(Retry, match="ListMoved"):
        read_until_agreed(passes(["2", "1"], whole=False))


@pytest.mark.parametrize(
    ("pages", "wanted"),
    [
        ({1: (["3", "2"], 2), 2: (["1"], 2)}, (["3", "2", "1"], 2, True)),
        ({1: (["3", "2"], 2), 2: (["1"], 3), 3: (["0"], 3)}, (["3", "2", "1", "0"], 3, True)),
        ({1: (["3", "2"], 2), 2: ([], 1)}, (["3", "2"], 2, False)),
        ({1: (["3", "2"], 2), 2: (["3", "2"], 2)}, (["3", "2"], 2, False)),
        ({1: (["5", "4"], 2), 2: (["3"], 1)}, (["5", "4", "3"], 2, True)),
    ],
    ids=[
        "two pages",
        "one more comes",
        "the last one went",
        "the page number is ignored",
        "fewer pages in the end",
    ],
)
def test_a_pass_reads_as_many_pages_as_there_ever_were(
    pages: dict[int, tuple[list[str], int]], wanted: tuple[list[str], int, bool]
) -> None:
    read = read_pages(lambda number: ({sno: {} for sno in pages[number][0]}, pages[number][1]))
    assert (list(read.rows), read.pages, read.whole) == wanted
