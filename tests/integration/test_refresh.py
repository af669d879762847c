"""The rotating refresh token survives whatever dies: each crash ends in one refresh, or in a clear RefreshLost.

First the protocol alone (`tokens.Tokens` on a real database, with a clock that only moves by waiting), then real
workers that are killed, paused and cut off at each of its steps. A step is held by a lock of the test or by a
gate at the shop.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from builders import SETTINGS, lease, register_worker, take
from fleet import CALM, PAUSABLE, Fleet, WatchedShop, WorkerProcess, until
from pg_proxy import PgProxy
from prometheus_client import REGISTRY

from crawlfleet.crawl import STALE_TURN_S, Exit, LiveCrawl, Source
from crawlfleet.errors import AuthFailed, Interrupted, Retry, Throttled
from crawlfleet.metrics import REFRESHES
from crawlfleet.sources import Credentials
from crawlfleet.sources.noop import Noop
from crawlfleet.store.accounts import intend_refresh, read_credentials, set_state
from crawlfleet.store.connection import Connection, connect
from crawlfleet.tokens import POST_S, PendingStores, Tokens

# The protocol alone.

SOURCE_ID, USER_ID = 1, 1


class Seller:
    """One account, the shop's side of its token, and crawls of it under rising leases."""

    def __init__(self, fleet: Fleet) -> None:
        fleet.noop(users=0)
        fleet.add_accounts("noop", [(USER_ID, {"refresh_token": "t0"})])
        self._fleet = fleet
        self._lease_id = 0
        self.waited_s = 0.0
        self.good = "t0"
        self.posts: list[str] = []

    def crawl(self, meanwhile: Callable[[], None] = lambda: None) -> Tokens:
        """The tokens of a next crawl; `meanwhile` happens whenever it asks the database."""

        def database() -> Connection:
            meanwhile()
            return connect(self._fleet.url, "test")

        self._lease_id += 1
        stored = read_credentials(self._fleet.conn, SOURCE_ID, USER_ID)
        assert stored is not None
        return Tokens(
            database,
            self._fleet.keys,
            PendingStores(),
            "noop",
            lease(self._lease_id, SOURCE_ID, USER_ID, stored.credentials, stored.generation),
        )

    def post(self, credentials: Credentials) -> Credentials:
        """As a shop answers: the good token is replaced, any other refused."""
        token = credentials["refresh_token"]
        self.posts.append(token)
        if token != self.good:
            raise AuthFailed("RefreshRefused", "not this one")
        self.good = f"t{len(self.posts)}"
        return {"refresh_token": self.good}

    def post_and_die(self, credentials: Credentials) -> Credentials:
        """The shop answers; the process is gone before it hears it."""
        self.post(credentials)
        raise Died

    def die(self, _: Credentials) -> Credentials:
        """The process is gone before the token leaves."""
        raise Died

    def wait(self, seconds: float) -> None:
        self.waited_s += seconds

    def stored(self) -> tuple[str, int]:
        """(refresh token, generation) as the next crawl finds them."""
        tokens = self.crawl()
        return tokens.credentials["refresh_token"], tokens.generation


class Died(BaseException):
    """Stands for kill -9: nothing of ours handles it."""


@pytest.fixture
def seller(fleet: Fleet) -> Seller:
    return Seller(fleet)


def test_a_refresh_is_one_post_and_a_new_generation(seller: Seller) -> None:
    tokens = seller.crawl()
    tokens.refresh(seller.post, seller.wait)
    assert (seller.posts, seller.stored(), seller.waited_s) == (["t0"], ("t1", 1), 0)
    assert (tokens.credentials, tokens.generation) == ({"refresh_token": "t1"}, 1)


def test_a_crawl_with_older_tokens_adopts_newer_ones_without_a_post(seller: Seller) -> None:
    late = seller.crawl()
    seller.crawl().refresh(seller.post, seller.wait)
    late.refresh(seller.post, seller.wait)
    assert (late.credentials["refresh_token"], late.generation) == ("t1", 1)
    assert seller.posts == ["t0"]


