"""`crawlfleet shops`: the stand-in shops, for as long as they are wanted."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

from crawlfleet.commands.place import Arguments
from crawlfleet.demo.server import ShopServer
from crawlfleet.demo.shop import Shop
from crawlfleet.demo.stand_ins import STAND_INS, StandIn
from crawlfleet.demo.violations import Agreement
from crawlfleet.errors import CrawlfleetError


def serve_shops(arguments: Arguments) -> int:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    wanted = [STAND_INS[arguments.only]] if arguments.only else list(STAND_INS.values())
    agreement = Agreement(accounts_per_egress=arguments.cap, pace_per_s=arguments.pace)
    with ExitStack() as served:
        servers = {
            stand_in.name: served.enter_context(
                _served(stand_in, arguments.listen, getattr(arguments, f"{stand_in.name}_port"), agreement)
            )
            for stand_in in wanted
        }
        _tell(wanted, servers, arguments.users)
        ended.wait()
    counted = {name: server.witness.counters().as_dict() for name, server in servers.items()}
    print(json.dumps(counted), file=sys.stderr)
    return 0


@contextmanager
def _served(stand_in: StandIn, host: str, port: int, agreement: Agreement) -> Iterator[ShopServer[Shop[Any]]]:
    server = ShopServer(stand_in.shop(agreement), host=host, port=port)
    try:
        server.start()
    except OSError as exc:
        raise CrawlfleetError(
            f"cannot listen on port {port} of {host}: {exc.strerror}; end what uses it or give --{stand_in.name}-port"
        ) from exc
    try:
        yield server
    finally:
        server.stop()


def _tell(shops: list[StandIn], servers: dict[str, ShopServer[Shop[Any]]], users: int) -> None:
    """All account lines first: who waits for the last line has everything."""
    for shop in shops:
        for account in shop.accounts(users, datetime.now(UTC)):
            print(json.dumps(account, ensure_ascii=False))
    sys.stdout.flush()
    for shop in shops:
        url = servers[shop.name].url + shop.path
        print(f"stand-in shop {shop.name}: baseURL {url}; Ctrl-C ends it", file=sys.stderr, flush=True)
