"""Account files: what is read, what is refused, and that no message repeats a credential."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from crawlfleet.accounts import Account, Format, format_of, read_accounts
from crawlfleet.errors import BadInput
from crawlfleet.sources import Credentials

PASSWORD = "hunter2-planted"
LINE: dict[str, Any] = {
    "user_id": 17,
    "source": "ably",
    "subscription": "paid",
    "last_login_at": "2026-11-20T09:00:00+09:00",
    "credentials": {"email": "seller@example.com", "password": PASSWORD},
}
HEADER = "user_id,source,subscription,last_login_at,credentials.email,credentials.password\n"
ROW = f"17,ably,paid,2026-11-20T09:00:00+09:00,seller@example.com,{PASSWORD}\n"


def anything_goes(source: str, credentials: Credentials) -> None:
    """A source that takes every account."""


def needs_password(source: str, credentials: Credentials) -> None:
    if not credentials.get("password"):
        raise BadInput("password is missing")


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def read(content: bytes, fmt: Format = "jsonl", check: Any = anything_goes) -> list[Account]:
    return list(read_accounts(io.BytesIO(content), "FILE", fmt, check))


def refusal(content: bytes, fmt: Format = "jsonl", check: Any = anything_goes) -> str:
    with pytest.raises(BadInput) as refused:
        read(content, fmt, check)
    return str(refused.value)


def test_a_json_line_becomes_an_account() -> None:
    assert read(jsonl(LINE)) == [
        Account(17, "ably", "paid", datetime(2026, 11, 20, tzinfo=UTC), LINE["credentials"])
    ]


def test_a_csv_row_becomes_the_same_account_as_a_json_line() -> None:
    assert read((HEADER + ROW).encode(), "csv") == read(jsonl(LINE))


def test_an_empty_cell_is_absent() -> None:
    (account,) = read(f"{HEADER}17,ably,free,,,{PASSWORD}\n".encode(), "csv")
    assert account.last_login_at is None
    assert account.credentials == {"password": PASSWORD}


def test_a_time_without_a_zone_is_korean() -> None:
    (account,) = read(jsonl(LINE | {"last_login_at": "2026-11-20T09:00:00"}))
    assert account.last_login_at == datetime(2026, 11, 20, 0, 0, tzinfo=UTC)


def test_last_login_is_optional() -> None:
    (account,) = read(jsonl({key: value for key, value in LINE.items() if key != "last_login_at"}))
    assert account.last_login_at is None


@pytest.mark.parametrize(("fmt", "content"), [("jsonl", jsonl(LINE)), ("csv", (HEADER + ROW).encode())])
def test_a_byte_order_mark_is_skipped(fmt: Format, content: bytes) -> None:
    assert len(read(b"\xef\xbb\xbf" + content, fmt)) == 1


def test_blank_lines_are_skipped_but_counted() -> None:
    assert refusal(jsonl(LINE) + b"\n \r\n" + b"{}\n").startswith("FILE line 4: missing user_id")


def test_lines_may_end_as_on_windows() -> None:
    assert read((HEADER + ROW).replace("\n", "\r\n").encode(), "csv") == read(jsonl(LINE))


def test_the_last_line_needs_no_end() -> None:
    assert len(read(jsonl(LINE).rstrip())) == 1


def test_the_repr_hides_the_credentials() -> None:
    assert PASSWORD not in repr(read(jsonl(LINE)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user_id": 0}, "user_id: expected a whole number from 1 to 9223372036854775807"),
        ({"user_id": 2**63}, "user_id: expected"),
        ({"user_id": "17"}, "user_id: expected"),
        ({"user_id": True}, "user_id: expected"),
        ({"user_id": 17.0}, "user_id: expected"),
        ({"user_id": None}, "missing user_id"),
        ({"source": "Ably!"}, "source: expected the name of a CrawlSource"),
        ({"source": "ably\n"}, "source: expected"),
        ({"subscription": "gold"}, "subscription: expected paid or free"),
        ({"subscription": ["paid"]}, "subscription: expected paid or free"),
        ({"last_login_at": "yesterday"}, "last_login_at: expected a time"),
        ({"last_login_at": 1700000000}, "last_login_at: expected a time"),
        ({"last_login_at": "0001-01-01T00:00:00"}, "last_login_at: expected a time"),
        ({"credentials": None}, "missing credentials"),
        ({"credentials": PASSWORD}, "credentials: expected a mapping"),
        ({"credentials": [PASSWORD]}, "credentials: expected a mapping"),
        ({"pasword": PASSWORD}, "unknown key 'pasword'; known: user_id, source"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_reason(change: dict[str, Any], reason: str) -> None:
    message = refusal(jsonl(LINE | {"user_id": 1}, LINE | change))
    assert message.startswith(f"FILE line 2: {reason}")
    assert PASSWORD not in message


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"user_id": ' + PASSWORD.encode() + b"}", "not JSON: Expecting value, column 13"),
        (b'["' + PASSWORD.encode() + b'"]', "expected a JSON object"),
        (b'{"user_id": 1, "user_id": 2}', "a key stands twice in one object"),
        (b'{"credentials": {"a": 1, "a": 2}}', "a key stands twice in one object"),
        (b'{"credentials": {"a": NaN}}', "not JSON: NaN"),
        (b'{"user_id": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
        (b"[" * 100_000, "not JSON that can be read"),
        (b'{"a": "' + PASSWORD.encode() + b'\xff"}', "not UTF-8"),
        (b'{"a": "' + PASSWORD.encode() + b"a" * 2**20 + b'"}', "longer than 1048576 bytes"),
    ],
    ids=["broken", "list", "twice", "twice inside", "NaN", "digits", "depth", "bytes", "length"],
)
def test_a_line_that_is_no_object_is_refused(line: bytes, reason: str) -> None:
    message = refusal(jsonl(LINE) + line + b"\n")
    assert message.startswith(f"FILE line 2: {reason}")
    assert PASSWORD not in message


def test_the_same_user_and_source_twice_are_refused() -> None:
    assert refusal(jsonl(LINE, LINE | {"user_id": 1}, LINE)) == (
        "FILE line 3: user 17 at ably stands already on line 1"
    )


def test_one_user_may_have_accounts_at_two_sources() -> None:
    assert [account.source for account in read(jsonl(LINE, LINE | {"source": "cafe24"}))] == [
        "ably",
        "cafe24",
    ]


def test_the_source_decides_whether_credentials_are_enough() -> None:
    message = refusal(jsonl(LINE | {"credentials": {"email": "seller@example.com"}}), check=needs_password)
    assert message == "FILE line 1: credentials: password is missing"


def test_empty_credentials_are_for_the_source_to_judge() -> None:
    empty = jsonl(LINE | {"credentials": {}})
    assert read(empty)[0].credentials == {}
    assert refusal(empty, check=needs_password) == "FILE line 1: credentials are empty: password is missing"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (ROW, "line 1: expected the names of the columns; missing user_id, source, subscription"),
        ("", "line 1: expected the names of the columns"),
        (
            HEADER.replace("last_login_at", "lastlogin") + ROW,
            "line 1: unknown column 'lastlogin'; known: user_id",
        ),
        (HEADER.replace(".email", ".password") + ROW, "line 1: column 'credentials.password' stands twice"),
        (HEADER.replace(".email", ".") + ROW, "line 1: unknown column 'credentials.'"),
        (HEADER.replace("credentials.email", "credentials") + ROW, "line 1: unknown column 'credentials'"),
        (HEADER + ROW.replace("\n", ",x\n"), "line 2: expected 6 cells as in the header, not 7"),
        (HEADER + ROW.replace("17", "seventeen"), "line 2: user_id: expected a whole number"),
        (HEADER + ROW.replace("17", "9" * 5000), "line 2: user_id: expected a whole number"),
        (HEADER + "\n" + ROW.replace("17", ""), "line 3: missing user_id"),
        (HEADER + ROW.replace("17", '"17"x'), "line 2: not CSV"),
        (HEADER + ROW.replace("17", '"17'), "line 2: not CSV: unexpected end of data"),
    ],
)
def test_a_bad_csv_file_is_refused(content: str, reason: str) -> None:
    message = refusal(content.encode(), "csv")
    assert message.startswith(f"FILE {reason}")
    assert PASSWORD not in message


def test_a_row_is_named_by_its_first_line_when_a_cell_holds_line_ends() -> None:
    two_lines = '17,ably,paid,,"a\nb",c\n'
    assert refusal((HEADER + two_lines + ROW).encode(), "csv") == (
        "FILE line 4: user 17 at ably stands already on line 2"
    )


def test_a_csv_file_that_is_not_utf8_is_named_with_the_line() -> None:
    assert refusal((HEADER + ROW).encode() + "한국".encode("cp949"), "csv").startswith(
        "FILE line 3: not UTF-8"
    )


def test_accounts_are_handed_out_before_the_file_has_ended() -> None:
    """Streaming: a file larger than memory is read line by line."""
    file = io.BytesIO(jsonl(LINE) + b"broken\n")
    accounts = read_accounts(file, "FILE", "jsonl", anything_goes)
    assert next(accounts).user_id == 17
    with pytest.raises(BadInput, match="line 2"):
        next(accounts)


@pytest.mark.parametrize(("name", "fmt"), [("-", "jsonl"), ("a/b.jsonl", "jsonl"), ("B.CSV", "csv")])
def test_the_extension_tells_the_format(name: str, fmt: Format) -> None:
    assert format_of(name) == fmt


def test_an_unknown_extension_is_refused() -> None:
    with pytest.raises(BadInput, match=r"accounts\.xlsx: expected a file that ends in \.jsonl or \.csv"):
        format_of("accounts.xlsx")
