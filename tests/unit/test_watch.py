"""A batch in words and numbers, how it is shown, and what Ctrl-C means when."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from crawlfleet.local.run import Interrupt, exit_code
from crawlfleet.local.view import Look, Picture, PlainView, tell
from crawlfleet.local.watch import failure_words, line, waits_for
from crawlfleet.politeness import BANNED_AFTER
from crawlfleet.progress import Progress, Rate, duration, eta, progress
from crawlfleet.store.batches import Failure, Wait

LOGS = Path("/var/lib/crawlfleet/logs/nightly")


def tasks(**numbers: int) -> Progress:
    """Progress of that many tasks in each state."""
    states = ("done", "running", "waiting", "retrying", "failed", "cancelled")
    return Progress(sum(numbers.values()), *(numbers.get(state, 0) for state in states))


def counts(p: Progress) -> dict[tuple[str, str | None], int]:
    """Tasks by state and verdict that make up that progress."""
    numbers = {"ok": p.done, "leased": p.running, "ready": p.waiting, "waiting": p.retrying, "dead": p.failed}
    return {(state, None): number for state, number in numbers.items() if number}


def permits(**changed: Any) -> Wait:
    """An egress with 4 permits, none of them held."""
    values: dict[str, Any] = {
        "source": "shop",
        "egress": "direct",
        "cap": 4,
        "open": 4,
        "held": 0,
        "cool_s": 0.0,
        "removed": False,
        "cuts_in_row": 0,
        "silent": 0,
    }
    return Wait(**values | changed)


def test_progress_adds_up_the_sources() -> None:
    counts = {
        "shop": {("ok", "ok"): 3, ("dead", "auth"): 1, ("dead", "bug"): 2, ("leased", None): 1},
        "mall": {("ready", None): 4, ("waiting", "retry"): 5, ("cancelled", None): 6, ("ok", "ok"): 1},
    }

    found = progress(counts)

    assert found == Progress(23, done=4, running=1, waiting=4, retrying=5, failed=3, cancelled=6)
    assert (found.ended, found.crawled, found.open) == (13, 7, 10)


class TestRate:
    def test_is_zero_while_nothing_is_known(self) -> None:
        assert Rate().add(10.0, 5) == 0.0

    def test_counts_what_ended_between_two_looks(self) -> None:
        rate = Rate()
        rate.add(10.0, 5)

        assert rate.add(12.0, 15) == 5.0

    def test_forgets_what_is_long_ago(self) -> None:
        rate = Rate()
        for at_s, finished in ((0.0, 0), (10.0, 1000), (30.0, 1000)):
            last = rate.add(at_s, finished)

        assert last == 0.0


@pytest.mark.parametrize(
    ("p", "rate", "words"),
    [
        (tasks(done=4), 0.0, "done"),
        (tasks(done=4, waiting=6), 2.0, "3s"),
        (tasks(done=4, waiting=6), 0.0, "unknown"),
        (tasks(done=4, failed=1, cancelled=1), 0.0, "done"),
    ],
)
def test_eta(p: Progress, rate: float, words: str) -> None:
    assert eta(p, rate) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0s"), (59.6, "1m00s"), (200, "3m20s"), (3599.6, "1h00m"), (3725, "1h02m"), (90_000, "25h00m")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("p", "waits", "next_retry_s", "words"),
    [
        (tasks(done=3), [permits()], None, "nothing"),
        (tasks(waiting=3), [permits()], None, "workers to begin"),
        (tasks(waiting=3, running=1), [permits(held=1)], None, "workers"),
        (tasks(waiting=3, running=4), [permits(held=4)], None, "permits (4 of 4 held)"),
        (tasks(done=3, running=1), [permits(held=1)], None, "running crawls to end"),
        (tasks(retrying=2), [permits()], 65.0, "the next retry in 1m05s"),
        (tasks(retrying=2), [permits()], -3.0, "the next retry in 0s"),
        (tasks(waiting=2), [permits(open=0, cool_s=42.0)], None, "shop cools down, 42s left"),
        (
            tasks(waiting=2),
            [permits(egress="exit-1", open=0, cool_s=42.0)],
            None,
            "shop by exit-1 cools down, 42s left",
        ),
        (tasks(waiting=2), [permits(cap=0, open=0)], None, "shop is paused (maxConcurrent: 0)"),
        (tasks(waiting=2), [permits(cap=0, open=0, removed=True)], None, "workers to begin"),
        (
            tasks(waiting=2),
            [permits(cuts_in_row=BANNED_AFTER)],
            None,
            f"shop is banned (cut {BANNED_AFTER} times in a row)",
        ),
        (tasks(waiting=2), [permits(held=2, silent=2)], None, "2 permits of shop held by a lost worker"),
        (
            tasks(waiting=2),
            [permits(cool_s=5.0), permits(source="mall", cap=0)],
            None,
            "shop cools down, 5s left; mall is paused (maxConcurrent: 0)",
        ),
    ],
)
def test_what_a_batch_waits_for(
    p: Progress, waits: list[Wait], next_retry_s: float | None, words: str
) -> None:
    counted = {wait.source: counts(p) for wait in waits}
    assert waits_for(counted, waits, next_retry_s, "none") == words


def test_a_source_that_is_done_holds_nothing_up() -> None:
    counted = {"shop": counts(tasks(running=4, waiting=9)), "mall": counts(tasks(done=9))}
    waits = [permits(held=4), permits(source="mall", cool_s=42.0)]
    assert waits_for(counted, waits, None, "none") == "permits (4 of 4 held)"


def test_a_stopped_batch_waits_for_its_running_crawls() -> None:
    counted = {"shop": counts(tasks(running=1))}
    assert waits_for(counted, [permits()], None, "cancel") == "running crawls to end (stop: cancel)"


def test_a_line_tells_every_state() -> None:
    p = tasks(done=1, running=2, waiting=3, retrying=4, failed=5)

    assert line(p, 2.0, "workers", {"shop": p}) == (
        "1/15 done, 2 running, 3 waiting, 4 retrying, 5 failed, 2.0/s, ETA 4s, waits for: workers"
    )


def test_a_line_tells_what_is_done_of_each_source() -> None:
    parts = {"ably": tasks(done=1, waiting=1), "cafe24": tasks(done=2)}

    assert line(tasks(done=3, waiting=1), 2.0, "workers", parts).startswith(
        "3/4 done (ably 1/2, cafe24 2/2), "
    )


def test_a_failure_names_one_user_to_look_at() -> None:
    failure = Failure("shop", "retry", "Timeout", 7, 17, "no reply in 30 s")

    assert failure_words(failure) == "shop: 7 retry, Timeout: no reply in 30 s (for example user 17)"


def looked(p: Progress) -> Look:
    return Look("nightly", p, {"shop": p}, rate=2.0, waits_for="workers", workers=2, seconds=3.0)


def shown(*looks: Look) -> list[str]:
    """The lines of a plain view of these looks, all within a moment."""
    console = Console(file=io.StringIO(), width=40)
    view = PlainView(console)
    for look in looks:
        view.show(look)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


class TestPlainView:
    def test_shows_a_line_whatever_the_width(self) -> None:
        (only,) = shown(looked(tasks(done=1, waiting=3)))

        assert only.startswith("nightly: 1/4 done, ")
        assert only.endswith("waits for: workers")

    def test_does_not_repeat_itself_within_moments(self) -> None:
        assert len(shown(looked(tasks(done=1, waiting=3)), looked(tasks(done=2, waiting=2)))) == 1

    def test_always_shows_the_end_and_only_once(self) -> None:
        end = looked(tasks(done=4))

        assert [text.split()[1] for text in shown(looked(tasks(waiting=4)), end, end)] == ["0/4", "4/4"]


@pytest.mark.parametrize("width", [80, 110])
def test_the_picture_shows_every_number(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(Picture(looked(tasks(done=10, running=2, waiting=3, retrying=4, failed=5, cancelled=6))))

    assert isinstance(console.file, io.StringIO)
    name, header, numbers, waiting = (text.split() for text in console.file.getvalue().splitlines())
    assert (name[0], name[-2:]) == ("nightly", ["70%", "3s"])
    assert dict(zip(header, numbers, strict=True)) == {
        "done": "10/30", "running": "2", "waiting": "3", "retrying": "4", "failed": "5", "cancelled": "6",
        "rate": "2.0/s", "ETA": "4s", "workers": "2",
    }  # fmt: skip
    assert waiting == ["waits", "for:", "workers"]


@pytest.mark.parametrize("width", [60, 40, 30])
def test_a_narrow_picture_leaves_columns_out_and_cuts_none(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    p = tasks(done=1000, running=20, waiting=3000, retrying=4, failed=5, cancelled=6)
    console.print(Picture(looked(p)))

    assert isinstance(console.file, io.StringIO)
    name, header, numbers, waiting = console.file.getvalue().splitlines()
    assert name.split()[0] == "nightly"
    assert name.split()[-2:] == ["25%", "3s"]
    assert header.split()[0] == "done"
    assert "ETA" in header
    assert "running" in header or width < 60
    assert len(header.split()) == len(numbers.split())
    assert "…" not in header + numbers + waiting


def told(state: str, failures: list[Failure]) -> str:
    console = Console(file=io.StringIO(), width=40)
    counts = {"shop": {"total": 9, "ok": 2, "dead": 7, "cancelled": 0}}
    summed = {
        "batch": "nightly",
        "state": state,
        "reason": "WithFailures",
        "seconds": 3.0,
        "counts": counts,
        "failures": {"shop": {failure.verdict: failure.tasks for failure in failures}} if failures else {},
    }
    tell(
        console,
        summed,
        failures,
        lambda *words: " ".join(("crawlfleet", *words)),
        "crawlfleet run -f x",
        LOGS,
    )
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestSummary:
    def test_tells_the_folder_of_the_logs_where_a_failure_speaks_of_them(self) -> None:
        text = told("Complete", [Failure("shop", "bug", "KeyError", 1, 17, "the worker's log says where")])

        assert f"logs: {LOGS}\n" in text
        assert "logs: " not in told("Complete", [Failure("shop", "bug", "NoLogs", 1, 17, "")])

    def test_of_a_batch_with_failures_says_what_to_do(self) -> None:
        text = told("Complete", [Failure("shop", "retry", "Timeout", 7, 17, "")])

        assert "nightly: Complete, WithFailures, 3.0 s" in text
        assert "why: crawlfleet why 17\n" in text
        assert "to try again: crawlfleet retry nightly && crawlfleet run -f x\n" in text
        assert "  crawlfleet results nightly --format jsonl --output nightly.jsonl\n" in text

    def test_does_not_send_people_to_retry_what_needs_a_person(self) -> None:
        text = told("Complete", [Failure("shop", "auth", "RefreshRefused", 7, 17, "")])

        assert "to try again" not in text
        assert (
            "accounts that ended auth need a person: `crawlfleet accounts list --needs-attention` names"
            in text
        )

    def test_of_both_says_both(self) -> None:
        text = told("Complete", [Failure("shop", v, "Why", 1, 17, "") for v in ("auth", "retry")])

        assert "to try again: " in text
        assert "need a person: " in text

    def test_of_a_cancelled_batch_without_failures_blames_nobody(self) -> None:
        assert "nightly: Cancelled, 3.0 s\n" in told("Cancelled", [])

    def test_of_an_open_batch_says_how_to_resume(self) -> None:
        text = told("Open", [])

        assert "the batch is still open; to resume it: crawlfleet run -f x\n" in text
        assert "to try again" not in text


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        ([("Complete", "AllSucceeded")], 0),
        ([("Complete", "AllSucceeded"), ("Complete", "WithFailures")], 3),
        ([("Cancelled", "WithFailures")], 3),
        ([("Complete", "WithFailures"), ("Open", "WithFailures")], 1),
    ],
)
def test_the_exit_code_is_that_of_the_worst_batch(ended: list[tuple[str, str]], code: int) -> None:
    assert exit_code([{"state": state, "reason": reason} for state, reason in ended]) == code


class TestInterrupt:
    def test_before_a_batch_runs_the_first_stops(self) -> None:
        with pytest.raises(KeyboardInterrupt):
            Interrupt()(2, None)

    def test_while_a_batch_runs_the_first_drains_and_the_second_stops(self) -> None:
        interrupt = Interrupt()
        with interrupt.draining():
            interrupt(2, None)
            assert interrupt.count == 1
            with pytest.raises(KeyboardInterrupt):
                interrupt(2, None)

    def test_what_comes_later_does_not_disturb_the_clean_up(self) -> None:
        interrupt = Interrupt()
        with interrupt.draining():
            interrupt(2, None)

        interrupt(2, None)

        assert interrupt.count == 2
