"""`python -m cluster.testbed COMMAND`: what `make cluster-build`, `cluster-up` and `cluster-down` run."""

from __future__ import annotations

import argparse
import sys

from cluster.testbed import cluster, machine
from cluster.testbed.binaries import VERSION
from cluster.testbed.errors import TestbedError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cluster.testbed", description=__doc__)
    parser.add_argument("command", choices=["build", "up", "down"])
    parser.add_argument("--kubernetes", default=VERSION, metavar="VERSION", help=f"default {VERSION}")
    arguments = parser.parse_args()
    try:
        machine.require()
        with machine.claimed():
            if arguments.command == "up":
                _up(arguments.kubernetes)
            else:
                {"build": cluster.build, "down": cluster.down}[arguments.command]()
    except TestbedError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


def _up(version: str) -> None:
    nodes = cluster.NODES if version == VERSION else 0
    running = cluster.up(version, nodes=nodes)
    print(f"kubeconfig: {running.kubectl.kubeconfig}")
    print(f"try: {' '.join(running.kubectl.command('get', 'nodes,pods', '--all-namespaces'))}")


if __name__ == "__main__":
    sys.exit(main())
