"""Starts and stops against a bare loop and against KubeSpawner, in turn, on one cluster.

    python -m benchmarks.starts [--servers 200] [--rounds 3]

Uses the cluster of `python -m e2e.cluster up`. Each round runs each arm once, in a process and a
namespace of its own, beginning with another arm each time. Nothing fails when a budget is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from e2e import cluster
from e2e.harness.kube import Kube

ARMS = ("bare", "ours", "kubespawner")
Result = dict[str, Any]
Round = dict[str, Result]


def main() -> None:
    """Run all rounds, then print the tables."""
    parser = argparse.ArgumentParser(description="Compare what starting servers costs")
    parser.add_argument("--servers", type=int, default=200, help="started at once")
    parser.add_argument("--singles", type=int, default=20, help="started one after another")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = cluster.up(log=lambda text: print(text, file=sys.stderr))
    load = os.getloadavg()[0]
    rounds: list[Round] = []
    for number in range(options.rounds):
        shift = number % len(ARMS)
        rounds.append({})
        for arm in (*ARMS[shift:], *ARMS[:shift]):
            rounds[-1][arm] = run(found, arm, options.servers, options.singles)
            text = f"round {number + 1}, {arm}: {rounds[-1][arm]['start']['seconds']:.2f} s"
            print(text, file=sys.stderr, flush=True)
    today = datetime.now(tz=UTC).date()
    print(
        f"{today}, {found.provider} cluster, {os.cpu_count()} cores, Python "
        f"{sys.version_info.major}.{sys.version_info.minor}, {options.rounds} rounds, "
        f"load average {load:.1f} before and {os.getloadavg()[0]:.1f} after\n"
    )
    print(report(rounds, options.servers))


def run(found: cluster.Cluster, arm: str, servers: int, singles: int) -> Result:
    """One arm, and nothing of it left."""
    kube = Kube(found)
    namespace = f"benchmark-{arm}-{os.getpid()}"
    kube("create", "namespace", namespace)
    # Read by both clients; a proxy for the internet is none for the cluster.
    environment = {**os.environ, "KUBECONFIG": str(found.kubeconfig), "NO_PROXY": "*"}
    command = [sys.executable, "-m", "benchmarks.arms", arm, namespace, str(servers), str(singles)]
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, check=True, timeout=900
        )
    finally:
        kube("delete", "namespace", namespace, "--wait")
    return dict(json.loads(done.stdout))


def report(rounds: list[Round], servers: int) -> str:
    """Medians over the rounds; ratios are taken within each round first."""

    def median(arm: str, get: Callable[[Result], float]) -> float:
        return statistics.median(get(each[arm]) for each in rounds)

    rows = [
        [
            name,
            *(f"{median(arm, get):.{digits}f}" for arm in ARMS),
            *(ratio(rounds, get, *pair) for pair in (("ours", "bare"), ("kubespawner", "ours"))),
        ]
        for name, digits, get in figures(servers)
    ]
    header = [f"{servers} servers", *ARMS, "ours / bare", "kubespawner / ours"]
    spread = ", ".join(
        f"{arm} {min(walls):.2f}-{max(walls):.2f}"
        for arm in ARMS
        for walls in [[each[arm]["start"]["seconds"] for each in rounds]]
    )
    judged = [["budget", "measured", "limit", ""], *budgets(rounds, servers)]
    return "\n\n".join(
        (table([header, *rows]), f"Seconds, fastest to slowest round: {spread}", table(judged))
    )


def figures(servers: int) -> list[tuple[str, int, Callable[[Result], float]]]:
    """Name, decimal places, and where it stands in a result."""
    return [
        ("start all at once, s", 2, lambda r: r["start"]["seconds"]),
        ("hub CPU a start, ms", 2, lambda r: r["start"]["cpu"] / servers * 1e3),
        ("Helm worker CPU a start, ms", 2, lambda r: r["start"]["worker_cpu"] / servers * 1e3),
        ("requests a start", 2, lambda r: sum(r["start"]["requests"].values()) / servers),
        ("memory added at the peak, MiB", 1, lambda r: r["start"]["peak_mib"]),
        ("one start alone, median, ms", 0, lambda r: statistics.median(r["singles"]) * 1e3),
        ("stop all at once, s", 2, lambda r: r["stop"]["seconds"]),
        ("hub CPU a stop, ms", 2, lambda r: r["stop"]["cpu"] / servers * 1e3),
        ("starts and stops that failed", 0, lambda r: r["start"]["failed"] + r["stop"]["failed"]),
        ("requests a stop", 2, lambda r: sum(r["stop"]["requests"].values()) / servers),
    ]


def ratio(rounds: Iterable[Round], get: Callable[[Result], float], over: str, under: str) -> str:
    """The median of the rounds' ratios; empty where one of the two costs nothing."""
    pairs = [(get(each[over]), get(each[under])) for each in rounds]
    if not all(a and b for a, b in pairs):
        return ""
    return f"{statistics.median(a / b for a, b in pairs):.2f}"


def budgets(rounds: list[Round], servers: int) -> list[list[str]]:
    """Each budget with what was measured."""

    def median(get: Callable[[Round], float]) -> float:
        return statistics.median(map(get, rounds))

    def wall(arm: str) -> Callable[[Round], float]:
        return lambda each: float(each[arm]["start"]["seconds"])

    def lag(name: str) -> float:
        return median(lambda r: float(r["ours"][name]) * 1e3)

    def alone(each: Round, arm: str) -> float:
        singles: list[float] = each[arm]["singles"]
        return statistics.median(singles) * 1e3

    def requests(what: str) -> float:
        return median(lambda r: sum(r["ours"][what]["requests"].values()) / servers)

    checks = [
        ("start, times the bare loop", median(lambda r: wall("ours")(r) / wall("bare")(r)), 1.25),
        ("hub CPU a start, ms", median(lambda r: r["ours"]["start"]["cpu"] / servers * 1e3), 8),
        ("added to one start alone, ms", median(lambda r: alone(r, "ours") - alone(r, "bare")), 50),
        ("pod Ready to `start()` back, alone, ms", lag("lag_alone"), 20),
        ("the same, all at once, ms", lag("lag"), 20),
        ("requests a start (2 objects)", requests("start"), 2),
        ("requests a stop (1 kind)", requests("stop"), 1),
        ("requests a poll", requests("poll"), 0),
        ("stores, KiB a server", median(lambda r: r["ours"]["store"]) / 1024, 6),
    ]  # fmt: skip
    faster = median(lambda r: wall("kubespawner")(r) / wall("ours")(r))
    return [
        ["start, times faster than KubeSpawner", f"{faster:.2f}", ">= 3", verdict(faster >= 3)],
        *(
            [name, f"{value:.2f}", f"<= {limit}", verdict(value <= limit)]
            for name, value, limit in checks
        ),
    ]


def verdict(kept: bool) -> str:
    """In a word."""
    return "kept" if kept else "MISSED"


def table(rows: list[list[str]]) -> str:
    """Markdown that lines up in a terminal too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


if __name__ == "__main__":
    main()
