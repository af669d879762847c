"""What an outcome means for the task: pure. (For the egress: `politeness.after`; for the account: `auth` parks it.)

The judge is asked once a crawl, between the crawl and its commit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from crawlfleet.errors import Bug, CrawlEnded, Throttled, Verdict

RETRY_FIRST_S = 2.0
RETRY_LONGEST_S = 300.0
BLOCKED_RETRY_S = 1.0  # the egress's cool-down is what really delays a blocked task


@dataclass(frozen=True)
class Budgets:
    """How much of each misfortune a task may have before it is dead."""

    retry: int
    crashed: int
    throttled_s: float


@dataclass(frozen=True)
class History:
    """What this task has been charged so far."""

    retries: int = 0
    crashes: int = 0
    throttled_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How one crawl ended. `charged` is false if it was interrupted through no fault of its own.

    `account_wait_s` is how long the shop wants no request of this account, whatever the verdict.
    """

    verdict: Verdict
    reason: str = ""
    detail: str = ""
    snapshot: str | None = None
    picture: bytes | None = None
    retry_after_s: float = 0.0
    account_only: bool = False
    charged: bool = True
    account_wait_s: float = 0.0

    @classmethod
    def of(cls, ended: CrawlEnded) -> Outcome:
        """The outcome that an adapter raised."""
        account_only = isinstance(ended, Throttled) and ended.account_only
        return cls(
            ended.verdict,
            ended.reason,
            ended.detail,
            ended.snapshot,
            picture=ended.picture if isinstance(ended, Bug) else None,
            retry_after_s=ended.retry_after_s,
            account_only=account_only,
            account_wait_s=ended.retry_after_s if account_only and not ended.never_sent else 0.0,
        )


OK = Outcome(Verdict.OK)


def interrupted(reason: str, why: str, *, retry_after_s: float = 0.0) -> Outcome:
    """The worker had to stop this crawl: it goes back to the queue and is charged nothing."""
    detail = f"{why}; the crawl is not charged"
    return Outcome(Verdict.RETRY, reason, detail, retry_after_s=retry_after_s, charged=False)


@dataclass(frozen=True)
class Decision:
    """What becomes of the task; `delay_s` only for waiting, `retries` and `crashes` are added."""

    state: str
    delay_s: float = 0.0
    retries: int = 0
    crashes: int = 0


def judge(outcome: Outcome, history: History, budgets: Budgets, random: Random) -> Decision:
    """Decide what becomes of the task after this crawl; it never begins anew before its account may."""
    decision = _judge(outcome, history, budgets, random)
    if decision.state == "waiting":
        return replace(decision, delay_s=max(decision.delay_s, outcome.account_wait_s))
    return decision


def _judge(outcome: Outcome, history: History, budgets: Budgets, random: Random) -> Decision:
    match outcome.verdict:
        case Verdict.OK:
            return Decision("ok")
        case Verdict.AUTH | Verdict.BUG:
            return Decision("dead")
        case _ if not outcome.charged:
            return Decision("waiting", outcome.retry_after_s)
        case Verdict.RETRY if history.retries < budgets.retry:
            delay_s = max(backoff_s(history.retries, random), outcome.retry_after_s)
            return Decision("waiting", delay_s, retries=1)
        case Verdict.CRASHED if history.crashes < budgets.crashed:
            return Decision("waiting", backoff_s(history.crashes, random), crashes=1)
        case Verdict.THROTTLED | Verdict.BLOCKED:
            floor_s = max(outcome.retry_after_s, BLOCKED_RETRY_S)
            if history.throttled_s + floor_s <= budgets.throttled_s:
                return Decision("waiting", floor_s * random.uniform(1.0, 1.1))
    return Decision("dead")


def backoff_s(attempt: int, random: Random) -> float:
    """Exponential with jitter from half to full, so that tasks that failed together come back apart."""
    return min(RETRY_LONGEST_S, RETRY_FIRST_S * 2.0**attempt) * random.uniform(0.5, 1.0)
