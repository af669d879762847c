"""The call limit of one mall, against a leaky bucket that is simulated beside it."""

from __future__ import annotations

import pytest

from crawlfleet.sources.cafe24_limit import CallLimit


class Bucket:
    """Cafe24's side: drains 2 a second, and notes how full it became and when calls came."""

    def __init__(self, level: float = 0.0, size: int = 40) -> None:
        self.level, self.size, self.at, self.fullest = level, size, 0.0, level
        self.calls: list[float] = []

    def call(self, now: float) -> dict[str, str]:
        self.level = max(0.0, self.level - 2.0 * (now - self.at)) + 1
        self.at = now
        self.fullest = max(self.fullest, self.level)
        self.calls.append(now)
        return {"X-Api-Call-Limit": f"{round(self.level)}/{self.size}"}


def drive(limit: CallLimit, bucket: Bucket, calls: int) -> None:
    now = 0.0
    for _ in range(calls):
        now += limit.delay_s(now)
        limit.learn(bucket.call(now), now)


def busiest_second(calls: list[float]) -> int:
    return max(sum(start <= call < start + 1 for call in calls) for start in calls)


def test_the_first_call_need_not_wait() -> None:
    assert CallLimit().delay_s(0.0) == 0.0


def test_nine_calls_a_second_are_never_exceeded() -> None:
    bucket = Bucket()
    drive(CallLimit(), bucket, 15)
    assert 8 <= busiest_second(bucket.calls) <= 10  # a closed second of gaps of 0.11 s


def test_the_bucket_is_never_filled_above_four_fifths() -> None:
    bucket = Bucket()
    drive(CallLimit(), bucket, 300)
    assert bucket.fullest <= 32.5  # the header is a rounded number


def test_above_half_full_calls_keep_below_what_drains() -> None:
    limit = CallLimit()
    limit.learn({"X-Api-Call-Limit": "22/40"}, 0.0)
    assert limit.delay_s(0.0) == pytest.approx(1 / 1.8)
    limit.learn({"X-Api-Call-Limit": "20/40"}, 10.0)
    assert limit.delay_s(10.0) == pytest.approx(0.11)


def test_a_long_crawl_calls_no_faster_than_the_bucket_drains() -> None:
    bucket = Bucket()
    drive(CallLimit(), bucket, 300)
    late = bucket.calls[100:]
    assert len(late) / (late[-1] - late[0]) < 2.05


def test_what_other_apps_put_into_the_bucket_is_waited_for() -> None:
    limit = CallLimit()
    limit.learn({"X-Api-Call-Limit": "40/40"}, 0.0)
    assert limit.delay_s(0.0) == pytest.approx((40 + 1 - 32) / 2)
    assert limit.delay_s(4.0) == pytest.approx(0.5)


def test_a_bucket_of_one_call_lets_a_call_through_when_it_is_empty() -> None:
    limit = CallLimit()
    limit.learn({"X-Api-Call-Limit": "1/1"}, 0.0)
    assert limit.delay_s(0.0) == pytest.approx(0.5556, abs=0.001)
    assert limit.delay_s(0.6) == 0.0


@pytest.mark.parametrize("header", ["", "abc", "5", "5/0", "-1/40", "1/40/3", "9" * 5000 + "/1"])
def test_a_strange_header_is_ignored(header: str) -> None:
    limit = CallLimit()
    limit.learn({"X-Api-Call-Limit": header}, 0.0)
    assert (limit.level, limit.size) == (1.0, 40.0)


@pytest.mark.parametrize(("usage", "delay_s"), [("79.9", 0.11), ("80", 1.0), ("90", 3.0), ("120.04", 5.0)])
@pytest.mark.parametrize("what", ["Call", "Time"])
def test_a_busy_mall_is_called_more_slowly(what: str, usage: str, delay_s: float) -> None:
    limit = CallLimit()
    limit.learn({f"X-Cafe24-{what}-Usage": usage}, 0.0)
    assert limit.delay_s(0.0) == pytest.approx(delay_s)


def test_a_suspension_lasts_as_long_as_the_longer_remainder() -> None:
    limit = CallLimit()
    limit.learn({"X-Cafe24-Call-Remain": "8", "X-Cafe24-Time-Remain": "32"}, 100.0)
    assert limit.suspended_until == 132.0


def test_a_clock_set_back_does_not_stop_the_crawl() -> None:
    limit = CallLimit()
    limit.learn({}, 1_000_000.0)
    assert limit.delay_s(0.0) == pytest.approx(0.11)
