"""What cannot work, found when the hub starts instead of at a user's click: one line each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from traitlets import TraitError
from traitlets.config.loader import Config

from lightkube_template_spawner.cluster import rbac
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.rbac import FULL, LOOK, Needs
from lightkube_template_spawner.cluster.retry import deadline
from lightkube_template_spawner.errors import (
    ClusterError,
    ConfigurationError,
    Forbidden,
    TemplateError,
)
from lightkube_template_spawner.hub import choosing, kubespawner
from lightkube_template_spawner.hub.settings import Settings
from lightkube_template_spawner.templates.chart import Chart, check_template

_PATIENCE = 15.0  # seconds for all that the API server is asked


async def problems(spawner_class: type[Settings], config: Config, log: logging.Logger) -> list[str]:
    """Every setting, chart, namespace or right that no start can do without, with its mend.

    Bounded in time; changes nothing in the cluster.
    """
    lines = [line for _, line in unusable(spawner_class, config)]
    if lines:
        return lines  # nothing more can be asked with them
    settings = spawner_class(config=config)
    try:
        chart: Chart | None = await asyncio.to_thread(check_template, settings.template)
    except TemplateError as error:
        chart = None
        lines.append(f"c.{spawner_class.__name__}.template_path: {error}")
    lines += choosing.problems(settings)
    lines += kubespawner.unread(spawner_class, config, chart.files if chart else {})
    return [*lines, *await _in_the_cluster(settings, log)]


def unusable(spawner_class: type[Settings], config: Config) -> Iterator[tuple[str, str]]:
    """The name of each configured trait that refuses its value, and a line that says why."""
    instance = spawner_class.__new__(spawner_class)  # has the traits, and reads no configuration
    for section in reversed(spawner_class.__mro__):
        for name, value in config.get(section.__name__, {}).items():
            if name in spawner_class.class_trait_names(config=True):
                try:
                    setattr(instance, name, kubespawner.resolved(instance, name, value))
                except TraitError as error:
                    yield name, f"c.{section.__name__}.{name} cannot be used: {error}"
    for name, value in kubespawner.inherited(spawner_class, config).items():
        try:
            setattr(instance, name, kubespawner.resolved(instance, name, value))
        except TraitError as error:
            yield name, f"c.KubeSpawner.{name} cannot be used: {error}"


def named(error: TraitError, spawner_class: type[Settings], config: Config | None) -> TraitError:
    """The error, with the setting that keeps every server of the hub from being looked at.

    The hub's error page shows its name; the value, which may be secret, is for the log.
    """
    complaints = dict(unusable(spawner_class, config or Config()))
    what = f"the setting {next(iter(complaints))!r}" if complaints else "a setting"
    trait_error = TraitError("; ".join(complaints.values()) or str(error))
    message = f"{what} of {spawner_class.__name__} cannot be used: the hub's log says why"
    vars(trait_error)["jupyterhub_message"] = message
    return trait_error


async def _in_the_cluster(settings: Settings, log: logging.Logger) -> list[str]:
    try:
        with deadline(_PATIENCE):
            cluster = settings.open_cluster(log)
            await cluster.discovery.server_version()
            lines = await _absent_namespaces(cluster, settings)
            return lines or await _missing_rights(cluster, settings)
    except TimeoutError as error:
        text = f"the API server did not answer within {_PATIENCE:.0f} s: {error}; servers start "
        text += "once it does: check the settings `kubeconfig`, `kube_context`, and the network"
        return [text]
    except ConfigurationError as error:
        return [f"{error}; correct the settings `kubeconfig` or `kube_context`, or the file"]
    except ClusterError as error:
        return [f"the API server refuses the hub: {error}"]


async def _absent_namespaces(cluster: Cluster, settings: Settings) -> list[str]:
    if "v1/Namespace" in settings.cluster_kinds:
        return []  # the template makes them
    kind = await cluster.discovery.kind("v1", "Namespace")
    lines = []
    for name in settings.named_namespaces:
        try:
            live = await cluster.get(kind, "", name)
        except Forbidden:
            continue  # an account with a Role in it need not be able to read it
        if live is None:
            own = name == settings.namespace
            mend = "set `namespace` to another" if own else "take it out of `extra_namespaces`"
            lines.append(
                f"the namespace {name!r} does not exist: create it with `kubectl create namespace "
                f"{name}`, or {mend}"
            )
    return lines


async def _missing_rights(cluster: Cluster, settings: Settings) -> list[str]:
    """What every start needs; only a rendered template tells the rest."""
    if settings.extra_namespaces:
        return []  # pods may all be elsewhere
    rights = {"Pod": LOOK} if settings.template_path else {"Pod": FULL, "Secret": FULL}
    needs: Needs = {
        (await cluster.discovery.kind("v1", kind), settings.namespace): verbs
        for kind, verbs in rights.items()
    }
    gaps = await cluster.rights.missing(needs)
    if not gaps:
        return []
    account = await cluster.rights.account()
    return [" ".join(rbac.explain(gaps, account).splitlines())]
