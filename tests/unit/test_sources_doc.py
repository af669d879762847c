"""The example of docs/sources.md is run as it stands there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from direct_crawl import DirectCrawl
from scripted_shop import Reply, Request, ScriptedShop, html_reply, json_reply

from crawlfleet.errors import AuthFailed, BadInput, Bug
from crawlfleet.sources import Adapter

DOC = Path(__file__).parents[2] / "docs" / "sources.md"


@pytest.fixture
def adapter() -> Adapter:
    [code] = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "example_shop.py", "exec"), names)
    built: Adapter = names["ExampleShop"]({"per_page": 2})
    return built


def answer(request: Request) -> Reply:
    if request.headers["X-Api-Key"] != "k1":
        return html_reply(401)
    first = 2 * (int(request.query["page"]) - 1)
    return json_reply({"orders": [{"id": no} for no in range(first, min(first + 2, 3))]})


@pytest.fixture
def shop() -> Iterator[ScriptedShop]:
    with ScriptedShop(answer) as shop:
        yield shop


@pytest.fixture
def crawl(shop: ScriptedShop) -> Iterator[DirectCrawl]:
    crawl = DirectCrawl(shop.url, {"api_key": "k1"})
    yield crawl
    crawl.close()


def test_the_example_reads_all_pages(adapter: Adapter, crawl: DirectCrawl) -> None:
    assert [item.external_id for item in adapter.crawl(crawl)] == ["0", "1", "2"]


def test_the_example_names_a_refused_key(adapter: Adapter, crawl: DirectCrawl) -> None:
    crawl.credentials = {"api_key": "k2"}
    with pytest.raises(AuthFailed):
        next(adapter.crawl(crawl))


def test_the_example_takes_no_login_page_for_an_empty_shop(
    adapter: Adapter, crawl: DirectCrawl, shop: ScriptedShop
) -> None:
    shop.answer = lambda request: html_reply(200)
    with pytest.raises(Bug):
        next(adapter.crawl(crawl))


def test_the_example_checks_credentials(adapter: Adapter) -> None:
    with pytest.raises(BadInput, match="api_key"):
        adapter.check_credentials({})
