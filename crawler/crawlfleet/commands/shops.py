"""`crawlfleet shops`: the stand-in shop, for as long as it is wanted."""

from __future__ import annotations

import json
import signal
import sys
import threading
from datetime import UTC, datetime

from crawlfleet.commands.place import Arguments
from crawlfleet.demo.cafe24.config import Cafe24Config
from crawlfleet.demo.cafe24.tokens import demo_accounts
from crawlfleet.demo.server import serve
from crawlfleet.demo.violations import Agreement
from crawlfleet.errors import CrawlfleetError


def serve_shops(arguments: Arguments) -> int:
    config = Cafe24Config(agreement=Agreement(malls_per_egress=arguments.cap, pace_per_s=arguments.pace))
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())

    def ready(url: str) -> None:
        for account in demo_accounts(arguments.users, config, datetime.now(UTC)):
            print(json.dumps(account, ensure_ascii=False))
        sys.stdout.flush()
        print(f"stand-in shop: baseURL {url}/{{mall_id}}; Ctrl-C ends it", file=sys.stderr, flush=True)

    try:
        counted = serve(arguments.port, config, stop=ended, ready=ready)
    except OSError as exc:
        raise CrawlfleetError(
            f"cannot listen on port {arguments.port}: {exc.strerror}; end what uses it or give --port"
        ) from exc
    print(json.dumps(counted.as_dict()), file=sys.stderr)
    return 0
