"""From parsed objects to a plan: check against the contract, stamp, and put in order; pure.

Everything that can be refused is refused here, before the API server is asked for anything.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects import connection, references, stamping
from lightkube_template_spawner.objects.identity import DIGEST, KINDS, Identity, Policy
from lightkube_template_spawner.objects.parsing import Document
from lightkube_template_spawner.objects.ref import CLAIM, NAMESPACE, KindRef, ObjectRef

_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PATH_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.:]*[A-Za-z0-9])?")
# The API server's own limits where they are below 253; longer names fail there, or in controllers.
_NAME_LIMITS = {"Service": 63, "Namespace": 63, "StatefulSet": 52, "CronJob": 52, "Job": 63}

RETAINED_KINDS = (str(CLAIM), "v1/PersistentVolume", str(NAMESPACE))

_RANKS: Mapping[str, int] = {
    kind: rank
    for rank, kinds in enumerate(
        (
            ("Namespace", "CustomResourceDefinition"),
            ("Role", "ClusterRole"),
            # These may give the hub's account its rights to all that follows.
            ("RoleBinding", "ClusterRoleBinding"),
            ("ServiceAccount", "ResourceQuota", "LimitRange", "PriorityClass"),
            ("Secret", "ConfigMap", "PersistentVolume", "PersistentVolumeClaim", "StorageClass"),
            (),
            ("Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "CronJob"),
        )
    )
    for kind in kinds
}
BINDINGS, _REST, LAST = 2, 5, 7


@dataclass(frozen=True, slots=True)
class Contract:
    """The contract's settings, from the spawner's traits."""

    namespace: str
    connection_key: str = "kubetemplatespawner/connection"
    lifecycle_key: str = "kubetemplatespawner/lifecycle"
    namespaces: tuple[str, ...] = ()
    cluster_kinds: tuple[str, ...] = ()
    retained_kinds: tuple[str, ...] = RETAINED_KINDS
    shared_objects: tuple[str, ...] = ()
    select_own_pods: bool = True
    gitops_guard: bool = True
    adopt_retained: bool = False
    former_pvc: str = ""  # the claim that KubeSpawner made for this server
    labels: Mapping[str, str] = field(default_factory=dict)  # of what goes with the server


@dataclass(frozen=True, slots=True)
class Planned:
    """One object to apply: checked, stamped and given its place."""

    manifest: dict[str, Any]
    policy: Policy
    rank: int
    source: str
    claims: tuple[Policy, ...] = ()  # of a StatefulSet's volumes

    @property
    def ref(self) -> ObjectRef:
        """What it is called, for whoever looks for it."""
        return ObjectRef.of(self.manifest)

    @property
    def kind(self) -> KindRef:
        """``apiVersion`` and ``kind``."""
        return self.ref.kind

    @property
    def reference(self) -> str:
        """``Kind/namespace/name``."""
        return str(self.ref)

    @property
    def name(self) -> str:
        """``metadata.name``."""
        return self.ref.name

    @property
    def namespace(self) -> str:
        """``metadata.namespace``; "" for a cluster-scoped object."""
        return self.ref.namespace

    @property
    def digest(self) -> str:
        """What tells this intent from another one of the same object."""
        return str(self.manifest["metadata"]["annotations"][DIGEST])


@dataclass(frozen=True, slots=True)
class Plan:
    """All objects of one start, in the order they are applied; the connection object is last."""

    objects: tuple[Planned, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def connection(self) -> Planned:
        """The object that JupyterHub connects through."""
        return self.objects[-1]

    def places(self, policies: Iterable[Policy] = Policy) -> dict[str, tuple[str, ...]]:
        """``v1/Pod``-like names of the kinds with objects of these policies, and where they are."""
        selection = set(policies)
        namespaces: dict[str, set[str]] = {}
        for item in self.objects:
            if item.policy in selection:
                namespaces.setdefault(str(item.kind), set()).add(item.namespace)
            if selection & set(item.claims):
                namespaces.setdefault(str(CLAIM), set()).add(item.namespace)
        return {kind: tuple(sorted(namespaces[kind])) for kind in sorted(namespaces)}


def prepare(
    documents: Iterable[Document],
    identity: Identity,
    contract: Contract,
    *,
    namespaced: Callable[[KindRef], bool],
    nonce: str,
) -> Plan:
    """Check and stamp every object, and put them in order.

    ``namespaced`` tells the scope of an (apiVersion, kind); ``nonce`` is new for each start, so
    that the digest of an object that must be new recognises this very start.

    Raises:
        ManifestError: an object breaks the contract; names it and its file.
    """
    objects = list(documents)
    for document in objects:
        _place(document, contract, namespaced(document.kind), objects)
    _refuse_duplicates(objects)
    references.check(
        ((d.where, d.manifest) for d in objects), contract.shared_objects, contract.namespace
    )
    connections = [
        d for d in objects if connection.is_connection(d.manifest, contract.connection_key)
    ]
    connection.only_one((d.where for d in connections), contract.connection_key)
    _about(
        connections[0], partial(connection.check, connections[0].manifest, contract.connection_key)
    )
    warnings: list[str] = []
    items = []
    for document in objects:
        policy = _policy(document, contract, warnings)
        if document is connections[0] and policy is not Policy.STOPPED:
            warnings.append(
                f"{document.where} is what JupyterHub connects to, yet its lifecycle is {policy}: "
                "it stays when the server stops"
            )
        _about(document, partial(_stamp, document, identity, policy, contract))
        rank = LAST if document is connections[0] else _RANKS.get(document.kind[1], _REST)
        claims = tuple(
            Policy(claim["metadata"]["labels"][contract.lifecycle_key])
            for claim in stamping.claim_templates(document.manifest)
        )
        if stamping.deletes_claims(document.manifest) and {*claims} - {policy, Policy.STOPPED}:
            warnings.append(
                f"{document.where}: its persistentVolumeClaimRetentionPolicy deletes its volumes "
                f"with it ({policy}), whatever their own lifecycle says: write Retain to keep them"
            )
        items.append(Planned(document.manifest, policy, rank, document.source, claims))
    plan = Plan(tuple(sorted(items, key=lambda o: o.rank)), tuple(warnings))
    kinds = ",".join(plan.places({Policy.STOPPED}))
    plan.connection.manifest["metadata"]["annotations"][KINDS] = kinds
    for item in plan.objects:
        _digest(item, nonce)
    return plan


def _place(
    document: Document, contract: Contract, namespaced: bool, objects: list[Document]
) -> None:
    """Check the name, and give the object its namespace or make sure that it has none."""
    metadata = document.manifest["metadata"]
    kind = document.manifest["kind"]
    group = document.manifest["apiVersion"].rpartition("/")[0]
    pattern = _PATH_NAME if group == "rbac.authorization.k8s.io" else _DNS_NAME
    limit = _NAME_LIMITS.get(kind, 253)
    if not pattern.fullmatch(metadata["name"]):
        raise ManifestError(
            f"{document.where}: its name may hold lower-case letters, digits, '-' and '.' only: "
            "use the escaped_* values"
        )
    if len(metadata["name"]) > limit:
        raise ManifestError(
            f"{document.where}: its name has {len(metadata['name'])} characters, more than "
            f"{limit}: use fewer parts, or `trunc` them"
        )
    if not namespaced:
        metadata.pop("namespace", None)
        if str(document.kind) not in contract.cluster_kinds:
            raise ManifestError(
                f"{document.where}: it belongs to no namespace; allow its kind in the trait "
                f"`cluster_kinds`: [{str(document.kind)!r}]"
            )
        return
    namespace = metadata.setdefault("namespace", contract.namespace)
    made_here = any(
        d.manifest["kind"] == "Namespace" and d.manifest["metadata"]["name"] == namespace
        for d in objects
    )
    patterns = (contract.namespace, *contract.namespaces)
    if not made_here and not any(fnmatchcase(namespace, pattern) for pattern in patterns):
        raise ManifestError(
            f"{document.where}: its namespace {namespace!r} is neither {contract.namespace!r} nor "
            "listed in the trait `extra_namespaces`"
        )


def _refuse_duplicates(documents: Iterable[Document]) -> None:
    sources: dict[tuple[str, str], str] = {}
    for document in documents:
        group = document.manifest["apiVersion"].rpartition("/")[0]
        key = (group, str(ObjectRef.of(document.manifest)))
        if key in sources:
            raise ManifestError(
                f"{document.where} is rendered twice, also in {sources[key]}: names must differ"
            )
        sources[key] = document.source


def _policy(document: Document, contract: Contract, warnings: list[str]) -> Policy:
    annotations = document.manifest["metadata"].get("annotations", {})
    text = annotations.get(contract.lifecycle_key)
    if text is None:
        if str(document.kind) not in contract.retained_kinds:
            return Policy.STOPPED
        warnings.append(
            f"{document.where} has no annotation {contract.lifecycle_key}: it is kept until the "
            f"user is deleted ({Policy.USER_DELETED}); write the annotation to say so, or otherwise"
        )
        return Policy.USER_DELETED
    try:
        return Policy(text)
    except ValueError:
        raise ManifestError(
            f"{document.where}: {contract.lifecycle_key} is {text!r}, not one of "
            + ", ".join(Policy)
        ) from None


def _stamp(document: Document, identity: Identity, policy: Policy, contract: Contract) -> None:
    stamping.stamp(
        document.manifest,
        identity,
        policy,
        lifecycle_key=contract.lifecycle_key,
        select_own_pods=contract.select_own_pods,
        gitops_guard=contract.gitops_guard,
        more=contract.labels if policy is Policy.STOPPED else {},
    )


def _about(document: Document, step: Callable[[], None]) -> None:
    """Take one step, and name the object if it is refused."""
    try:
        step()
    except ManifestError as error:
        raise ManifestError(f"{document.where}: {error}") from error


def _digest(item: Planned, nonce: str) -> None:
    """Mark the intent; with the nonce, what is in a Secret cannot be guessed from its digest."""
    text = json.dumps(item.manifest, sort_keys=True)
    if item.policy is Policy.STOPPED:
        text = nonce + text
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    item.manifest["metadata"]["annotations"][DIGEST] = digest