def test_a_death_after_the_intent_costs_a_wait_and_no_token(seller: Seller) -> None:
    with pytest.raises(Died):
        seller.crawl().refresh(seller.die, seller.wait)
    seller.crawl().refresh(seller.post, seller.wait)
    assert (seller.posts, seller.stored()) == (["t0"], ("t1", 1))
    assert seller.waited_s == POST_S


def test_an_intent_that_is_old_enough_is_not_waited_for(seller: Seller, fleet: Fleet) -> None:
    """Whoever is rescued by ticks has been silent for longer than any POST."""
    with pytest.raises(Died):
        seller.crawl().refresh(seller.die, seller.wait)
    fleet.conn.execute("update fleet set tick = tick + 2 + %s / (tick_ms / 1000.0)", (POST_S,))
    seller.crawl().refresh(seller.post, seller.wait)
    assert (seller.stored(), seller.waited_s) == (("t1", 1), 0)


def test_a_death_before_the_store_ends_auth_after_one_more_try(seller: Seller) -> None:
    with pytest.raises(Died):
        seller.crawl().refresh(seller.post_and_die, seller.wait)
    with pytest.raises(AuthFailed, match="RefreshLost"):
        seller.crawl().refresh(seller.post, seller.wait)
    assert seller.posts == ["t0", "t0"]


def test_a_second_death_ends_auth_without_another_try(seller: Seller) -> None:
    for _ in range(2):
        with pytest.raises(Died):
            seller.crawl().refresh(seller.die, seller.wait)
    with pytest.raises(AuthFailed, match="RefreshLost"):
        seller.crawl().refresh(seller.post, seller.wait)
    assert seller.posts == []


def test_a_waiter_adopts_what_a_paused_refresher_stores_meanwhile(seller: Seller) -> None:
    paused, waiter = seller.crawl(), seller.crawl()

    def post_while_the_other_waits(credentials: Credentials) -> Credentials:
        new = seller.post(credentials)
        with pytest.raises(Died):
            waiter.refresh(seller.post, _dying_after(30, seller))
        return new

    paused.refresh(post_while_the_other_waits, seller.wait)
    waiter.refresh(seller.post, seller.wait)
    assert seller.posts == ["t0"]
    assert waiter.credentials["refresh_token"] == "t1"


def test_a_late_store_of_a_rescued_crawl_wins_over_the_crawl_that_waits(seller: Seller) -> None:
    """By its generation alone: its lease is long gone, its token the only good one."""
    rescued, waiter = seller.crawl(), seller.crawl()

    def post_late(credentials: Credentials) -> Credentials:
        new = seller.post(credentials)
        with pytest.raises(AuthFailed, match="RefreshLost"):
            waiter.refresh(seller.post, seller.wait)
        return new

    rescued.refresh(post_late, seller.wait)
    assert seller.stored() == ("t1", 1)


def test_a_refused_try_adopts_a_token_that_was_stored_meanwhile(seller: Seller) -> None:
    slow, other = seller.crawl(), seller.crawl()

    def refused_late(credentials: Credentials) -> Credentials:
        other.refresh(seller.post, seller.wait)
        raise AuthFailed("RefreshRefused", "the token is old by now")

    slow.refresh(refused_late, seller.wait)
    assert slow.credentials["refresh_token"] == "t1"


def test_a_plain_refusal_is_not_called_a_lost_reply(seller: Seller) -> None:
    seller.good = "consented elsewhere"
    with pytest.raises(AuthFailed, match="RefreshRefused"):
        seller.crawl().refresh(seller.post, seller.wait)


def test_of_two_that_found_the_same_intent_one_tries(seller: Seller, fleet: Fleet) -> None:
    """Both saw the same try; the compare-and-swap answers one of them."""
    stored = read_credentials(fleet.conn, SOURCE_ID, USER_ID)
    assert stored is not None
    assert intend_refresh(fleet.conn, SOURCE_ID, USER_ID, stored, 100)
    assert not intend_refresh(fleet.conn, SOURCE_ID, USER_ID, stored, 101)


