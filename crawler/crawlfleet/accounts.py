"""Account files: JSONL or CSV, read line by line into typed accounts.

First step of `crawlfleet accounts import`. The first bad line ends it, named with its number; no message repeats
what a line holds, since any part of it may be a misplaced password. Sealing and storing are for others.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO, Literal, NoReturn, cast

from crawlfleet.errors import BadInput
from crawlfleet.sources import KST, Credentials

Format = Literal["jsonl", "csv"]
Subscription = Literal["paid", "free"]
Check = Callable[[str, Credentials], None]

MAX_USER_ID = 2**63 - 1
MAX_LINE_BYTES = 2**20

_REQUIRED = ("user_id", "source", "subscription", "credentials")
_KNOWN = (*_REQUIRED, "last_login_at")
_CREDENTIAL = "credentials."
_SOURCE_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class UnknownSource(BadInput):
    """Nobody has declared a source of that name."""


@dataclass(frozen=True)
class Account:
    """One user's account at one source, as imported; `last_login_at` in UTC."""

    user_id: int
    source: str
    subscription: Subscription
    last_login_at: datetime | None
    credentials: Credentials = field(repr=False)


def format_of(name: str) -> Format:
    """The format of the file of that name; `-` is standard input, JSONL. BadInput if the extension tells none."""
    if name == "-" or name.lower().endswith(".jsonl"):
        return "jsonl"
    if name.lower().endswith(".csv"):
        return "csv"
    raise BadInput(f"{name}: expected a file that ends in .jsonl or .csv, or - for JSONL on standard input")


def read_accounts(
    file: BinaryIO,
    name: str,
    format: Format,  # noqa: A002 - what the command line calls it
    check: Check,
) -> Iterator[Account]:
    """Yield the accounts of a file opened in binary, in its order, holding one line and the keys seen so far.

    `check(source, credentials)` raises BadInput if an account of that source cannot work with these, `{}`
    included, UnknownSource if there is no such source. Raises BadInput "NAME line N: reason" at the first bad line, so write nothing before the end.
    """
    seen: dict[tuple[str, int], int] = {}
    records = _csv_records(file, name) if format == "csv" else _json_records(file, name)
    for number, record in records:
        try:
            account = _account(record, check)
        except BadInput as exc:
            raise BadInput(f"{name} line {number}: {exc}") from exc
        first = seen.setdefault((account.source, account.user_id), number)
        if first != number:
            raise BadInput(
                f"{name} line {number}: user {account.user_id} at {account.source} stands already on line {first}"
            )
        yield account


def _account(record: dict[str, Any], check: Check) -> Account:
    missing = [key for key in _REQUIRED if record.get(key) is None]
    if missing:
        raise BadInput(f"missing {', '.join(missing)}")
    credentials = record["credentials"]
    if not isinstance(credentials, dict):
        raise BadInput('credentials: expected a mapping such as {"mall_id": ...}')
    account = Account(
        user_id=_user_id(record["user_id"]),
        source=_source(record["source"]),
        subscription=_subscription(record["subscription"]),
        last_login_at=_login(record.get("last_login_at")),
        credentials=credentials,
    )
    try:
        check(account.source, credentials)
    except UnknownSource as exc:
        raise BadInput(f"source: {exc}") from exc
    except BadInput as exc:
        raise BadInput(f"credentials: {exc}" if credentials else f"credentials are empty: {exc}") from exc
    return account


