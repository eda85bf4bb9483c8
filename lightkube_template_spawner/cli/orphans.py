"""The command `lightkube-template-spawner`, for administrators."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence

import anyio
import anyio.to_thread
from traitlets import TraitError

from lightkube_template_spawner.cli import config
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.errors import ConfigurationError, SpawnerError
from lightkube_template_spawner.hub.rest import SCOPES, HubApi
from lightkube_template_spawner.hub.settings import Settings
from lightkube_template_spawner.lifecycle.orphans import Roster
from lightkube_template_spawner.lifecycle.sweep import Orphan, Survey, Sweep

NONE_LEFT, LEFT, INCOMPLETE = 0, 1, 2
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHOWN = 8

_ORPHANS = f"""\
Report objects of one hub instance that nobody owns: their user is not known to the hub, or their
server is not, or they should have gone when a server stopped. Objects without our owner label, of
other instances, or made by controllers are never looked at; volumes of users that the hub knows are
never orphans. Nothing is deleted without --delete, and no volume without --retained.

The hub is asked over its REST API: JUPYTERHUB_API_URL and JUPYTERHUB_API_TOKEN must be in the
environment, as JupyterHub sets them for its services. The token needs the scopes
{", ".join(SCOPES)}, for all users. If the hub does not
answer, or does not show everything, nothing is reported and nothing deleted.
"""
_EXIT = f"""\
in jupyterhub_config.py, as a service that looks when the hub starts and every day, and reports to
the hub's log:
  c.JupyterHub.services = [{{
      "name": "orphans",
      "command": ["lightkube-template-spawner", "orphans", "--every", "1d", "-f", __file__],
      "environment": {{"KUBECONFIG": "/path/of/it"}},  # outside a pod only: nothing is inherited
  }}]
  c.JupyterHub.load_roles = [{{
      "name": "orphans",
      "services": ["orphans"],
      "scopes": {json.dumps(SCOPES)},
  }}]

exit status:
  0  no orphans, or all that were found are deleted
  1  orphans are left: they were only reported, or did not go
  2  the hub or the cluster could not be asked, a namespace does not exist, there is nothing of this
     instance but of others, or some kind could not be listed though the account may; standard error
     says which

A database of the hub that was lost or replaced makes every object an orphan until its user has
logged in again. Read the report before you give --delete, and twice before --retained.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    options = _parser().parse_args(arguments)
    # A hub ends its services by SIGINT; one that a shell started in the background hands on that
    # it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        status: int = anyio.run(_orphans, options)
    except (SpawnerError, TraitError) as error:
        print(f"error: {error}", file=sys.stderr)
        return INCOMPLETE
    except KeyboardInterrupt:
        return INCOMPLETE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightkube-template-spawner",
        description="Tools for administrators of a JupyterHub with LightkubeTemplateSpawner.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    orphans = commands.add_parser(
        "orphans",
        help="report, or delete, objects that nobody owns",
        description=_ORPHANS,
        epilog=_EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = orphans.add_argument
    add(
        "-f",
        "--config",
        default="",
        metavar="FILE",
        help="take the settings that follow from this configuration file of the hub, such as "
        "jupyterhub_config.py, where they are not given here; the file is run",
    )
    add(
        "--delete",
        action="store_true",
        help="delete orphans that go whenever a server stops, pods first; refused when the hub has "
        "no server of this instance on record",
    )
    add(
        "--retained",
        action="store_true",
        help="with --delete: also those that outlive a server, users' volumes among them",
    )
    add(
        "--instance",
        help="value of the hub's trait `instance_name` (default: as the trait's own, from "
        "HELM_RELEASE_NAME and the pod's namespace, else `jupyter`)",
    )
    add(
        "-n",
        "--namespace",
        action="append",
        default=[],
        help="look here; may be repeated (default: the pod's own namespace, else `default`; "
        "namespaces that the hub has on record for its users are looked at, too)",
    )
    add(
        "-A",
        "--all-namespaces",
        action="store_true",
        help="look everywhere; needs the right to list cluster-wide",
    )
    add(
        "--cluster-kind",
        action="append",
        default=[],
        metavar="KIND",
        help="look for this kind without a namespace, too, as the trait `cluster_kinds` has it: "
        "v1/Namespace; may be repeated (default: none)",
    )
    add("--kubeconfig", default="", help="file (default: the pod's account, else $KUBECONFIG)")
    add("--context", default="", help="context of the kubeconfig (default: its current one)")
    add(
        "--lifecycle-key",
        default="",
        help="value of the trait `lifecycle_annotation_key` (default: "
        f"{Settings.lifecycle_annotation_key.default()})",
    )
    add(
        "--min-age",
        type=_seconds,
        default="10m",
        metavar="TIME",
        help="leave younger objects out, such as 30s, 10m, 2h, 1d (default: %(default)s)",
    )
    add(
        "--every",
        type=_seconds,
        metavar="TIME",
        help="do it again and again, with this pause, and never end: for a service of the hub, "
        "which is started again when it ends",
    )
    add(
        "--timeout",
        type=_seconds,
        default="90s",
        metavar="TIME",
        help="how long to wait for deleted objects to be gone (default: %(default)s)",
    )
    add(
        "--wait",
        type=_seconds,
        default="30s",
        metavar="TIME",
        help="how long to wait for a hub that does not answer, as one that is just starting "
        "(default: %(default)s)",
    )
    add("-o", "--output", choices=["text", "json"], default="text", help="default: %(default)s")
    return parser


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)([smhd])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 30s, 10m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