def test_a_post_that_never_left_may_be_repeated_for_ever(seller: Seller) -> None:
    """An egress that cools down for hours must not use up the account's one more try."""
    for _ in range(5):
        with pytest.raises(Throttled):
            seller.crawl().refresh(_raise(Throttled("CoolingDown", never_sent=True)), seller.wait)
    seller.crawl().refresh(seller.post, seller.wait)
    assert (seller.stored(), seller.waited_s) == (("t1", 1), 0)


def test_a_crawl_that_has_to_end_after_its_intent_does_not_post(seller: Seller, fleet: Fleet) -> None:
    """Its process may be gone before the reply: nobody waits for a POST that begins so late."""
    batch_id = fleet.plan()
    [taken] = take(fleet.conn, register_worker(fleet.conn, batch_id))
    crawl = LiveCrawl(
        taken,
        Source(SOURCE_ID, "noop", SETTINGS, Noop({})),
        seller.crawl(meanwhile=lambda: crawl.abort(Interrupted("RenewalLost"))),
        Exit(taken.egress_id, SOURCE_ID, None),
        lambda: connect(fleet.url, "test"),
        None,
        stop_at=float("inf"),
    )
    with pytest.raises(Interrupted, match="NotSent"):
        crawl.refresh(seller.post)
    assert seller.posts == []
    seller.crawl().refresh(seller.post, seller.wait)
    assert (seller.stored(), seller.waited_s) == (("t1", 1), 0)


def test_a_post_that_the_shop_failed_to_answer_is_repeated_at_once(seller: Seller) -> None:
    for _ in range(5):
        with pytest.raises(Retry):
            seller.crawl().refresh(_raise(Retry("ServerError")), seller.wait)
    seller.crawl().refresh(seller.post, seller.wait)
    assert (seller.stored(), seller.waited_s) == (("t1", 1), 0)


def test_refreshes_are_counted_by_how_they_ended(seller: Seller) -> None:
    before = _refreshes()
    late = seller.crawl()
    seller.crawl().refresh(seller.post, seller.wait)
    late.refresh(seller.post, seller.wait)
    with pytest.raises(Retry):
        seller.crawl().refresh(_raise(Retry("ServerError")), seller.wait)
    seller.good = "consented elsewhere"
    with pytest.raises(AuthFailed):
        seller.crawl().refresh(seller.post, seller.wait)
    assert _refreshes() - before == Counter(rotated=1, adopted=1, undecided=1, refused=1)


def _refreshes() -> Counter[str]:
    """This process's refreshes so far by their results."""
    labels = [sample.labels for metric in REFRESHES.collect() for sample in metric.samples]
    return Counter(
        {
            result["result"]: int(REGISTRY.get_sample_value("crawlfleet_refreshes_total", result) or 0)
            for result in labels
            if result["source"] == "noop"
        }
    )


def test_a_refusal_after_an_unanswered_post_is_a_lost_reply(seller: Seller) -> None:
    with pytest.raises(Retry):
        seller.crawl().refresh(_raise(Retry("ReadTimeout")), seller.wait)
    seller.good = "answered after we hung up"
    with pytest.raises(AuthFailed, match="RefreshLost"):
        seller.crawl().refresh(seller.post, seller.wait)


def _raise(ending: Exception) -> Callable[[Credentials], Credentials]:
    def post(_: Credentials) -> Credentials:
        raise ending

    return post


def _dying_after(seconds: int, seller: Seller) -> Callable[[float], None]:
    def wait(step_s: float) -> None:
        seller.wait(step_s)
        if seller.waited_s >= seconds:
            raise Died

    return wait


# A password goes the same way, but never a second time.


def test_a_login_is_one_submission_and_keeps_its_session(seller: Seller) -> None:
    tokens = seller.crawl()
    tokens.login(seller.post, seller.wait)
    assert (seller.posts, seller.stored(), seller.waited_s) == (["t0"], ("t1", 1), 0)


