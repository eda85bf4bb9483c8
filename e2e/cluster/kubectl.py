"""kubectl, as far as starting a cluster needs it."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.commands import attempt
from e2e.cluster.model import ClusterError


@dataclass(frozen=True)
class Kubectl:
    """Calls of one cluster's API through its own client program."""

    program: Path
    kubeconfig: Path

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run one command and return whatever came of it."""
        # Proxies are for the way out of the machine, and the cluster is on it.
        direct = {"NO_PROXY": "*", "no_proxy": "*"}
        program = (self.program, f"--kubeconfig={self.kubeconfig}")
        return attempt(*program, *arguments, environment=direct, stdin=stdin)

    def succeeds(self, *arguments: str) -> bool:
        """Whether a command works; for waiting until it does."""
        return self.run(*arguments).returncode == 0

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        """Run a command that has to work."""
        done = self.run(*arguments, stdin=stdin)
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply objects as one list."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(document))

    def get(self, *arguments: str) -> Any:
        """Read one object or a list."""
        return json.loads(self("get", *arguments, "--output=json"))
