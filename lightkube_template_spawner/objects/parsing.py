"""From rendered text to named objects: what Kubernetes would misread is refused here; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightkube_template_spawner.errors import ManifestError
from lightkube_template_spawner.objects import stamping
from lightkube_template_spawner.objects.identity import is_label_value
from lightkube_template_spawner.objects.ref import KindRef, ObjectRef

_LIMIT = 100  # objects of one server; a template that loops on user input stops here


@dataclass(frozen=True, slots=True)
class Document:
    """One object as the template wrote it, and the file it came from."""

    manifest: dict[str, Any]
    source: str

    @property
    def kind(self) -> KindRef:
        """``apiVersion`` and ``kind``."""
        return KindRef.of(self.manifest)

    @property
    def where(self) -> str:
        """The object and its file, for messages."""
        return f"{ObjectRef.of(self.manifest)} ({self.source})"


def parse(documents: Mapping[str, list[Any]]) -> list[Document]:
    """Take objects out of rendered files; lists are opened, Helm's test hooks left out.

    Raises:
        ManifestError: a document is not a named Kubernetes object.
    """
    objects: list[Document] = []
    for source, entries in documents.items():
        for item in entries:
            items = [item]
            if isinstance(item, Mapping) and str(item.get("kind", "")).endswith("List"):
                members = item.get("items")
                items = members if isinstance(members, list) else [] if "items" in item else items
            objects += [Document(_object(i, source), source) for i in items if not _is_test(i)]
    if not objects:
        raise ManifestError("the template rendered no object at all: check its conditions")
    if len(objects) > _LIMIT:
        raise ManifestError(f"the template rendered {len(objects)} objects, more than {_LIMIT}")
    return objects


def _object(item: object, source: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ManifestError(f"{source}: a document is a {type(item).__name__}, not an object")
    for key in ("apiVersion", "kind"):
        if not isinstance(item.get(key), str) or not item[key]:
            raise ManifestError(f"{source}: an object has no {key}")
    if not isinstance(item.get("metadata"), dict):
        raise ManifestError(f"{source}: a {item['kind']} has no metadata")
    _check_name(item, source)
    where = f"{source}: {item['kind']} {item['metadata']['name']!r}"
    _check_texts(item["metadata"], where)
    for template in (*stamping.pod_templates(item), *stamping.claim_templates(item)):
        if isinstance(template.get("metadata"), dict):
            _check_texts(template["metadata"], f"{where}, in its template")
    _check_containers(item, where)
    return item


def _check_name(item: dict[str, Any], source: str) -> None:
    metadata = item["metadata"]
    if metadata.get("generateName"):
        raise ManifestError(
            f"{source}: {item['kind']} uses generateName, which server-side apply cannot: give it "
            "a name made of the template's values"
        )
    if metadata.get("namespace") in (None, ""):
        metadata.pop("namespace", None)
    for key in ("name", "namespace"):
        if key in metadata and not isinstance(metadata[key], str):
            raise ManifestError(
                f"{source}: the {key} of a {item['kind']} reads as {metadata[key]!r}, not as text: "
                "pipe it through `quote` in the template"
            )
    if not metadata.get("name"):
        raise ManifestError(f"{source}: a {item['kind']} has no name")


def _check_texts(metadata: dict[str, Any], where: str) -> None:
    for key in ("labels", "annotations"):
        if metadata.get(key) is None:
            metadata.pop(key, None)
        _texts(metadata.get(key, {}), f"{where}: metadata.{key}")
    for key, value in metadata.get("labels", {}).items():
        if value and not is_label_value(value):
            raise ManifestError(
                f"{where}: label {key}: {value!r} is no label value (at most 63 letters, digits, "
                "'-', '_', '.'): use an escaped_* value, or an annotation"
            )


def _texts(mapping: object, where: str) -> None:
    if not isinstance(mapping, dict):
        raise ManifestError(f"{where} is not a mapping")
    for key, value in mapping.items():
        if not isinstance(value, str):
            raise ManifestError(
                f"{where}.{key} reads as {value!r}, not as text: pipe it through `quote`"
            )


def _check_containers(manifest: dict[str, Any], where: str) -> None:
    """Names, images and variables that YAML reads as numbers or truth values (``name: n``)."""
    pods = [manifest] if manifest["kind"] == "Pod" else stamping.pod_templates(manifest)
    for pod in pods:
        spec = pod.get("spec")
        if not isinstance(spec, dict):
            continue
        groups = [spec.get(g) for g in ("initContainers", "containers")]
        for container in (c for g in groups if isinstance(g, list) for c in g):
            if not isinstance(container, dict):
                raise ManifestError(f"{where}: a container is not a mapping")
            for key in ("name", "image"):
                if not isinstance(container.get(key, ""), str):
                    raise ManifestError(
                        f"{where}: a container's {key} reads as {container[key]!r}, not as text: "
                        "pipe it through `quote`"
                    )
            _check_variables(container, where)


def _check_variables(container: dict[str, Any], where: str) -> None:
    env = container.get("env")
    names: set[str] = set()
    for variable in env if isinstance(env, list) else ():
        name = variable.get("name") if isinstance(variable, dict) else None
        if not isinstance(name, str) or not isinstance(variable.get("value"), str | None):
            raise ManifestError(
                f"{where}: the environment variable {name!r} of container "
                f"{container.get('name')!r} is not text: pipe name and value through `quote`"
            )
        if name in names:
            raise ManifestError(
                f"{where}: container {container.get('name')!r} sets {name} twice, which the API "
                "server refuses to apply"
            )
        names.add(name)


def _is_test(item: object) -> bool:
    metadata = item.get("metadata") if isinstance(item, Mapping) else None
    annotations = metadata.get("annotations") if isinstance(metadata, Mapping) else None
    hook = annotations.get("helm.sh/hook") if isinstance(annotations, Mapping) else None
    return isinstance(hook, str) and hook.startswith("test")
