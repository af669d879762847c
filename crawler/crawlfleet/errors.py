"""Every exception of crawlfleet that leaves its module: errors for people, and verdicts that end a crawl.

An error's message tells what happened, where, and what to do next; `exit_code` is what the command
line exits with. A verdict exception is raised by an adapter (or by what it calls) and decides what
becomes of the task, the account and the egress (`verdicts.py`).
"""

from __future__ import annotations

from enum import StrEnum

INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM, as shells have it."""
CLOSED, STOPPED_ITSELF, DRAINED = 0, 74, 75
"""Exit codes of a worker: the batch is closed; it could not go on, and another has to; it was told to stop."""


class Verdict(StrEnum):
    """How a crawl ended. Exactly one each."""

    OK = "ok"
    RETRY = "retry"
    THROTTLED = "throttled"
    BLOCKED = "blocked"
    AUTH = "auth"
    CRASHED = "crashed"
    BUG = "bug"


class CrawlfleetError(Exception):
    """Something a person has to read."""

    exit_code = 1


class BadInput(CrawlfleetError):
    """A manifest, an option or an account file is wrong; nothing of it was carried out."""

    exit_code = 2


class BadConfiguration(CrawlfleetError):
    """The environment of a worker is wrong: restarting it will not help."""

    exit_code = 78


class ChromeUnusable(CrawlfleetError):
    """No Chrome can be run here: something is not installed, too small, or Chrome dies at each launch."""

    exit_code = 69


class DatabaseUnavailable(CrawlfleetError):
    """PostgreSQL cannot be reached."""


class CrawlEnded(Exception):
    """A crawl ended other than ok.

    `reason` is a short CamelCase word (it becomes a metric-safe, greppable cause); `detail` is one
    sentence for a person and must not hold a secret. `snapshot` is a redacted page or reply, only for `Bug`.
    `never_sent` says that the request it is about did not reach the shop. `retry_after_s` is how long the shop
    asked to wait: a floor, whatever the verdict.
    """

    verdict: Verdict

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        snapshot: str | None = None,
        never_sent: bool = False,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.snapshot = snapshot
        self.never_sent = never_sent
        self.retry_after_s = retry_after_s


class Retry(CrawlEnded):
    """Transient: a timeout, a reset, a 5xx. Counts an attempt."""

    verdict = Verdict.RETRY


class Throttled(CrawlEnded):
    """The shop asked to wait. No attempt is counted; `retry_after_s` is a floor.

    `account_only` means that the limit belongs to this account (Cafe24's bucket is per mall): only
    this task is delayed. Otherwise it is a hint against the egress.
    """

    verdict = Verdict.THROTTLED

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        retry_after_s: float = 1.0,
        account_only: bool = False,
        never_sent: bool = False,
    ) -> None:
        super().__init__(reason, detail, never_sent=never_sent, retry_after_s=retry_after_s)
        self.account_only = account_only


class Blocked(CrawlEnded):
    """A ban page, or a proxy that refuses: cuts the egress."""

    verdict = Verdict.BLOCKED


class AuthFailed(CrawlEnded):
    """The credentials were refused. Terminal for the account until they change."""

    verdict = Verdict.AUTH


class Crashed(CrawlEnded):
    """Our own infrastructure failed (browser, worker), not the shop."""

    verdict = Verdict.CRASHED


class Bug(CrawlEnded):
    """A page or a record that we cannot take. `picture` shows a page with its words made unreadable (JPEG)."""

    verdict = Verdict.BUG

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        snapshot: str | None = None,
        picture: bytes | None = None,
        never_sent: bool = False,
    ) -> None:
        super().__init__(reason, detail, snapshot=snapshot, never_sent=never_sent)
        self.picture = picture


class Interrupted(CrawlEnded):
    """The worker had to stop this crawl, or could not begin it; the task is charged nothing."""

    verdict = Verdict.RETRY
