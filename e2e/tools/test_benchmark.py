"""The benchmark runs: a small turn of the command that `benchmarks/README.md` names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from e2e.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(300)
def test_the_benchmark_runs_and_nothing_in_it_fails(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "benchmarks.starts", "--servers", "5", "--rounds", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()]
    table = {row[1]: row[2:5] for row in rows if len(row) > 5}
    assert table["5 servers"] == ["bare", "ours", "kubespawner"]
    assert table["starts and stops that failed"] == ["0", "0", "0"]
    assert all(float(cell) > 0 for cell in table["one start alone, median, ms"])
