"""What an outcome means for the task."""

from __future__ import annotations

from random import Random

import pytest

from crawlfleet.errors import (
    AuthFailed,
    Blocked,
    Bug,
    Crashed,
    CrawlEnded,
    Retry,
    Throttled,
    Verdict,
)
from crawlfleet.verdicts import (
    OK,
    RETRY_FIRST_S,
    RETRY_LONGEST_S,
    Budgets,
    Decision,
    History,
    Outcome,
    backoff_s,
    interrupted,
    judge,
)

BUDGETS = Budgets(retry=2, crashed=1, throttled_s=100)
FRESH = History()


def judged(outcome: Outcome, history: History = FRESH) -> Decision:
    return judge(outcome, history, BUDGETS, Random(0))


def of(verdict: Verdict) -> Outcome:
    return Outcome(verdict, "Reason")


@pytest.mark.parametrize(
    ("outcome", "history", "state", "charged"),
    [
        pytest.param(OK, FRESH, "ok", (0, 0), id="ok"),
        pytest.param(OK, History(9, 9, 999), "ok", (0, 0), id="ok-over-every-budget"),
        pytest.param(of(Verdict.AUTH), FRESH, "dead", (0, 0), id="auth-is-terminal"),
        pytest.param(of(Verdict.BUG), FRESH, "dead", (0, 0), id="bug-is-terminal"),
        pytest.param(of(Verdict.RETRY), FRESH, "waiting", (1, 0), id="retry-first"),
        pytest.param(of(Verdict.RETRY), History(retries=1), "waiting", (1, 0), id="retry-last"),
        pytest.param(of(Verdict.RETRY), History(retries=2), "dead", (0, 0), id="retry-budget-spent"),
        pytest.param(of(Verdict.RETRY), History(crashes=9), "waiting", (1, 0), id="retry-has-its-own-budget"),
        pytest.param(of(Verdict.CRASHED), FRESH, "waiting", (0, 1), id="crashed-first"),
        pytest.param(of(Verdict.CRASHED), History(crashes=1), "dead", (0, 0), id="crashed-budget-spent"),
        pytest.param(of(Verdict.CRASHED), History(9), "waiting", (0, 1), id="crashed-has-its-own-budget"),
        pytest.param(of(Verdict.THROTTLED), FRESH, "waiting", (0, 0), id="throttled-counts-no-attempt"),
        pytest.param(
            of(Verdict.THROTTLED), History(throttled_s=99), "waiting", (0, 0), id="throttled-in-time"
        ),
        pytest.param(
            of(Verdict.THROTTLED), History(throttled_s=100), "dead", (0, 0), id="throttled-for-too-long"
        ),
        pytest.param(of(Verdict.BLOCKED), FRESH, "waiting", (0, 0), id="blocked-counts-no-attempt"),
        pytest.param(
            of(Verdict.BLOCKED), History(throttled_s=100), "dead", (0, 0), id="blocked-for-too-long"
        ),
        pytest.param(
            interrupted("Drained", "the worker had to stop"),
            History(9, 9, 999),
            "waiting",
            (0, 0),
            id="interrupted-is-free",
        ),
    ],
)
def test_the_judge(outcome: Outcome, history: History, state: str, charged: tuple[int, int]) -> None:
    decision = judged(outcome, history)

    assert (decision.state, (decision.retries, decision.crashes)) == (state, charged)


def test_an_interrupted_crawl_need_not_wait() -> None:
    assert judged(interrupted("Drained", "the worker had to stop")).delay_s == 0


def test_retry_after_is_the_floor_of_a_throttled_task() -> None:
    delay_s = judged(Outcome.of(Throttled("TooMany", retry_after_s=40))).delay_s

    assert 40 <= delay_s <= 44


def test_a_throttled_task_waits_at_least_a_second_whatever_the_shop_says() -> None:
    assert judged(Outcome.of(Throttled("TooMany", retry_after_s=0))).delay_s >= 1


@pytest.mark.parametrize("attempt", range(12))
def test_retries_back_off_exponentially_with_jitter(attempt: int) -> None:
    longest_s = min(RETRY_LONGEST_S, RETRY_FIRST_S * 2**attempt)
    delays = {backoff_s(attempt, Random(seed)) for seed in range(50)}

    assert longest_s / 2 <= min(delays) < max(delays) <= longest_s
    assert len(delays) == 50


@pytest.mark.parametrize(
    "ended",
    [Retry("R"), Blocked("R"), AuthFailed("R"), Crashed("R"), Bug("R")],
    ids=lambda e: e.verdict.value,
)
def test_an_exception_of_an_adapter_becomes_its_verdict(ended: CrawlEnded) -> None:
    assert Outcome.of(ended) == Outcome(ended.verdict, "R")


def test_a_bug_keeps_its_snapshot() -> None:
    assert Outcome.of(Bug("BadRow", "no order number", snapshot="<tr>")).snapshot == "<tr>"


def test_a_throttle_tells_whether_it_belongs_to_the_account() -> None:
    outcome = Outcome.of(Throttled("Bucket", retry_after_s=3, account_only=True))

    assert (outcome.retry_after_s, outcome.account_only, outcome.charged) == (3, True, True)
