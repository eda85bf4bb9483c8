"""Everything an administrator can configure, each trait with its documentation."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traitlets import (
    Bool,
    Callable,
    Dict,
    Enum,
    Float,
    Integer,
    List,
    TraitError,
    Unicode,
    Union,
    default,
    validate,
)
from traitlets.config import Configurable

from lightkube_template_spawner.cluster.cluster import Cluster, shared
from lightkube_template_spawner.lifecycle import failures, liveness
from lightkube_template_spawner.objects.connection import Route
from lightkube_template_spawner.objects.identity import is_label_value
from lightkube_template_spawner.objects.plan import RETAINED_KINDS, Contract
from lightkube_template_spawner.templates import guard
from lightkube_template_spawner.templates.renderer import Renderer, open_renderer

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_KIND = re.compile(r"(v1|[^/]+/v[^/]+)/[^/]+")
_LONGEST = 63


def default_chart() -> Path:
    """The packaged chart: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[1]
    chart = package / "charts" / "user-server"
    return chart if chart.exists() else package.parent / "charts" / "user-server"


def _own_namespace() -> str:
    if os.environ.get("POD_NAMESPACE"):
        return os.environ["POD_NAMESPACE"]
    return _ACCOUNT.read_text().strip() if _ACCOUNT.exists() else ""


def _path(trait: str, name: Any) -> guard.Path:
    parts = guard.path(name) if isinstance(name, str | tuple | list) else ()
    if not parts or not all(isinstance(part, str) and part for part in parts):
        raise TraitError(
            f'{trait}: {name!r} is not a path: write "user_options.size", or ("user_options", '
            '"a.b") where a key holds a dot'
        )
    return parts


