"""All end-to-end tests: one by one, then the faults side by side, then those that need quiet.

python -m e2e.suite
python -m e2e.suite e2e/serving/test_servers.py -k service    # some, by pytest's own arguments
"""

from __future__ import annotations

import os
import subprocess
import sys

from e2e import cluster as clusters

# Tests of faults mostly wait; those marked `alone` take the cluster away from all others.
_FAULTS = ("e2e/ownership", "e2e/security", "e2e/reliability")
STAGES = (
    ("e2e/tools", "e2e/serving"),
    (*_FAULTS, "-m", "not alone", "--numprocesses=3", "--dist=loadfile", "--timeout=900"),
    (*_FAULTS, "-m", "alone", "--timeout=900"),
)


def main(arguments: list[str]) -> int:
    """Run the stages, or what `arguments` name; a cluster that was not there before goes."""
    keep = clusters.status() is not None or bool(os.environ.get("E2E_KEEP_CLUSTER"))
    environment = {**os.environ, "E2E_KEEP_CLUSTER": "1"}
    failed = 0
    if arguments and not any(word.startswith("e2e") for word in arguments):
        arguments = ["e2e", *arguments]
    try:
        for stage in [arguments] if arguments else STAGES:
            command = [sys.executable, "-m", "pytest", *stage, "--durations=15"]
            print("$", " ".join(command[1:]), flush=True)
            failed = subprocess.run(command, env=environment, check=False).returncode or failed
    finally:
        if not keep:
            clusters.down(log=lambda text: print(text, flush=True))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