async def _orphans(options: argparse.Namespace) -> int:
    settings = _settings(options)
    hub = HubApi(os.environ, patience=options.wait)
    log = logging.getLogger("lightkube-template-spawner")

    async def ask() -> Roster:
        roster = Roster(settings.instance_name, settings.lifecycle_annotation_key)
        return await anyio.to_thread.run_sync(hub.read, roster)

    cluster = settings.open_cluster(log)
    try:
        names = options.namespace or settings.named_namespaces
        namespaces = [""] if options.all_namespaces else names
        sweep = Sweep(cluster, ask, log)
        while True:
            try:
                status = await _once(sweep, namespaces, settings, options)
            except ConfigurationError:
                raise
            except SpawnerError as error:
                if options.every is None:
                    raise
                print(f"error: {error}", file=sys.stderr, flush=True)
                status = INCOMPLETE
            if options.every is None:
                return status
            await anyio.sleep(options.every)
    finally:
        await _close(cluster)


def _settings(options: argparse.Namespace) -> Settings:
    """The configuration file's, with what the command line says."""
    settings = config.settings(options.config)
    overrides = {
        "instance_name": options.instance,
        "kubeconfig": options.kubeconfig,
        "kube_context": options.context,
        "lifecycle_annotation_key": options.lifecycle_key,
        "cluster_kinds": options.cluster_kind,
    }
    for name, value in overrides.items():
        if value:
            setattr(settings, name, value)
    return settings


async def _close(cluster: Cluster) -> None:
    with anyio.CancelScope(shield=True):
        await cluster.aclose()


async def _once(
    sweep: Sweep, namespaces: list[str], settings: Settings, options: argparse.Namespace
) -> int:
    survey = await sweep.find(
        namespaces, cluster_kinds=settings.cluster_kinds, min_age=options.min_age
    )
    targets = [o for o in survey.orphans if options.delete and (options.retained or not o.retained)]
    refusal = ""
    if targets:
        try:
            await sweep.delete(targets, timeout=options.timeout)
        except SpawnerError as error:
            refusal = str(error)
    _print(survey, settings.instance_name, options, [] if refusal else targets)
    errors = list(_doubts(survey, settings.instance_name))
    for text in filter(None, [refusal, *errors]):
        print(f"error: {text}", file=sys.stderr)
    if errors:
        return INCOMPLETE
    return LEFT if refusal or len(targets) < len(survey.orphans) else NONE_LEFT


def _doubts(survey: Survey, instance: str) -> Iterator[str]:
    """Why nothing that was found would not mean that nothing is there."""
    for namespace in survey.absentees:
        yield f"the namespace {namespace!r} does not exist"
    if survey.instances:
        instances = ", ".join(map(repr, sorted(survey.instances)))
        yield (
            f"neither the hub nor the cluster knows the instance {instance!r}, but {instances}: "
            "give --instance, or the hub's configuration with -f"
        )
    if not survey.places:
        yield "the account may list nothing there"
    yield from (f"not looked at: {text}" for text in survey.failures)


def _print(
    survey: Survey, instance: str, options: argparse.Namespace, targets: list[Orphan]
) -> None:
    if options.output == "json":
        uids = {orphan.meta.uid for orphan in targets}
        orphans = [{**o.as_dict(), "deleted": o.meta.uid in uids} for o in survey.orphans]
        places = [f"{kind} in {place or 'the cluster'}" for kind, place in survey.refusals]
        report = {
            "instance": instance,
            "namespaces": survey.namespaces,
            "orphans": orphans,
            "tooYoung": survey.young_count,
            "failed": survey.failures,
            "notAllowed": places,
        }
        print(json.dumps(report, indent=2), flush=True)
        return
    for orphan in survey.orphans:
        print(f"{'deleted: ' if orphan in targets else ''}{orphan}")
    number, rest = len(survey.orphans), len(survey.orphans) - len(targets)
    places = ["all" if name == "" else name for name in survey.namespaces]
    note = (
        f"; younger than --min-age and left out: {survey.young_count}" if survey.young_count else ""
    )
    print(
        f"orphans: {number} found, {rest} left; instance {instance!r}, namespaces: "
        f"{', '.join(places)}; kinds looked at: {survey.kinds}{note}",
        flush=True,
    )
    if options.delete and not options.retained and any(o.retained for o in survey.orphans):
        print("note: what outlives a server, such as volumes, goes with --retained only")
    if survey.refusals:
        kinds = sorted({str(kind) for kind, _ in survey.refusals})
        tail = f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else ""
        print(
            "note: not looked at, since the account may not list them: "
            f"{', '.join(kinds[:_SHOWN])}{tail}",
            file=sys.stderr,
        )
