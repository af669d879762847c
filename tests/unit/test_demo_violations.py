"""The witness counts what clients do, and accuses them only of what they could have known."""

from __future__ import annotations

from typing import Any

import pytest

from crawlfleet.demo.cafe24.witness import Cafe24Witness
from crawlfleet.demo.violations import Agreement, Counters, Flight, Witness


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def flight(account: str, egress: str = "a", *, alive: bool = True) -> Flight:
    return Flight(account, egress, alive=lambda: alive)


def count(name: str, witness: Witness[Any]) -> int:
    """That counter, after checking that no other violation was counted."""
    counters: dict[str, int] = witness.counters().as_dict()
    assert counters["violations"] == counters[name]
    return counters[name]


def test_one_request_after_the_other_is_no_overlap() -> None:
    witness = Witness(Agreement(), Counters(), Clock())
    for _ in range(3):
        request = flight("shop")
        witness.arrived(request, is_api=True)
        witness.answered(request)
    counters = witness.counters()
    assert (counters.requests, counters.peak_in_flight, counters.violations()) == (3, 1, 0)


def test_two_requests_of_one_account_at_once_are_an_overlap() -> None:
    witness = Witness(Agreement(), Counters(), Clock())
    witness.arrived(flight("shop", "a"), is_api=True)
    witness.arrived(flight("shop", "b"), is_api=True)
    assert count("account_overlap", witness) == 1


def test_a_client_that_hung_up_overlaps_with_nobody() -> None:
    """After a time-out the client sends its next request while the shop still works on the first."""
    witness = Witness(Agreement(), Counters(), Clock())
    witness.arrived(flight("shop", alive=False), is_api=True)
    witness.arrived(flight("shop"), is_api=True)
    assert count("account_overlap", witness) == 0
    assert witness.counters().peak_in_flight == 1


def test_a_token_request_overlaps_with_nothing() -> None:
    witness = Witness(Agreement(), Counters(), Clock())
    witness.arrived(flight("shop"), is_api=True)
    witness.arrived(flight("shop"), is_api=False)
    assert count("account_overlap", witness) == 0


@pytest.mark.parametrize(("egresses", "exceeded"), [("aabb", 0), ("aaab", 1), ("aaaa", 2)])
def test_the_cap_counts_distinct_accounts_of_one_egress(egresses: str, exceeded: int) -> None:
    witness = Witness(Agreement(accounts_per_egress=2), Counters(), Clock())
    for no, egress in enumerate(egresses):
        witness.arrived(flight(f"shop{no}", egress), is_api=True)
    assert count("cap_exceeded", witness) == exceeded


def test_dead_requests_do_not_fill_the_cap() -> None:
    witness = Witness(Agreement(accounts_per_egress=1), Counters(), Clock())
    witness.arrived(flight("shop1", alive=False), is_api=True)
    witness.arrived(flight("shop2"), is_api=True)
    assert count("cap_exceeded", witness) == 0


def test_the_pace_allows_one_request_more_than_the_rate_in_any_second() -> None:
    clock = Clock()
    witness = Witness(Agreement(pace_per_s=4), Counters(), clock)
    for no in range(20):
        witness.arrived(flight(f"shop{no}"), is_api=True)
        clock.now_s += 0.25
    assert count("pace_exceeded", witness) == 0
    for no in range(3):
        witness.arrived(flight(f"hasty{no}"), is_api=True)
    assert count("pace_exceeded", witness) == 1


def test_each_egress_has_a_pace_of_its_own() -> None:
    witness = Witness(Agreement(pace_per_s=1), Counters(), Clock())
    for no in range(6):
        witness.arrived(flight(f"shop{no}", egress=f"egress{no % 3}"), is_api=True)
    assert count("pace_exceeded", witness) == 0


@pytest.mark.parametrize(("requests", "bursts"), [(10, 0), (12, 2)])
def test_more_than_ten_requests_a_second_to_a_mall_are_a_burst(requests: int, bursts: int) -> None:
    witness = Cafe24Witness(Agreement(), Clock())
    for no in range(requests):
        witness.arrived(flight("shop", f"egress{no}"), is_api=False)
    assert count("burst_per_mall", witness) == bursts


@pytest.mark.parametrize(("after_s", "counted"), [(0.9, 0), (1.1, 1), (29.9, 1), (30.0, 0)])
def test_a_request_during_a_ban_counts_once_the_client_could_react(after_s: float, counted: int) -> None:
    clock = Clock()
    witness = Witness(Agreement(reaction_s=1.0), Counters(), clock)
    witness.told_ban("a", 30.0)
    clock.now_s += after_s
    witness.arrived(flight("shop1", "a"), is_api=True)
    witness.arrived(flight("shop2", "b"), is_api=True)
    assert count("during_ban", witness) == counted


@pytest.mark.parametrize(("after_s", "counted"), [(0.0, 1), (4.99, 1), (5.0, 0)])
def test_an_account_that_was_told_to_wait_has_to_wait(after_s: float, counted: int) -> None:
    clock = Clock()
    witness = Witness(Agreement(), Counters(), clock)
    witness.told_to_wait("shop", 5.0)
    witness.told_to_wait("shop", 1.0)
    clock.now_s += after_s
    witness.arrived(flight("shop"), is_api=True)
    witness.arrived(flight("other"), is_api=True)
    assert count("before_retry_after", witness) == counted
