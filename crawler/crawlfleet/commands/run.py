"""`crawlfleet run`: bring what was given into a database, run its batches, tell how they ended. `plan` stops before."""

from __future__ import annotations

import json
from contextlib import ExitStack, nullcontext

from rich.console import Console

from crawlfleet import apply
from crawlfleet.commands.accounts import import_file
from crawlfleet.commands.place import Arguments, command_line, database, key_ring
from crawlfleet.credentials import KeyRing
from crawlfleet.demo.violations import SEEN
from crawlfleet.documents import load
from crawlfleet.errors import INTERRUPTED, BadInput
from crawlfleet.keys import check_keys
from crawlfleet.local.run import Interrupt, LocalRun, exit_code, run_batches
from crawlfleet.local.shops import Shop, running_shops
from crawlfleet.local.view import say
from crawlfleet.local.watch import CHANGED, CLOSED_ALREADY
from crawlfleet.manifests import Manifests
from crawlfleet.planner import BatchPlan
from crawlfleet.progress import progress
from crawlfleet.sources import Adapter
from crawlfleet.store import batches, fleet
from crawlfleet.store.connection import Connection, connect
from crawlfleet.store.migrations import check_schema


def run(arguments: Arguments) -> int:
    """Everything that can be wrong with what was given is found before the database starts."""
    manifests = load(arguments.file)
    _check_batches(arguments, manifests)
    adapters = apply.adapters(manifests)
    console = Console(stderr=arguments.output == "json")
    interrupt = Interrupt()
    told = []
    with interrupt.installed(), ExitStack() as started:
        local = _start(arguments, manifests, adapters, console, started)
        for summed in run_batches(local, manifests, interrupt):
            told.append(summed)
            if arguments.output == "json":
                print(json.dumps(summed, ensure_ascii=False), flush=True)
        for shop in local.shops:
            _tell_counters(console, shop)
    return INTERRUPTED if interrupt.count else exit_code(told)


def plan(arguments: Arguments) -> int:
    """For workers that run elsewhere: pods, or containers on plain machines."""
    manifests = load(arguments.file)
    _check_batches(arguments, manifests)
    adapters = apply.adapters(manifests)
    console = Console()
    keys = key_ring(arguments)
    with database(arguments) as (url, _), connect(url, "crawlfleet plan") as conn:
        check_schema(conn)
        plans = [apply.local_plan(batch, manifests) for batch in manifests.batches]
        for plan in plans:
            if apply.check_namesakes(conn, plan, cancel=command_line(arguments, "cancel", plan.name)):
                say(console, CHANGED.format(plan.name))
        _declare(conn, keys, manifests)
        _tell_declared(console, manifests)
        if arguments.accounts:
            import_file(conn, keys, arguments.accounts, adapters)
        for plan in plans:
            _plan(conn, console, plan)
    return 0


def _plan(conn: Connection, console: Console, plan: BatchPlan) -> None:
    batch_id = apply.plan_batch(conn, plan, plan.workers)
    fleet.recount(conn, batch_id)
    found = batches.find(conn, plan.uid)
    if found and found.state == "closed":
        say(console, CLOSED_ALREADY.format(plan.name))
        return
    tasks = progress(batches.counts(conn, batch_id)).total
    say(console, f"planned: {plan.name}, tasks: {tasks}, workers: WORKER_ID 0 to {plan.workers - 1}")


def _check_batches(arguments: Arguments, manifests: Manifests) -> None:
    if not manifests.batches and not manifests.sources:
        raise BadInput("neither a CrawlBatch nor a CrawlSource in " + ", ".join(map(str, arguments.file)))
    for batch in manifests.batches:
        if batch.spec.suspend or batch.spec.stop != "None":
            raise BadInput(
                f"{manifests.place_of(batch)}: spec.suspend and spec.stop are for a cluster; remove them"
                " (`crawlfleet cancel` ends a batch; Ctrl-C drains a local fleet, `crawlfleet drain` a worker)"
            )


def _start(
    arguments: Arguments,
    manifests: Manifests,
    adapters: dict[str, Adapter],
    console: Console,
    started: ExitStack,
) -> LocalRun:
    """Start what a run needs, to be ended by `started`, and bring manifests and accounts into the database."""
    with console.status("starting PostgreSQL") if console.is_terminal else nullcontext():
        url, postgres = started.enter_context(database(arguments, may_make=True))
    keys = key_ring(arguments)
    running = started.enter_context(running_shops(manifests)) if arguments.shops else ()
    with connect(url, "crawlfleet run") as conn:
        _declare(conn, keys, manifests)
        if not manifests.batches:  # with a batch, its progress tells enough
            _tell_declared(console, manifests)
        for shop in running:
            apply.import_accounts(conn, keys, shop.accounts())
        if arguments.accounts:
            import_file(conn, keys, arguments.accounts, adapters)
    return LocalRun(
        url,
        keys.path,
        arguments.state_dir / "logs",
        console,
        postgres,
        running,
        command=lambda *words: command_line(arguments, *words),
        again=command_line(arguments, *_words(arguments)),
        workers=arguments.workers,
    )


def _declare(conn: Connection, keys: KeyRing, manifests: Manifests) -> None:
    """In a database that is ours, and of our version."""
    check_schema(conn)
    check_keys(conn, keys)
    apply.declare(conn, keys, manifests)


def _tell_declared(console: Console, manifests: Manifests) -> None:
    for name, source in sorted(manifests.sources.items()):
        cap, rate = source.spec.max_concurrent, source.spec.requests_per_second
        paused = "paused: " if cap == 0 else ""
        pace = f", requestsPerSecond {rate:g}" if rate else ""
        say(console, f"declared: {name} ({paused}maxConcurrent {cap}{pace})")


def _words(arguments: Arguments) -> list[str]:
    """The command `run` as it was given, so that it can be given again."""
    words = ["run"]
    for file in arguments.file:
        words += ["-f", str(file)]
    words += ["--shops"] if arguments.shops else []
    words += ["--accounts", arguments.accounts] if arguments.accounts else []
    return words + (["--workers", str(arguments.workers)] if arguments.workers else [])


def _tell_counters(console: Console, shop: Shop) -> None:
    counted = shop.counters()
    if counted is None:
        say(
            console,
            f"\n{shop.source}: the stand-in shop has ended before the batch:"
            " there are no politeness counters",
        )
    elif counted.get("requests"):
        requests, peak, violations = (counted[name] for name in ("requests", "peak_in_flight", "violations"))
        accused = (f"{name} {n}" for name, n in counted.items() if name not in (*SEEN, "violations"))
        say(
            console,
            f"\n{shop.source}: the shop saw {requests} requests, at most {peak} at once, and {violations} violations:",
        )
        say(console, "  " + ", ".join(accused))