def _user_id(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_USER_ID:
        raise BadInput(f"user_id: expected a whole number from 1 to {MAX_USER_ID}")
    return value


def _source(value: Any) -> str:
    if not isinstance(value, str) or not _SOURCE_NAME.fullmatch(value):
        raise BadInput("source: expected the name of a CrawlSource, such as cafe24")
    return value


def _subscription(value: Any) -> Subscription:
    if value not in ("paid", "free"):
        raise BadInput("subscription: expected paid or free")
    return cast(Subscription, value)


def _login(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        # In UTC, since PostgreSQL takes no offset of 16 hours or more, as Python does.
        return (moment.replace(tzinfo=KST) if moment.tzinfo is None else moment).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        raise BadInput("last_login_at: expected a time such as 2026-11-20T09:00:00+09:00") from None


# Lines and what stands on them.


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, ends kept, without a byte order mark."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            _refuse(name, number, f"longer than {MAX_LINE_BYTES} bytes; one account is one line")
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            _refuse(name, number, "not UTF-8; save the file as UTF-8")


def _refuse(name: str, number: int, reason: str) -> NoReturn:
    # From None: a decoder's exception holds the line, credentials and all.
    raise BadInput(f"{name} line {number}: {reason}") from None


def _json_records(file: BinaryIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(file, name):
        if line.strip():
            yield number, _json_record(line, name, number)


def _json_record(line: str, name: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
    except BadInput as exc:
        _refuse(name, number, str(exc))
    except json.JSONDecodeError as exc:
        _refuse(name, number, f"not JSON: {exc.msg}, column {exc.colno}")
    except (ValueError, RecursionError):
        _refuse(name, number, "not JSON that can be read: a number or the nesting goes too far")
    if not isinstance(record, dict):
        _refuse(name, number, "expected a JSON object")
    unknown = sorted(record.keys() - set(_KNOWN))
    if unknown:
        _refuse(name, number, f"unknown key {unknown[0][:40]!r}; known: {', '.join(_KNOWN)}")
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise BadInput("a key stands twice in one object")
    return record


def _no_constant(constant: str) -> NoReturn:
    raise BadInput(f"not JSON: {constant}")


def _csv_records(file: BinaryIO, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = _csv_rows(file, name)
    number, columns = next(rows, (1, []))
    _check_columns(columns, name, number)
    for number, row in rows:
        if len(row) != len(columns):
            _refuse(name, number, f"expected {len(columns)} cells as in the header, not {len(row)}")
        yield number, _csv_record(dict(zip(columns, row, strict=True)))


def _csv_rows(file: BinaryIO, name: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its first line: a quoted cell may hold line ends."""
    reader = csv.reader((line for _, line in _lines(file, name)), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as exc:
            _refuse(name, number, f"not CSV: {exc}")
        if row is None:
            return
        if row:
            yield number, row


def _check_columns(columns: list[str], name: str, number: int) -> None:
    missing = [column for column in _REQUIRED if column != "credentials" and column not in columns]
    if missing:
        # Without a header this is an account: nothing of it may be shown.
        _refuse(name, number, f"expected the names of the columns; missing {', '.join(missing)}")
    for column in columns:
        if columns.count(column) > 1:
            _refuse(name, number, f"column {column[:40]!r} stands twice")
        if not _is_known(column):
            known = ", ".join((*(key for key in _KNOWN if key != "credentials"), "credentials.NAME"))
            _refuse(name, number, f"unknown column {column[:40]!r}; known: {known}")


def _is_known(column: str) -> bool:
    if column.startswith(_CREDENTIAL):
        return len(column) > len(_CREDENTIAL)
    return column in _KNOWN and column != "credentials"


def _csv_record(cells: dict[str, str]) -> dict[str, Any]:
    """A row as the same account would stand in JSONL; an empty cell is absent."""
    filled = {column: cell for column, cell in cells.items() if cell}
    record: dict[str, Any] = {
        column: cell for column, cell in filled.items() if not column.startswith(_CREDENTIAL)
    }
    record["credentials"] = {
        column.removeprefix(_CREDENTIAL): cell
        for column, cell in filled.items()
        if column.startswith(_CREDENTIAL)
    }
    user_id = record.get("user_id", "")
    if re.fullmatch("[0-9]{1,19}", user_id):
        record["user_id"] = int(user_id)
    return record
