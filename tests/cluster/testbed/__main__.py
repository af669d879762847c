"""`python -m cluster.testbed COMMAND`: what `make cluster-build`, `cluster-up` and `cluster-down` run."""

from __future__ import annotations

import argparse
import sys
from subprocess import CalledProcessError

from cluster.testbed import cluster, machine
from cluster.testbed.binaries import VERSION
from cluster.testbed.errors import TestbedError


def main() -> int:
    arguments = _parser().parse_args()
    try:
        with machine.claimed():
            arguments.do(arguments)
    except TestbedError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    except (OSError, ValueError, LookupError, CalledProcessError) as exc:
        problem = f"{type(exc).__name__}: {exc}".replace("\n", " ")
        print(f"error: {problem}; `make cluster-down` clears what may be broken", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.testbed", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("build").set_defaults(do=lambda _: cluster.build())
    up = commands.add_parser("up")
    up.add_argument("--kubernetes", default=VERSION, metavar="VERSION", help=f"default {VERSION}")
    up.set_defaults(do=lambda arguments: _up(arguments.kubernetes))
    commands.add_parser("down").set_defaults(do=lambda _: cluster.down())
    return parser


def _up(version: str) -> None:
    kubectl = cluster.up(version).kubectl
    print(f"kubeconfig: {kubectl.kubeconfig}")
    print(f"try: {' '.join(kubectl.command('get', 'nodes,pods', '--all-namespaces'))}")


if __name__ == "__main__":
    sys.exit(main())