class Settings(Configurable):
    """The traits of ``LightkubeTemplateSpawner``; set them as ``c.LightkubeTemplateSpawner.…``."""

    template_path = Unicode(
        config=True,
        help="""
        The template: a Helm chart directory (or its packaged `.tgz`) with everything one user's
        server needs. Empty: the chart that comes with this package (a pod, a home volume and a
        secret for the token), which `extra_vars` configures.

        A ConfigMap mounted as a flat directory works too: `templates__pod.yaml` stands for
        `templates/pod.yaml`. A change is used by the next start.
        """,
    )

    extra_vars = Union(
        [Dict(), Callable()],
        default_value={},
        allow_none=True,
        config=True,
        help="""
        Values for the template, beside those that the spawner always passes, which they may
        override: a dictionary, or a function of the spawner that returns one and may be async::

            c.LightkubeTemplateSpawner.extra_vars = {"image": "quay.io/jupyter/base-notebook"}
        """,
    )

    instance_name = Unicode(
        config=True,
        help="""
        Tells this hub's objects from another hub's in the same namespaces: the value of the label
        `app.kubernetes.io/instance`. Two hubs must never share it. Default: Helm release and
        namespace when the hub runs in a pod, else `jupyter`. Changing it makes the hub forget
        every object made under the old name, volumes included.
        """,
    )

    namespace = Unicode(
        config=True,
        help="""
        Namespace of users' objects. Default: the hub's own in a pod, else `default`. It must exist
        unless the template renders it.
        """,
    )

    extra_namespaces = List(
        Unicode(),
        config=True,
        help="""
        Other namespaces that the template may put objects in; patterns such as `user-*` are
        allowed. Without them, an object in a foreign namespace is refused.
        """,
    )

    cluster_kinds = List(
        Unicode(),
        config=True,
        help="""
        Kinds without a namespace that the template may render, as `apiVersion/Kind`:
        `["v1/Namespace"]`. They need cluster-wide rights, so none is allowed by default.
        """,
    )

    resource_kinds = List(
        Unicode(),
        config=True,
        help="""
        Kinds, as `v1/Pod` or `apps/v1/Deployment`, that are searched when objects are deleted.
        Empty: the kinds on record at a stop; every kind that the API server serves, and that the
        hub's account may delete, when a user or named server is removed. Kinds on record are
        always searched.
        """,
    )

    retained_kinds = List(
        Unicode(),
        default_value=list(RETAINED_KINDS),
        config=True,
        help="""
        Kinds that are kept until the user is deleted when the template gives their objects no
        lifecycle annotation: a forgotten line must not cost a user's data. All others go when the
        server stops.
        """,
    )

    adopt_retained = Bool(
        False,
        config=True,
        help="""
        Take over what KubeSpawner or KubeTemplateSpawner made for a user and the template names:
        objects with the labels `app.kubernetes.io/instance` (of this hub) and
        `hub.jupyter.org/username` that outlive a server, first of all volumes. They get our labels
        at the user's next start, by force, and are deleted with the user. Off, they are used as
        they are, never written, and stay when the user is deleted. Going back to the former
        spawner is possible either way: names stay.
        """,
    )

    shared_objects = List(
        Unicode(),
        config=True,
        help="""
        Objects outside the template that its pods may refer to, as patterns of `Kind/name`:
        `["Secret/registry-login", "ConfigMap/site-*", "PersistentVolumeClaim/datasets"]`. A pod
        that names any other volume claim, resource claim, secret, config map or account than those
        the template renders is refused, so that no name can lead to another user's. So is a pod
        inside a custom resource, a snapshot of another volume claim, and a volume claim made from
        another volume, claim or snapshot.
        """,
    )

    connection_annotation_key = Unicode(
        "kubetemplatespawner/connection",
        config=True,
        help="""
        Annotation that marks, with the value `"true"`, the one object that JupyterHub connects to.
        `<key>-port`, `<key>-scheme` and, for kinds other than Pod and Service, `<key>-address` (a
        path such as `{.status.address.url}`) say how.
        """,
    )

    lifecycle_annotation_key = Unicode(
        "kubetemplatespawner/lifecycle",
        config=True,
        help="""
        Annotation that says when an object goes: `server-stopped`, `server-deleted` (with its named
        server) or `user-deleted`. Mirrored as a label of the same key, by which objects are found.
        """,
    )

    select_own_pods = Bool(
        True,
        config=True,
        help="""
        Add the owner label to the selectors of rendered Services, NetworkPolicies and
        PodDisruptionBudgets, so that they can never choose another user's pods. Turn it off if they
        must select pods that an operator makes without our labels.
        """,
    )

    gitops_guard = Bool(
        True,
        config=True,
        help="""
        Annotate objects so that Argo CD, which may track by the same instance label, neither counts
        nor prunes them.
        """,
    )

    service_address = Enum(
        ["ip", "dns"],
        config=True,
        help="""
        How the hub and the proxy reach a connection Service: by cluster `ip` (default), or by `dns`
        name, which internal_ssl needs and which works inside the cluster only. A Service that is
        deleted at each stop comes back with another address, which a name may hide for a while.
        """,
    )

    cluster_domain = Unicode(
        "cluster.local", config=True, help="DNS domain of the cluster, for `service_address` dns."
    )

    secret_mount_path = Unicode(
        "/etc/jupyterhub/ssl/",
        config=True,
        help="""
        With internal_ssl: the folder in which the server finds its key, its certificate and whom
        it trusts. The template mounts `internal_ssl.files`, text by file name, at
        `internal_ssl.path`, as the default chart does with a Secret. `internal_ssl.id` is new at
        each start: part of the connection Service's name, because a name that is used again is
        connected to at its former address for a while.
        """,
    )

    kubeconfig = Unicode(
        config=True,
        help="""
        Path of a kubeconfig file. Empty: the pod's service account, else `$KUBECONFIG`, else
        `~/.kube/config`.
        """,
    )

    kube_context = Unicode(
        config=True, help="Context of the kubeconfig; empty: its current context."
    )

    k8s_timeout = Integer(
        config=True,
        help="""
        Seconds that a server may take until it is ready. Default: a little less than
        `start_timeout`, so that the user reads what was waited for.
        """,
    )

    k8s_request_timeout = Float(
        12.0,
        config=True,
        help="""
        Seconds that one request to the API server may take. More than admission webhooks get,
        which is 10 unless they are configured otherwise, lets it say which of them hangs.
        """,
    )

    stop_timeout = Float(
        90.0,
        config=True,
        help="""
        Seconds that a stop may take, beyond the pods' grace period. After that the stop fails with
        the names of the objects that are still there and of the finalizers that hold them.
        """,
    )

    delete_grace_period = Integer(
        None,
        min=1,
        allow_none=True,
        config=True,
        help="""
        Seconds that pods get to end at a stop. Default: what the template says in
        `terminationGracePeriodSeconds`. A stop "now" gives one second.
        """,
    )

    report_orphans = Bool(
        True,
        config=True,
        help="""
        When the hub has started, look once, in the background, for objects of this instance whose
        user or server the hub does not know, and name them in the log. Nothing is deleted: that is
        what `lightkube-template-spawner orphans --delete` is for. Looked at are `namespace`,
        `extra_namespaces` without patterns, and namespaces on record, for kinds that the hub's
        account may list.
        """,
    )

    check_at_hub_start = Bool(
        True,
        config=True,
        help="""
        When the hub has started, look once, in the background, whether its settings can work: the
        values of traits, the template, the connection to the API server, the namespaces that the
        settings name, the rights that every start needs, and which settings of `c.KubeSpawner` have
        no effect. Each finding is one line in the log. Nothing is created or changed.
        """,
    )

    crash_loop_restarts = Integer(
        3,
        min=0,
        config=True,
        help="""
        Restarts in place after which a running server that ends again is taken for dead, if it had
        run for less than ten minutes (Kubernetes then waits longer and longer before it restarts
        it: CrashLoopBackOff). Else it is alive, and the log has each restart's reason. A pod with
        `restartPolicy: Never` is never restarted.
        """,
    )

    node_lost_timeout = Float(
        300.0,
        min=0,
        config=True,
        help="""
        Seconds after which a server is taken for dead whose node no longer answers; 0: never. They
        count from when Kubernetes itself says so, 40 to 50 seconds after the node was lost. It
        also evicts the pod by default after 300 seconds (`tolerations`), which ends the server,
        too. The pod's object stays until the node is back or removed from the cluster, and the
        next start says so: its volume may still be in use.
        """,
    )

    force_delete_lost_pods = Bool(
        False,
        config=True,
        help="""
        Delete pods on a node that does not answer without waiting for it, so that the next start
        does not. Only safe where such nodes are surely off, or volumes may be used from two nodes:
        the process may still run and write.
        """,
    )

    replacement_timeout = Float(
        600.0,
        min=0,
        config=True,
        help="""
        Seconds after which a server is taken for dead whose pod is made by a controller
        (a Deployment or StatefulSet behind the connection Service) and that has had no running pod
        for so long; 0: never. Until then the controller may replace it.
        """,
    )

    failure_rules = Dict(
        config=True,
        help="""
        What ends a start before its time is up, by the rule's name: changes to the default rules,
        and rules of your own, which come first::

            c.LightkubeTemplateSpawner.failure_rules = {
                "unschedulable": {"grace": 240},  # the autoscaler needs four minutes
                "image": {"grace": None},  # a failing pull is told, but never ends a start
                "no-licence": {
                    "where": "event", "pattern": "^NoLicence", "reason": "licence", "grace": 5,
                },
            }

        `where` is one or several of `refusal`, `retry`, `container`, `scheduling`, `queue`,
        `reference`, `controller` and `event`; `pattern` is a regular expression, searched in the
        cluster's words (`Reason: message`); `reason` is the word under which the hub counts the
        failure; `grace` is for how many seconds it may last (None: for ever), as far as
        `start_timeout` allows. `restarts` is how often the container must have been restarted,
        `heard` a pattern for an event about the same pod. None instead of a rule drops it. The
        defaults are in `lightkube_template_spawner/lifecycle/failures.py`.
        """,
    )

    strict_values = Bool(
        False,
        config=True,
        help="""
        Refuse a template that asks for a value that nobody gave, instead of rendering it as empty
        text. Only with Helm as a library (the extra `helm`).
        """,
    )

    tainted_values: Any = List(
        config=True,
        help="""
        Paths of further values that hold what users or their identity provider wrote, and that are
        guarded as `user_options` is: what `extra_vars` makes of authentication state, or of an
        option that it changes (`["email", "claims.department"]`; a tuple where a key holds a dot).
        Unchanged copies of risky options are found without.
        """,
    )

    trusted_values = Union(
        [Dict(), List()],
        default_value={},
        config=True,
        help="""
        Values that users choose and the template decides by, each with what may be chosen::

            c.LightkubeTemplateSpawner.trusted_values = {
                "user_options.size": ["small", "extra large"],
                "user_options.volumes": ["data", "scratch"],  # one of them, or a list of some
            }

        A start with anything else there is refused. What users send is otherwise kept from changing
        the shape of any object. A path may be a tuple, for keys that hold dots. See
        `docs/explanation/templates-and-untrusted-text.md`.
        """,
    )

    render_timeout = Float(
        10.0, config=True, help="Seconds that rendering the template may take before it is ended."
    )

    @default("instance_name")
    def _default_instance_name(self) -> str:
        namespace = _own_namespace()
        if not namespace:
            return "jupyter"
        parts = [os.environ.get("HELM_RELEASE_NAME"), namespace]
        name = "-".join(part for part in parts if part)
        if len(name) <= _LONGEST:
            return name
        # A mere cut could give two hubs one name.
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        return f"{name[: _LONGEST - 9].rstrip('-_.')}-{digest}"

    @validate("instance_name")
    def _valid_instance_name(self, proposal: Any) -> str:
        name = str(proposal["value"])
        if not is_label_value(name):
            raise TraitError(
                f"instance_name {name!r} is not a label value: use at most 63 letters, digits, "
                "'-', '_' and '.', beginning and ending with a letter or digit"
            )
        return name

    @validate("tainted_values")
    def _valid_tainted_values(self, proposal: Any) -> list[guard.Path]:
        return [_path("tainted_values", name) for name in proposal["value"]]

    @validate("trusted_values")
    def _valid_trusted_values(self, proposal: Any) -> dict[guard.Path, list[Any]]:
        value = proposal["value"]
        if isinstance(value, list) and value:
            raise TraitError(
                "trusted_values was a list of paths and is now a dictionary that says what may be "
                f'chosen there, such as {{"{value[0]}": ["small", "large"]}}'
            )
        for name, choices in dict(value).items():
            if not isinstance(choices, list | tuple):
                raise TraitError(
                    f"trusted_values: {name!r} needs a list of what may be chosen there, not "
                    f"{type(choices).__name__}"
                )
        return {
            _path("trusted_values", name): list(choices) for name, choices in dict(value).items()
        }

    @validate("failure_rules")
    def _valid_failure_rules(self, proposal: Any) -> dict[str, Any]:
        try:
            failures.FailureRules(proposal["value"])
        except ValueError as error:
            raise TraitError(f"failure_rules: {error}") from error
        return dict(proposal["value"])

    # Defaults of JupyterHub's own traits that are other ones in a cluster.

    @default("env_keep")
    def _default_env_keep(self) -> list[str]:
        return []  # the hub's own environment is not the user's

    @default("ip")
    def _default_ip(self) -> str:
        return "0.0.0.0"  # noqa: S104 - inside the user's own pod

    @default("k8s_timeout")
    def _default_k8s_timeout(self) -> int:
        return int(getattr(self, "start_timeout", 60))

    @default("service_address")
    def _default_service_address(self) -> str:
        return "dns" if getattr(self, "internal_ssl", False) else "ip"

    @default("ssl_alt_names")
    def _default_ssl_alt_names(self) -> list[str]:
        return []  # not the hub's own names: the user can read the key

    @default("ssl_alt_names_include_local")
    def _default_ssl_alt_names_include_local(self) -> bool:
        return False

    @default("namespace")
    def _default_namespace(self) -> str:
        return _own_namespace() or "default"

    @validate("resource_kinds", "retained_kinds", "cluster_kinds")
    def _valid_kinds(self, proposal: Any) -> list[str]:
        for name in proposal["value"]:
            # Only the core group has no name, and v1 is its only version.
            if not _KIND.fullmatch(name):
                raise TraitError(
                    f"{proposal['trait'].name}: {name!r} is not written as `v1/Pod` or "
                    "`apps/v1/Deployment`"
                )
        return list(proposal["value"])

    @property
    def named_namespaces(self) -> list[str]:
        """Where users' objects may be, as far as the settings name it without a pattern."""
        names = [name for name in self.extra_namespaces if not set(name) & set("*?[")]
        return [self.namespace, *names]

    @property
    def template(self) -> Path:
        """The chart that is rendered."""
        return Path(self.template_path) if self.template_path else default_chart()

    @property
    def start_rules(self) -> failures.FailureRules:
        """What ends a start before its time is up."""
        return failures.FailureRules(self.failure_rules)

    @property
    def limits(self) -> liveness.Limits:
        """How long a server that ran may be silent."""
        return liveness.Limits(
            crash_loop_restarts=self.crash_loop_restarts,
            node_lost=self.node_lost_timeout,
            replacement=self.replacement_timeout,
        )

    def contract(self, former_pvc: str = "", labels: Mapping[str, str] | None = None) -> Contract:
        """What rendered objects may be and become.

        ``former_pvc`` is KubeSpawner's volume claim, ``labels`` are for what goes with the server.
        """
        return Contract(
            namespace=self.namespace,
            connection_key=self.connection_annotation_key,
            lifecycle_key=self.lifecycle_annotation_key,
            namespaces=tuple(self.extra_namespaces),
            cluster_kinds=tuple(self.cluster_kinds),
            retained_kinds=tuple(self.retained_kinds),
            shared_objects=tuple(self.shared_objects),
            select_own_pods=self.select_own_pods,
            gitops_guard=self.gitops_guard,
            adopt_retained=self.adopt_retained,
            former_pvc=former_pvc,
            labels=labels or {},
        )

    def connection_route(self, port: int, scheme: str) -> Route:
        """How a connection object leads to the server where its annotations do not say."""
        return Route(
            annotation_key=self.connection_annotation_key,
            port=port,
            scheme=scheme,
            service_address=self.service_address,
            cluster_domain=self.cluster_domain,
        )

    def open_renderer(self, kube_version: str, log: logging.Logger) -> Renderer:
        """What renders the template; one for all who ask in this process."""
        return open_renderer(
            self.template,
            kube_version=kube_version,
            log=log,
            timeout=self.render_timeout,
            strict=self.strict_values,
        )

    def open_cluster(self, log: logging.Logger) -> Cluster:
        """The cluster that these settings lead to; one for all who ask in this process.

        Raises:
            ConfigurationError: none is configured, or its kubeconfig cannot be used.
        """
        return shared(
            self.kubeconfig,
            self.kube_context,
            self.instance_name,
            log,
            timeout=self.k8s_request_timeout,
        )
