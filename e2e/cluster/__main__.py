"""`python -m e2e.cluster up|down|status|env`."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time

from e2e import cluster
from e2e.cluster.kubectl import Kubectl
from e2e.cluster.model import DEFAULT_NAME, Cluster, ClusterError, Log


def main() -> int:
    """Run one command; what a person can act on is one message, not a trace."""
    parser = argparse.ArgumentParser(
        prog="python -m e2e.cluster",
        description=cluster.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["up", "down", "status", "env"])
    parser.add_argument("--name", default=DEFAULT_NAME, help="one cluster fits on a machine")
    options = parser.parse_args()
    begun = time.monotonic()

    def log(message: str) -> None:
        print(f"[{time.monotonic() - begun:6.1f} s] {message}", file=sys.stderr, flush=True)

    try:
        return run(options.command, options.name, log)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run(command: str, name: str, log: Log) -> int:
    """Do what was asked for; the result is the exit code."""
    if command == "down":
        cluster.down(name, log)
        return 0
    found = cluster.up(name, log) if command == "up" else cluster.status()
    if found is None:
        print("no cluster runs here: start one with `python -m e2e.cluster up`", file=sys.stderr)
        return 1
    if command == "status":
        print(f"{found.name} ({found.provider}), kubeconfig {found.kubeconfig}")
        print(Kubectl(found.kubectl, found.kubeconfig)("get", "nodes"), end="")
    else:
        print_environment(found)
    return 0


def print_environment(found: Cluster) -> None:
    """For `eval "$(python -m e2e.cluster env)"`."""
    for name, value in found.environment().items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    # Being told to end is an interrupt too: what was begun is taken down again.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
