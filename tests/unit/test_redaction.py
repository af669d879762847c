"""Snapshots show shapes and no contents."""

from __future__ import annotations

import json

import pytest

from crawlfleet.sources.redaction import MAX_SNAPSHOT_CHARS, redact


def test_leaves_become_type_and_length_and_keys_stay() -> None:
    body = {"order_id": "planted", "count": 1234, "rate": 1.5, "paid": True, "note": None}
    assert json.loads(redact(json.dumps(body).encode())) == {
        "order_id": "str(7)",
        "count": "int(4)",
        "rate": "float(3)",
        "paid": "bool",
        "note": None,
    }


def test_a_long_list_is_shown_by_its_first_elements() -> None:
    assert redact(b'{"orders":[1,2,3,4,5]}') == '{"orders": ["int(1)", "int(1)", "int(1)", "2 more"]}'


@pytest.mark.parametrize(
    "key", ["01012345678", "planted@example.com", "홍길동", "a b", "x" * 65, "user20260310"]
)
def test_a_key_that_may_be_data_is_hidden(key: str) -> None:
    assert redact(json.dumps({key: 1}).encode()) == f'{{"key({len(key)})": "int(1)"}}'


def test_markup_keeps_the_names_of_known_tags_alone() -> None:
    page = (
        b'<HTML><body class="planted"><p>planted &lt;b&gt; <planted@example.com></p><script>planted</script>'
    )
    assert redact(page) == "<html><body><p><?><script>"


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"", "0 bytes, neither JSON nor markup"),
        (b"planted", "7 bytes, neither JSON nor markup"),
        (b'{"a":"planted', "13 bytes, neither JSON nor markup"),
        (b"\xff\xfe\x00", "3 bytes, neither JSON nor markup"),
        (b"[" * 100_000, "100000 bytes, neither JSON nor markup"),
        (b'"planted"', '"str(7)"'),
    ],
)
def test_anything_else_is_only_measured(body: bytes, shown: str) -> None:
    assert redact(body) == shown


def test_a_snapshot_is_bounded() -> None:
    wide = json.dumps({f"field_{'x' * (no % 50)}": no for no in range(1000)} | {"a" * 60: ["b"] * 5}).encode()
    assert len(redact(b"<div>" * 10_000)) == MAX_SNAPSHOT_CHARS
    assert len(redact(b"[" * 500 + b"]" * 500)) < 200
    assert len(redact(wide)) <= MAX_SNAPSHOT_CHARS
