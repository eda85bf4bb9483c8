"""The main job, shown: a real cluster, a real hub, one user's server from click to kernel.

`python -m e2e.demo` does what an administrator and a user would do, prints where each part runs
and how long it took, and cleans up. With a terminal it stays up for you to log in, until Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from e2e import cluster as clusters
from e2e.cluster import Cluster, ClusterError
from e2e.cluster.model import cache_folder
from e2e.harness.hub import Hub
from e2e.harness.kube import Kube
from e2e.harness.proxy import install_proxy
from e2e.harness.user import HubUser

NAMESPACE = "lightkube-template-spawner-demo"
USER = "demo"


class Story:
    """Prints what happens, with the time since the beginning."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._steps: list[tuple[str, float]] = []

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._begun:6.1f} s] {text}", flush=True)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        self.say(f"--- {title}")
        begun = time.monotonic()
        yield
        self.took(title, time.monotonic() - begun)

    def took(self, title: str, seconds: float) -> None:
        self._steps.append((title, seconds))

    def summary(self) -> None:
        print("\nHow long it took", flush=True)
        for title, seconds in self._steps:
            print(f"  {seconds:7.1f} s  {title}", flush=True)


def must(fact: bool, otherwise: str) -> None:
    if not fact:
        raise SystemExit(f"the demo failed: {otherwise}")


def config(cluster: Cluster) -> str:
    return f"""
c.JupyterHub.spawner_class = "lightkube-template"
c.LightkubeTemplateSpawner.kubeconfig = {str(cluster.kubeconfig)!r}
c.LightkubeTemplateSpawner.namespace = {NAMESPACE!r}
c.LightkubeTemplateSpawner.extra_vars = {{"image": {cluster.image!r}}}
"""


def list_objects(story: Story, kube: Kube) -> None:
    for name in kube.owned(NAMESPACE):
        kind, _, rest = name.partition("/")
        live = kube.get(kind, NAMESPACE, rest)
        fields = live["metadata"].get("managedFields", []) if live else []
        managers = {f"{entry['manager']} ({entry['operation']})" for entry in fields}
        story.say(f"    {name}: {', '.join(sorted(managers))}")


async def session(story: Story, hub: Hub, kube: Kube) -> None:
    """One user's session, as a browser would have it."""
    async with HubUser(hub.url) as user:
        with story.step(f"{USER} logs in and starts a server"):
            await user.login(USER, hub.user_password)
            await user.start_server()
            async for event in user.progress():
                story.say(f"    {event['progress']:3d} %  {event['message']}")
                must(not event.get("failed"), event["message"])
        with story.step("JupyterLab and a kernel"):
            address = await user.server_url()
            page = await user.lab()
            must("JupyterLab" in page.text, f"{address} does not show JupyterLab")
            story.say(f"    JupyterLab answers at {hub.url}{address}lab")
            answer = (await user.run_code("6*7")).strip()
            story.say(f"    6*7 = {answer}")
            must(answer == "42", f"the kernel answered {answer!r}")
        story.say("--- what the cluster holds for this user, and who manages it")
        list_objects(story, kube)
        with story.step("the server stops"):
            await user.stop_server()
            left = kube.owned(NAMESPACE)
            story.say(f"    left: {', '.join(left)}")
            kinds = {name.partition("/")[0] for name in left}
            must(kinds == {"PersistentVolumeClaim"}, "more than the volume is left")
        with story.step("the user is removed"):
            await hub.delete_user(USER)
            left = kube.owned(NAMESPACE)
            story.say(f"    left: {', '.join(left) or 'nothing'}")
            must(not left, "removing the user left objects")


async def stay(story: Story, hub: Hub) -> None:
    """Leave the hub to whoever sits at the terminal."""
    print(
        f"\nThe hub stays up. Open {hub.url}\n"
        f"Log in with any user name and the password {hub.user_password}\n"
        "Press Ctrl-C to end it.",
        flush=True,
    )
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            break
    with story.step("every user is removed"):
        await hub.delete_users()


async def demonstrate(story: Story, cluster: Cluster) -> None:
    kube = Kube(cluster)
    with story.step("the proxy (configurable-http-proxy, from npm)"):
        command = install_proxy(cache_folder(), story.say)
    kube("delete", "namespace", NAMESPACE, "--ignore-not-found")
    kube("create", "namespace", NAMESPACE)
    story.say("--- the hub")
    try:
        async with Hub(
            config(cluster), proxy_command=command, connect_address=cluster.host_address
        ) as hub:
            story.took("the hub", hub.ready_seconds)
            story.say(f"    hub and proxy run on this machine, at {hub.url}")
            story.say(f"    users' servers run on the cluster's node {cluster.node}")
            try:
                await session(story, hub, kube)
            except BaseException:
                print(f"\nthe hub's log ends with\n{hub.log_tail()}", flush=True)
                raise
            story.summary()
            if sys.stdin.isatty() and sys.stdout.isatty():
                await stay(story, hub)
    finally:
        kube("delete", "namespace", NAMESPACE, "--wait=false")


def main() -> None:
    story = Story()
    running = clusters.status() is not None
    try:
        with story.step("a Kubernetes cluster"):
            cluster = clusters.up(log=story.say)
        story.say(f"    provider {cluster.provider}, kubeconfig {cluster.kubeconfig}")
        try:
            anyio.run(demonstrate, story, cluster)
        finally:
            if not running and not os.environ.get("E2E_KEEP_CLUSTER"):
                with story.step("the cluster is removed (E2E_KEEP_CLUSTER=1 keeps it)"):
                    clusters.down(log=story.say)
    except ClusterError as error:
        raise SystemExit(f"no cluster for the demo: {error}") from error
    story.say("done")


if __name__ == "__main__":
    main()
