"""JSON lists read as a stream: one record at a time, and nothing but the asked shape."""

from __future__ import annotations

import tracemalloc
from io import BytesIO
from typing import Any

import pytest
import requests

from crawlfleet.errors import Bug, Retry
from crawlfleet.sources.http import CheckedBody
from crawlfleet.sources.replies import HEAD_BYTES, Body, read_list, read_object


class Stream(BytesIO):
    def read(self, size: int | None = -1, decode_content: bool = False) -> bytes:
        return super().read(size)


def body_of(content: bytes) -> Body:
    response = requests.Response()
    response.raw = CheckedBody(Stream(content), lambda: None)
    return Body(response)


def orders(content: bytes) -> list[dict[str, Any]]:
    return list(read_list(body_of(content), "orders"))


def test_records_come_as_they_were_sent() -> None:
    content = (
        '{"links":[{"a":{"orders":[7]}}],"orders":[{"n":1.5,"s":"가","l":[{"orders":[]}],"e":{}},{}],"x":1}'
    )
    assert orders(content.encode()) == [{"n": 1.5, "s": "가", "l": [{"orders": []}], "e": {}}, {}]


def test_an_empty_list_is_an_empty_list() -> None:
    assert orders(b'{"orders": []}') == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n",
        b"<html>planted</html>",
        b"[]",
        b'"planted"',
        b"{}",
        b'{"products":[]}',
        b'{"orders":null}',
        b'{"orders":{}}',
        b'{"orders":{"item":{"planted":1}}}',
        b'{"data":{"orders":[]}}',
        b'{"orders":[[]]}',
        b'{"orders":["planted"]}',
        b'{"orders":[null]}',
        b'{"orders":[],"error":{"message":"planted"}}',
        b'{"error":null,"orders":[]}',
        b'{"orders":[]}planted',
        b'{"orders":[{"a":NaN}]}',
        b'{"orders":[{"a":123456789012345678901234567890}]}',
        b'{"orders":[{"a":"\xff"}]}',
    ],
)
def test_any_other_shape_is_a_bug_with_a_redacted_snapshot(content: bytes) -> None:
    with pytest.raises(Bug) as raised:
        orders(content)
    assert raised.value.reason == "UnexpectedReply"
    assert raised.value.snapshot is not None
    assert "planted" not in f"{raised.value} {raised.value.snapshot}".replace('"planted": "int(1)"', "")


@pytest.mark.parametrize("content", [b"{", b'{"orders":[{"a":"plan', b'{"orders":[{}]', b'{"orders":[]'])
def test_a_reply_that_ends_too_early_is_tried_again(content: bytes) -> None:
    with pytest.raises(Retry) as raised:
        orders(content)
    assert "plan" not in str(raised.value)


def test_deep_nesting_is_refused_before_it_costs_memory() -> None:
    with pytest.raises(Bug, match="nested too deep"):
        orders(b'{"orders":[' + b'{"a":' * 100_000)


def test_a_large_page_costs_the_memory_of_one_record() -> None:
    content = (
        b'{"orders":['
        + b",".join(b'{"order_id":"%06d","x":"%0500d"}' % (n, n) for n in range(20_000))
        + b"]}"
    )
    body = body_of(content)
    tracemalloc.start()
    assert sum(1 for _ in read_list(body, "orders")) == 20_000
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2_000_000 < len(content) / 5


def test_the_head_is_kept_for_a_snapshot_and_no_more() -> None:
    body = body_of(b" " * (3 * HEAD_BYTES))
    assert len(body.read_head()) == HEAD_BYTES
    assert len(body.read(100)) == 100
    assert len(body.head) == HEAD_BYTES


def test_a_small_reply_is_read_whole() -> None:
    assert read_object(body_of(b'{"count": 3}')) == {"count": 3}


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"<html>", b'{"error":{}}', b"[" * 50_000])
def test_a_small_reply_of_another_shape_is_a_bug(content: bytes) -> None:
    with pytest.raises(Bug):
        read_object(body_of(content))
