"""Charts of a second's start, written by the tests that use them: a web server in a shell.

A chart is a set of templates by file name. `POD` is what JupyterHub connects to; its web server
answers 404 to everything, which is all that the hub asks of a server.
"""

from __future__ import annotations

from pathlib import Path

from e2e.cluster.model import TINY_IMAGE

GATE = "e2e/open"
NAME = "{{ .Values.instance }}-{{ .Values.escaped_user_server }}"
CLAIM_NAME = "claim-{{ .Values.escaped_username }}"

# Each start may set traits of its own, so that one hub serves many cases.
OPTIONS_ARE_TRAITS = """
def options_are_traits(spawner):
    for name, value in spawner.user_options.items():
        setattr(spawner, name, value)
c.LightkubeTemplateSpawner.pre_spawn_hook = options_are_traits
c.LightkubeTemplateSpawner.apply_user_options = lambda spawner, options: None
"""


def pod(
    name: str = NAME,
    *,
    command: str = "httpd -f -p 8888",
    gated: bool = False,
    metadata: str = "",
    connection: bool = True,
) -> str:
    """A pod that ends at once when it is told to; `gated` is never ready until `open_gate`."""
    gate = f'\n  readinessGates: [{{conditionType: "{GATE}"}}]' if gated else ""
    shell = f"trap 'exit 0' TERM; {command} & wait $!"
    return f"""
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  annotations:
    kubetemplatespawner/lifecycle: server-stopped
    kubetemplatespawner/connection: "{str(connection).lower()}"
{metadata}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  enableServiceLinks: false{gate}
  containers:
    - name: server
      image: {TINY_IMAGE}
      command: [/bin/sh, -c, {shell!r}]
"""


def secret(name: str = NAME, lifecycle: str = "server-stopped") -> str:
    return f"""
apiVersion: v1
kind: Secret
metadata:
  name: {name}
  annotations: {{kubetemplatespawner/lifecycle: {lifecycle}}}
stringData: {{key: ours}}
"""


def claim(name: str = CLAIM_NAME, storage_class: str = "e2e-immediate", labels: str = "{}") -> str:
    return f"""
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {name}
  labels: {labels}
  annotations: {{kubetemplatespawner/lifecycle: user-deleted}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: {storage_class}
  resources: {{requests: {{storage: 1Mi}}}}
"""


def chart(folder: Path, **templates: str) -> str:
    """Write a chart, one file for each template, and return its path as the trait takes it."""
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: light\nversion: 0.0.0\n")
    for name, text in templates.items():
        (folder / "templates" / f"{name}.yaml").write_text(text)
    return str(folder)
