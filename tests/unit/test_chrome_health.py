"""When a Chrome has to end, and how long to wait before the next one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crawlfleet.browser.health import (
    EXITED,
    KILLED,
    RECYCLED,
    UNRESPONSIVE,
    Ending,
    Seen,
    Wish,
    failures_after,
    judge,
    kill_above_mb,
    pause_s,
)

WELL = Seen(ended="", age_s=300.0, launch_s=0.4, silent_s=0.5, memory_mb=200.0, contexts=3)
STARTING = replace(WELL, age_s=1.0, launch_s=None, silent_s=1.0)


def kind_of(ending: Ending | None) -> str | None:
    return ending.kind if ending else None


@pytest.mark.parametrize("seen", [WELL, STARTING], ids=["ready", "starting"])
def test_a_healthy_one_goes_on(seen: Seen) -> None:
    assert judge(seen, None, kill_mb=None) is None
    assert judge(seen, None, kill_mb=200.0) is None


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"ended": "Chrome ended with exit code 1"}, EXITED),
        ({"memory_mb": 401.0}, KILLED),
        ({"silent_s": 10.1}, UNRESPONSIVE),
        ({"launch_s": None, "age_s": 20.1}, UNRESPONSIVE),
    ],
    ids=["exited", "memory", "silent", "never ready"],
)
def test_what_ends_it_is_named(change: dict[str, object], kind: str) -> None:
    ending = judge(replace(WELL, **change), None, kill_mb=400.0)  # type: ignore[arg-type]  # a table of fields

    assert kind_of(ending) == kind
    assert ending
    assert ending.is_failure
    assert ending.patience_s == 0


def test_one_that_starts_may_be_silent_for_longer() -> None:
    assert judge(replace(STARTING, age_s=15.0, silent_s=15.0), None, kill_mb=None) is None


@pytest.mark.parametrize(("how", "is_polite"), [(RECYCLED, True), (KILLED, False)])
def test_a_wish_is_no_failure(how: str, is_polite: bool) -> None:
    ending = judge(WELL, Wish(how), kill_mb=None)

    assert ending
    assert (ending.kind, ending.is_failure, ending.patience_s > 0) == (how, False, is_polite)


def test_who_exited_cannot_be_recycled() -> None:
    assert kind_of(judge(replace(WELL, ended="gone"), Wish(RECYCLED), kill_mb=None)) == EXITED


@pytest.mark.parametrize(
    ("limit_mb", "container_mb", "kill_mb"),
    [
        (None, None, None),
        (1000, None, 1200.0),
        (None, 1000.0, 920.0),
        (850, 1000.0, 920.0),
        (500, 1000.0, 600.0),
    ],
)
def test_chrome_is_killed_before_the_kernel_kills_the_container(
    limit_mb: int | None, container_mb: float | None, kill_mb: float | None
) -> None:
    assert kill_above_mb(limit_mb, container_mb) == kill_mb


def test_pauses_grow_from_nothing_to_half_a_minute() -> None:
    assert [pause_s(failures) for failures in range(10)] == [0, 0, 0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(
    ("is_failure", "age_s", "failures"),
    [(True, 3.0, 5), (True, 61.0, 1), (False, 3.0, 0)],
    ids=["one more", "after a long life", "on demand"],
)
def test_failures_in_a_row_are_counted(is_failure: bool, age_s: float, failures: int) -> None:
    ending = Ending(EXITED, "gone", is_failure=is_failure)

    assert failures_after(ending, age_s, failures=4) == failures