@pytest.mark.parametrize("died", ["die", "post_and_die"])
def test_a_death_in_a_login_ends_auth_without_another_submission(
    seller: Seller, fleet: Fleet, died: str
) -> None:
    with pytest.raises(Died):
        seller.crawl().login(getattr(seller, died), seller.wait)
    submitted = len(seller.posts)
    for _ in range(2):
        with pytest.raises(AuthFailed, match="LoginInterrupted"):
            seller.crawl().login(seller.post, seller.wait)
    assert len(seller.posts) == submitted
    assert fleet.scalar("select state::text || reason from account") == "authLoginInterrupted"


def test_a_submission_that_decided_nothing_ends_auth_at_once(seller: Seller, fleet: Fleet) -> None:
    with pytest.raises(AuthFailed, match="LoginInterrupted"):
        seller.crawl().login(_raise(Retry("PageTimeout")), seller.wait)
    assert fleet.scalar("select state::text || reason from account") == "authLoginInterrupted"


def test_a_submission_that_never_left_may_be_repeated(seller: Seller) -> None:
    for _ in range(3):
        with pytest.raises(Throttled):
            seller.crawl().login(_raise(Throttled("CoolingDown", never_sent=True)), seller.wait)
    seller.crawl().login(seller.post, seller.wait)
    assert (seller.posts, seller.stored()) == (["t0"], ("t1", 1))


def test_a_refused_password_is_not_submitted_again(seller: Seller, fleet: Fleet) -> None:
    with pytest.raises(AuthFailed, match="LoginRefused"):
        seller.crawl().login(_raise(AuthFailed("LoginRefused")), seller.wait)
    assert fleet.scalar("select state::text || reason from account") == "authLoginRefused"


def test_a_crawl_that_began_before_a_login_adopts_its_session(seller: Seller) -> None:
    paused, waiter = seller.crawl(), seller.crawl()
    paused.login(seller.post, seller.wait)
    waiter.login(seller.post, seller.wait)
    assert seller.posts == ["t0"]
    assert waiter.credentials == {"refresh_token": "t1"}


def test_what_a_person_enabled_may_be_submitted_again(seller: Seller, fleet: Fleet) -> None:
    with pytest.raises(Died):
        seller.crawl().login(seller.die, seller.wait)
    with pytest.raises(AuthFailed):
        seller.crawl().login(seller.post, seller.wait)
    set_state(fleet.conn, USER_ID, None, "ok", None)
    seller.crawl().login(seller.post, seller.wait)
    assert seller.posts == ["t0"]


# Real workers, held at each step and killed there.

ACCOUNT = "select from account where user_id = %s for update"
EGRESS = "select from egress for update"


def next_worker(fleet: Fleet, dead: WorkerProcess) -> None:
    """Kill the one, and let another finish the batch."""
    fleet.bury(dead)
    assert fleet.start().exit_code(timeout_s=100) == 0


def pass_time(fleet: Fleet, seconds: float) -> None:
    """Let the fleet's clock go on for at least that long."""
    tick, ticks = fleet.scalar("select tick from fleet"), int(seconds / CALM.tick_s) + 1
    until(lambda: fleet.scalar("select tick from fleet") > tick + ticks, f"{seconds} s to pass")


def intent(fleet: Fleet, user_id: int) -> int:
    """Open tries of that account."""
    return int(fleet.scalar("select refresh_tries from account where user_id = %s", user_id))


def generation(fleet: Fleet, user_id: int) -> int:
    return int(fleet.scalar("select generation from account where user_id = %s", user_id))


def test_killed_before_its_intent_the_next_worker_refreshes_once(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=1)
    fleet.plan()
    with fleet.locked(ACCOUNT, 1) as lock:
        worker = fleet.start()
        until(fleet.blocked_backends, "the intent to be blocked")
        worker.kill()
        _terminate_blocked(fleet)
        lock.rollback()
        assert intent(fleet, 1) == 0
    next_worker(fleet, worker)
    assert fleet.tasks() == {1: ("ok", "ok")}
    assert len(shop.seen("token")) == 1


