"""`crawlfleet shops`: the stand-in shop, for as long as it is wanted."""

from __future__ import annotations

import json
import signal
import sys
import threading
from datetime import UTC, datetime

from crawlfleet.commands.place import Arguments
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.shop import Cafe24Shop
from crawlfleet.demo.cafe24.tokens import demo_accounts
from crawlfleet.demo.server import ShopServer
from crawlfleet.demo.violations import Agreement
from crawlfleet.errors import CrawlfleetError


def serve_shops(arguments: Arguments) -> int:
    config = Cafe24Config(agreement=Agreement(accounts_per_egress=arguments.cap, pace_per_s=arguments.pace))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    server = ShopServer(Cafe24Shop(config), port=arguments.port)
    try:
        url = server.start()
    except OSError as exc:
        raise CrawlfleetError(
            f"cannot listen on port {arguments.port}: {exc.strerror}; end what uses it or give --port"
        ) from exc
    for account in demo_accounts(arguments.users, config, datetime.now(UTC)):
        print(json.dumps(account, ensure_ascii=False))
    sys.stdout.flush()
    print(f"stand-in shop: baseURL {url}/{{mall_id}}; Ctrl-C ends it", file=sys.stderr, flush=True)
    ended.wait()
    server.stop()
    print(json.dumps(server.witness.counters().as_dict()), file=sys.stderr)
    return 0
