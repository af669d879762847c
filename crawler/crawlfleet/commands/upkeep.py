"""What keeps an installation in order: schema, checks, keys, and the definitions for a cluster."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from crawlfleet import crds
from crawlfleet.commands.place import Arguments, connection, database, given_url, keys_path
from crawlfleet.credentials import KeyRing
from crawlfleet.doctor import Finding, examine
from crawlfleet.errors import BadInput, CrawlfleetError
from crawlfleet.keys import rotate
from crawlfleet.settings import ChromeSettings
from crawlfleet.store import migrations


def migrate(arguments: Arguments) -> int:
    url = given_url(arguments)
    if url is None:
        raise BadInput(
            "migrate needs --database-url or CRAWLFLEET_DATABASE_URL; the embedded database migrates itself"
        )
    applied = migrations.migrate(url)
    print(f"applied: {', '.join(applied)}" if applied else "the schema is up to date")
    return 0


def doctor(arguments: Arguments) -> int:
    bad = 0
    for finding in _findings(arguments):
        bad += not finding.well
        print(f"{'ok  ' if finding.well else 'FAIL'} {finding.what}: {finding.words}")
    return 1 if bad else 0


def _findings(arguments: Arguments) -> Iterator[Finding]:
    """Without a database to look at, that is the finding."""
    try:
        with database(arguments) as (url, _):
            yield from examine(url, keys_path(arguments), ChromeSettings.from_environment(os.environ))
    except CrawlfleetError as exc:
        yield Finding("database", False, str(exc))


def print_crds(arguments: Arguments) -> int:
    for name, text in crds.files().items():
        if arguments.into:
            (arguments.into / name).write_text(text, encoding="utf-8")
        else:
            print(text, end="")
    return 0


def new_key(_: Arguments) -> int:
    print(KeyRing.new_key())
    return 0


def rotate_keys(arguments: Arguments) -> int:
    with connection(arguments) as conn:
        keys = KeyRing.load(keys_path(arguments))
        done = rotate(conn, keys)
    print(f"sealed anew with key {keys.ids[0]}: {done.accounts} accounts, {done.proxies} proxies")
    for problem in done.problems:
        print(f"crawlfleet: {problem}", file=sys.stderr)
    return 1 if done.problems else 0