def test_killed_around_the_post_each_token_is_tried_once_more_at_most(
    fleet: Fleet, shop: WatchedShop
) -> None:
    """One test, since the next worker has to outwait the dead one's POST by a minute.

    User 1 dies after the intent, before the POST (whose turn had grown stale): the token was never used. User 2 dies after the shop has
    answered: that token is gone, which one more try finds out.
    """
    fleet.cafe24(shop, users=2)
    fleet.plan()
    gate = shop.gate("token", accounts=["demo2"], most=1)
    with fleet.locked(ACCOUNT, 1) as account:
        worker = fleet.start()
        gate.wait()
        until(fleet.blocked_backends, "user 1's intent to be blocked")
        pass_time(fleet, STALE_TURN_S)
        with fleet.locked(EGRESS):
            account.rollback()
            until(lambda: intent(fleet, 1) == 1, "user 1's intent")
            until(fleet.blocked_backends, "user 1's POST to wait for its turn")
            worker.kill()
            _terminate_blocked(fleet)
    assert [seen.account for seen in shop.seen("token")] == ["demo2"]
    gate.open()
    next_worker(fleet, worker)
    assert fleet.tasks() == {1: ("ok", "ok"), 2: ("dead", "auth")}
    assert len(shop.seen("token", "demo1")) == 1
    assert len(shop.seen("token", "demo2")) == 2
    assert fleet.failures(2)[-1] == ("auth", "RefreshLost")
    assert fleet.items() == shop.truth([1])


def test_killed_after_the_store_the_next_worker_uses_what_was_stored(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=1)
    fleet.plan()
    gate = shop.gate("orders/count", most=1)
    worker = fleet.start()
    gate.wait()
    next_worker(fleet, worker)
    assert fleet.tasks() == {1: ("ok", "ok")}
    assert len(shop.seen("token")) == 1
    assert shop.violations() == {}


def test_a_paused_refresher_stores_its_reply_after_its_rescue_and_the_next_worker_adopts_it(
    fleet: Fleet, shop: WatchedShop
) -> None:
    fleet.cafe24(shop, users=1)
    fleet.plan()
    gate = shop.gate("token", most=1)
    paused = fleet.start()
    gate.wait()
    paused.send(signal.SIGSTOP)
    gate.open()
    fleet.expire()
    other = fleet.start()
    until(lambda: fleet.failures(1) == [("crashed", "WorkerLost")], "the rescue")
    until(lambda: fleet.held() == 1, "the other to take the account and to wait")
    paused.send(signal.SIGCONT)
    assert other.exit_code() == 0
    assert paused.exit_code() == 74
    assert fleet.tasks() == {1: ("ok", "ok")}
    assert (len(shop.seen("token")), generation(fleet, 1)) == (1, 1)
    assert shop.violations() == {}


def test_sigterm_while_a_store_is_blocked_waits_until_it_is_stored(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=1)
    fleet.plan()
    gate = shop.gate("token", most=1)
    worker = fleet.start(CRAWLFLEET_DRAIN_SECONDS="1")
    gate.wait()
    with fleet.locked(ACCOUNT, 1) as lock:
        gate.open()
        until(fleet.blocked_backends, "the store to be blocked")
        worker.send(signal.SIGTERM)
        pass_time(fleet, 1.0)
        assert worker.is_alive()
        lock.rollback()
    assert worker.exit_code() == 75
    assert generation(fleet, 1) == 1
    fleet.run()
    assert fleet.tasks() == {1: ("ok", "ok")}
    assert len(shop.seen("token")) == 1


def test_a_store_whose_backend_is_terminated_is_repeated(fleet: Fleet, shop: WatchedShop) -> None:
    fleet.cafe24(shop, users=1)
    fleet.plan()
    gate = shop.gate("token", most=1)
    worker = fleet.start()
    gate.wait()
    with fleet.locked(ACCOUNT, 1) as lock:
        gate.open()
        until(fleet.blocked_backends, "the store to be blocked")
        _terminate_blocked(fleet)
        until(lambda: worker.events("token not stored yet"), "the store to fail")
        lock.rollback()
    assert worker.exit_code() == 0
    assert (len(shop.seen("token")), generation(fleet, 1)) == (1, 1)
    assert fleet.tasks() == {1: ("ok", "ok")}


