"""What Cafe24's replies mean, as pure functions."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from crawlfleet.errors import AuthFailed, Blocked, Bug, CrawlEnded, Retry, Throttled
from crawlfleet.sources.cafe24_replies import classify, classify_refresh, moment, renewed, wait_hint_s

NOW = datetime.fromisoformat("2026-03-10T12:00:00+09:00")
REFUSED = b'{"error":"invalid_grant","error_description":"planted"}'


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "reason"),
    [
        (401, {}, b"", AuthFailed, "AccessRefused"),
        (403, {}, b' {"error":{}}', AuthFailed, "ScopeMissing"),
        (403, {"Content-Type": "application/json"}, b"", AuthFailed, "ScopeMissing"),
        (403, {"Content-Type": "application/json"}, b"<html>", Blocked, "BanPage"),
        (403, {}, b"", Blocked, "BanPage"),
        (404, {}, b"{}", Bug, "Rejected"),
        (400, {}, b"{}", Bug, "Rejected"),
        (408, {}, b"", Retry, "ServerError"),
        (500, {}, b"", Retry, "ServerError"),
        (504, {}, b"", Retry, "ServerError"),
        (503, {"Retry-After": "soon"}, b"", Retry, "ServerError"),
        (301, {}, b"", Retry, "Redirected"),
        (207, {}, b"{}", Bug, "UnexpectedReply"),
    ],
)
def test_a_status_has_one_verdict(
    status: int, headers: dict[str, str], body: bytes, kind: type[CrawlEnded], reason: str
) -> None:
    ending = classify("GET orders", status, headers, body, NOW)
    assert ending is not None
    assert (type(ending), ending.reason) == (kind, reason)


def test_200_is_left_to_whoever_reads_the_body() -> None:
    assert classify("GET orders", 200, {}, b"<html>", NOW) is None


def test_a_throttle_belongs_to_the_mall_and_maintenance_to_all() -> None:
    throttled = classify("GET orders", 429, {}, b"", NOW)
    maintenance = classify("GET orders", 503, {"Retry-After": "60"}, b"", NOW)
    assert isinstance(throttled, Throttled)
    assert (throttled.account_only, throttled.retry_after_s) == (True, 1.0)
    assert isinstance(maintenance, Throttled)
    assert (maintenance.account_only, maintenance.retry_after_s) == (False, 60.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "5"}, 5.0),
        ({"Retry-After": "Tue, 10 Mar 2026 03:00:30 GMT"}, 30.0),
        ({"Retry-After": "Tue, 10 Mar 2026 03:00:30 -0000"}, 30.0),
        ({"Retry-After": "Tue, 10 Mar 2026 02:00:00 GMT"}, 0.0),
        ({"X-Cafe24-Call-Remain": "32", "X-Cafe24-Time-Remain": "8"}, 32.0),
        ({"Retry-After": "1", "X-Cafe24-Time-Remain": "8"}, 8.0),
        ({"Retry-After": "1e300"}, 86_400.0),
        *(({"Retry-After": bad}, None) for bad in ("", "soon", "nan", "inf", "-3")),
    ],
)
def test_the_longest_hint_counts(headers: dict[str, str], seconds: float | None) -> None:
    assert wait_hint_s(headers, NOW) == seconds


def test_only_words_that_cannot_be_private_are_quoted() -> None:
    known = classify("GET orders", 422, {}, b'{"error":{"code":"invalid_request","message":"planted"}}', NOW)
    strange = classify("GET orders", 422, {}, b'{"error":{"code":"planted"}}', NOW)
    assert "invalid_request" in str(known)
    assert "planted" not in f"{known} {strange}"


# The token endpoint.


@pytest.mark.parametrize("status", [400, 401, 403, 422])
@pytest.mark.parametrize(
    "body",
    [REFUSED, b'{"error":{"code":401,"message":"planted"}}', b'{"error_code":"x","error_message":"planted"}'],
)
def test_three_shapes_of_error_refuse_the_refresh_token(status: int, body: bytes) -> None:
    ending = classify_refresh(status, {}, body, NOW)
    assert isinstance(ending, AuthFailed)
    assert ending.reason == "RefreshRefused"
    assert "planted" not in str(ending)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, REFUSED, Throttled),
        (408, REFUSED, Retry),
        (500, REFUSED, Retry),
        (302, REFUSED, Retry),
        (400, b"<html>", Retry),
        (401, b"", Retry),
        (400, b"{}", Retry),
        (400, b'{"error":"inval', Retry),
        (403, b"<html>", Blocked),
    ],
)
def test_anything_else_does_not_decide_against_the_token(
    status: int, body: bytes, kind: type[CrawlEnded]
) -> None:
    assert isinstance(classify_refresh(status, {}, body, NOW), kind)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"refresh_token":"planted'])
def test_an_unreadable_200_teaches_nothing(body: bytes) -> None:
    with pytest.raises(Retry) as raised:
        renewed({}, body, NOW)
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize("token", [None, "", 7])
def test_a_200_without_a_refresh_token_is_a_bug_that_quotes_nothing(token: object) -> None:
    with pytest.raises(Bug) as raised:
        renewed({}, json.dumps({"access_token": "planted", "refresh_token": token}).encode(), NOW)
    assert "planted" not in str(raised.value)
    assert raised.value.snapshot is None


@pytest.mark.parametrize("expires_at", [None, "", "soon", 1741572000, "9999-12-31T23:59:59-10:00"])
def test_a_token_of_unknown_age_is_given_two_hours(expires_at: object) -> None:
    reply = {"access_token": "a", "refresh_token": "r", "expires_at": expires_at}
    new = renewed({}, json.dumps(reply).encode(), NOW)
    assert new["expires_at"] == "2026-03-10T14:00:00+09:00"


def test_an_access_token_that_no_header_can_hold_is_dropped() -> None:
    reply = {"access_token": "a\r\nX: y", "refresh_token": "r"}
    assert renewed({}, json.dumps(reply).encode(), NOW)["access_token"] is None


def test_a_time_without_a_zone_is_korean() -> None:
    assert moment("2021-03-01T14:00:00.000") == datetime.fromisoformat("2021-03-01T05:00:00+00:00")
