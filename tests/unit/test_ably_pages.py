"""What a page or a reply of Ably's seller admin means: by its markers, then its status, then its words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from crawlfleet.errors import AuthFailed, Blocked, Bug, CrawlEnded, Retry, Throttled
from crawlfleet.sources.ably_pages import (
    Facts,
    Sight,
    classify,
    classify_reply,
    ending,
    login_ending,
    login_status,
    orders_of,
)

NOW = datetime(2026, 3, 10, tzinfo=UTC)
ROWS = {"1": {"sno": "1"}}


@pytest.mark.parametrize(
    ("facts", "sight"),
    [
        (Facts(status=200, login=True), Sight.LOGIN),
        (Facts(status=200, login=True, login_error=True), Sight.REFUSED),
        (Facts(status=200, login=True, text="보안문자를 입력하세요"), Sight.CAPTCHA),
        (Facts(status=200, text="2단계 인증: 인증번호 6자리"), Sight.TWO_FACTOR),
        (Facts(status=200, text="자동 입력 방지"), Sight.CAPTCHA),
        (Facts(status=403, text="Access from your network has been blocked"), Sight.BANNED),
        (Facts(status=403), Sight.BANNED),
        (Facts(status=200, text="비정상적인 접근이 감지되어 차단되었습니다"), Sight.BANNED),
        (Facts(status=503), Sight.MAINTENANCE),
        (Facts(status=200, text="서비스 점검 중입니다"), Sight.MAINTENANCE),
        (Facts(status=429), Sight.RATE_LIMITED),
        (Facts(status=200, api_status=429, loading=True), Sight.RATE_LIMITED),
        (Facts(status=200, expired=True), Sight.EXPIRED),
        (Facts(status=200, api_status=401, empty=True), Sight.EXPIRED),
        (Facts(status=200, loading=True), Sight.LOADING),
        (Facts(status=200, api_status=200, rows=ROWS), Sight.ORDERS),
        (Facts(status=200, api_status=200, empty=True), Sight.EMPTY),
        (Facts(status=200, api_status=500, home=True, load_error=True), Sight.FAILED),
        (Facts(status=200, api_status=200, home=True, load_error=True), Sight.FAILED),
        (Facts(status=200, home=True), Sight.HOME),
        (Facts(status=200, text="Welcome"), Sight.UNKNOWN),
    ],
    ids=lambda value: value.name if isinstance(value, Sight) else "",
)
def test_a_page_is_what_it_shows(facts: Facts, sight: Sight) -> None:
    assert classify(facts) is sight


@pytest.mark.parametrize("api_status", [400, 401, 403, 422, 429, 500, 503])
def test_an_empty_state_after_a_failed_request_is_never_an_empty_list(api_status: int) -> None:
    assert classify(Facts(status=200, api_status=api_status, empty=True)) is not Sight.EMPTY


@pytest.mark.parametrize(
    ("sight", "verdict", "reason"),
    [
        (Sight.BANNED, Blocked, "BanPage"),
        (Sight.MAINTENANCE, Throttled, "Maintenance"),
        (Sight.RATE_LIMITED, Throttled, "TooManyRequests"),
        (Sight.CAPTCHA, Throttled, "Captcha"),
        (Sight.TWO_FACTOR, AuthFailed, "TwoFactor"),
        (Sight.FAILED, Retry, "ServerError"),
        (Sight.LOADING, Retry, "TableTimeout"),
    ],
)
def test_a_page_that_ends_a_crawl(sight: Sight, verdict: type[CrawlEnded], reason: str) -> None:
    ended = ending(sight, Facts(url="http://shop.example.com/orders", status=200))
    assert isinstance(ended, verdict)
    assert ended.reason == reason


@pytest.mark.parametrize(
    "sight", [Sight.LOGIN, Sight.EXPIRED, Sight.EMPTY, Sight.ORDERS, Sight.HOME, Sight.UNKNOWN]
)
def test_other_pages_are_for_the_adapter_to_go_on_from(sight: Sight) -> None:
    assert ending(sight, Facts()) is None


@pytest.mark.parametrize(
    ("sight", "reason"),
    [(Sight.REFUSED, "LoginRefused"), (Sight.CAPTCHA, "Captcha"), (Sight.TWO_FACTOR, "TwoFactor")],
)
def test_a_login_that_needs_a_person_ends_auth(sight: Sight, reason: str) -> None:
    ended = login_ending(sight, Facts())
    assert isinstance(ended, AuthFailed)
    assert ended.reason == reason


@pytest.mark.parametrize("sight", [Sight.LOGIN, Sight.UNKNOWN, Sight.EXPIRED, Sight.LOADING])
def test_a_login_that_led_nowhere_is_not_taken_for_one_that_succeeded(sight: Sight) -> None:
    assert isinstance(login_ending(sight, Facts()), Retry)


@pytest.mark.parametrize("sight", [Sight.HOME, Sight.ORDERS, Sight.EMPTY])
def test_a_login_that_led_inside_succeeded(sight: Sight) -> None:
    assert login_ending(sight, Facts()) is None


WALL = b'<html><form><input name="email"><input name="password"></form></html>'


@pytest.mark.parametrize(
    ("status", "headers", "body", "wanted"),
    [
        (200, {}, b'{"order_items": []}', Sight.ORDERS),
        (401, {}, b'{"detail": "expired"}', Sight.EXPIRED),
        (200, {}, WALL, Sight.EXPIRED),
        (429, {"Retry-After": "7"}, b"{}", "TooManyRequests"),
        (403, {}, b"<html>blocked</html>", "BanPage"),
        (200, {}, "<h1>차단되었습니다</h1>".encode(), "BanPage"),
        (503, {}, b"", "Maintenance"),
        (200, {}, "<h1>서비스 점검</h1>".encode(), "Maintenance"),
        (500, {}, b"{}", "ServerError"),
        (302, {"Location": "/login"}, b"", "ServerError"),
        (404, {}, b"{}", "Rejected"),
        (200, {}, b"<html><p>hello</p></html>", "UnexpectedReply"),
        (200, {}, b"", "UnexpectedReply"),
    ],
)
def test_a_reply_is_judged_by_status_and_content(
    status: int, headers: Mapping[str, str], body: bytes, wanted: object
) -> None:
    judged = classify_reply(status, headers, body, NOW)
    assert (judged.reason if isinstance(judged, CrawlEnded) else judged) == wanted


def test_a_throttle_keeps_the_shops_own_time() -> None:
    judged = classify_reply(429, {"Retry-After": "7"}, b"{}", NOW)
    assert isinstance(judged, Throttled)
    assert judged.retry_after_s == 7.0


def test_a_page_that_says_how_long_to_wait_is_believed() -> None:
    ended = ending(Sight.RATE_LIMITED, Facts(text="요청이 너무 많습니다. 7초 후 다시 시도해 주세요."))
    assert isinstance(ended, Throttled)
    assert ended.retry_after_s == 7.0


@pytest.mark.parametrize(
    "body",
    [
        b'{"error": "internal"}',
        b'{"error": "internal", "order_items": [], "max_page_number": 0}',
        b'{"order_items": []}',
        b'{"code": "E1", "message": "no", "order_items": [], "max_page_number": 0}',
        b'{"order_items": {}, "max_page_number": 1}',
        b'{"order_items": [1], "max_page_number": 1}',
        b'{"order_items": [], "max_page_number": true}',
        b"[]",
        b"{",
    ],
)
def test_an_error_in_a_200_is_never_an_empty_list(body: bytes) -> None:
    with pytest.raises(Bug, match="UnexpectedReply"):
        orders_of(body)


def test_a_page_of_orders_tells_its_items_and_the_number_of_pages() -> None:
    items: list[dict[str, Any]] = [{"sno": 1}, {"sno": 2}]
    assert orders_of(b'{"order_items": [{"sno": 1}, {"sno": 2}], "max_page_number": 3}') == (items, 3)


@pytest.mark.parametrize(
    ("status", "reason"), [(403, "BanPage"), (429, "TooManyRequests"), (503, "Maintenance")]
)
def test_a_login_that_was_not_judged_does_not_count(status: int, reason: str) -> None:
    ended = login_ending(Sight.FAILED, Facts(login=True, load_error=True), status)
    assert ended is not None
    assert (ended.reason, ended.never_sent) == (reason, True)


@pytest.mark.parametrize("status", [403, 429, 503])
@pytest.mark.parametrize("sight", [Sight.REFUSED, Sight.CAPTCHA, Sight.TWO_FACTOR])
def test_a_login_that_needs_a_person_does_so_whatever_its_status(sight: Sight, status: int) -> None:
    ended = login_ending(sight, Facts(login=True), status)
    assert isinstance(ended, AuthFailed)
    assert not ended.never_sent


LOST, NEVER_SENT = Retry("ConnectionLost"), Retry("ConnectFailed", never_sent=True)


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ([], 0),
        ([503], 503),
        ([429, 429], 429),
        ([401, 503], 0),
        ([0, 503], 0),
        ([LOST], 0),
        ([NEVER_SENT, 200], 0),
    ],
    ids=str,
)
def test_the_answer_to_a_login_is_believed_if_nothing_else_was_answered(
    answers: list[int | CrawlEnded], status: int
) -> None:
    """A counter of visitors that is down, beside a password that was refused, must not look like a login that never was."""
    assert login_status(answers) == status


def test_a_login_that_never_left_is_told_as_such() -> None:
    with pytest.raises(Retry, match="ConnectFailed"):
        login_status([NEVER_SENT, NEVER_SENT])