def test_a_worker_without_a_database_does_not_end_over_a_token_that_is_not_stored(
    fleet: Fleet, shop: WatchedShop, open_dir: Path
) -> None:
    fleet.cafe24(shop, users=1)
    fleet.plan()
    gate = shop.gate("token", most=1)
    later = open_dir / "later"
    with PgProxy(fleet.url, open_dir) as proxy:
        worker = fleet.start(program=PAUSABLE, LATER=str(later), CRAWLFLEET_DATABASE_URL=proxy.url)
        gate.wait()
        proxy.refuse()
        gate.open()
        until(lambda: worker.events("token not stored yet"), "the store to fail")
        later.touch()
        until(lambda: worker.events("worker stops itself"), "the deadline")
        requests = len(shop.seen())
        proxy.admit()
        assert worker.exit_code() == 74
    assert generation(fleet, 1) == 1
    assert len(shop.seen()) == requests
    fleet.expire()
    fleet.run()
    assert fleet.tasks() == {1: ("ok", "ok")}
    assert len(shop.seen("token")) == 1


def test_a_database_lost_before_the_post_does_not_use_up_the_one_more_try(
    fleet: Fleet, shop: WatchedShop
) -> None:
    """The token has not left, however often that happens."""
    fleet.cafe24(shop, users=1)
    fleet.plan()
    worker = fleet.start()
    for _ in range(3):
        with fleet.locked(EGRESS) as lock:
            until(lambda: fleet.scalar(BLOCKED_RESERVE), "the POST to wait for its turn")
            _terminate_blocked(fleet)
            until(lambda: not fleet.scalar(BLOCKED_RESERVE), "its statement to be gone")
            lock.rollback()
    assert worker.exit_code() == 0
    assert fleet.tasks() == {1: ("ok", "ok")}
    assert (len(shop.seen("token")), generation(fleet, 1)) == (1, 1)


def test_a_lost_refresh_reply_is_tried_once_more_and_then_left_alone(fleet: Fleet, shop: WatchedShop) -> None:
    """The shop cuts the connection after it has rotated."""
    shop.switch_account("demo1", lose_refresh_reply=True)
    fleet.cafe24(shop, users=2)
    fleet.plan()
    fleet.run()
    fleet.plan("next")
    assert fleet.start(CRAWLFLEET_BATCH="next").exit_code() == 0
    assert fleet.tasks() == {1: ("dead", "auth"), 2: ("ok", "ok")}
    assert fleet.failures(1)[1] == ("auth", "RefreshLost")
    assert len(shop.seen("token", "demo1")) == 2
    assert shop.violations() == {}


def test_a_person_who_consents_anew_brings_the_account_back(fleet: Fleet, shop: WatchedShop) -> None:
    shop.switch_account("demo1", revoke_tokens=True)
    fleet.cafe24(shop, users=1)
    fleet.plan()
    fleet.run()
    assert fleet.tasks() == {1: ("dead", "auth")}
    shop.switch_account("demo1", revoke_tokens=False)
    fleet.add_accounts("cafe24", [(1, shop.consented(1))])
    fleet.plan("next")
    assert fleet.start(CRAWLFLEET_BATCH="next").exit_code() == 0
    assert fleet.tasks("next") == {1: ("ok", "ok")}
    assert shop.violations() == {}


BLOCKED_RESERVE = (
    "select count(*) > 0 from pg_stat_activity where datname = current_database()"
    " and wait_event_type = 'Lock' and query like '%%set next_at%%'"
)


def _terminate_blocked(fleet: Fleet) -> None:
    """End the backends that wait for a lock: their statement must not go on after their client is dead."""
    with psycopg.connect(fleet.url, autocommit=True) as conn:
        conn.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = current_database()"
            " and wait_event_type = 'Lock' and application_name like 'crawlfleet%'"
        )
