"""Volumes that bind, grow and go away, and that user 1000 can write.

The controller manager's own provisioner makes folders of root's that never grow. This one makes a
`local` volume for each claim, a folder that anybody may write: on this host or, through a command
prefix such as `docker exec NODE`, in the container of a kind node.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from lightkube import ApiError, AsyncClient, KubeConfig
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.types import PatchType
from lightkube.utils.quantity import parse_quantity

from e2e.cluster.model import PROVISIONER, STORAGE_CLASSES

PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
Object = Mapping[str, Any]
# As plain documents: typed models would make every field of theirs a question of None.
Claim = create_namespaced_resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
Volume = create_global_resource("", "v1", "PersistentVolume", "persistentvolumes")
log = logging.getLogger("provisioner")


@dataclass(frozen=True)
class Provisioner:
    """Answers what happens to claims and volumes of the cluster's two storage classes."""

    client: AsyncClient
    folder: Path
    nodes: tuple[str, ...]
    prefix: tuple[str, ...]

    async def run(self) -> None:
        """Follow claims and volumes until the process is ended."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.follow_claims())
            group.create_task(self.follow_volumes())

    async def follow_claims(self) -> None:
        """Make a volume for each new claim, and let volumes grow with their claims."""
        async for event, claim in self.client.watch(Claim, namespace="*"):
            if event == "DELETED" or claim["spec"].get("storageClassName") not in STORAGE_CLASSES:
                continue
            try:
                if claim["spec"].get("volumeName"):
                    await self.grow(claim)
                elif not claim["metadata"].get("deletionTimestamp"):
                    await self.provide(claim)
            except (ApiError, OSError):
                log.exception("claim %s", claim["metadata"]["name"])

    async def follow_volumes(self) -> None:
        """Remove the volumes whose claims are gone."""
        async for event, volume in self.client.watch(Volume):
            spec, name = volume["spec"], volume["metadata"]["name"]
            if event == "DELETED" or spec.get("storageClassName") not in STORAGE_CLASSES:
                continue
            if spec["persistentVolumeReclaimPolicy"] != "Delete":
                continue
            if volume["status"].get("phase") != "Released":
                continue
            try:
                await self.remove(name, spec["local"]["path"])
            except (ApiError, OSError):
                log.exception("volume %s", name)

    async def provide(self, claim: Object) -> None:
        """Make the folder and the volume, once the claim's class allows it."""
        spec, metadata = claim["spec"], claim["metadata"]
        waits = spec["storageClassName"] == STORAGE_CLASSES.wait_for_first_consumer
        if waits and SELECTED_NODE not in metadata.get("annotations", {}):
            return
        name = f"pvc-{metadata['uid']}"
        path = str(self.folder / name)
        await self.command("mkdir", "-p", "-m", "0777", path)
        node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [*self.nodes]}
        volume = {
            "metadata": {"name": name, "annotations": {PROVISIONED_BY: PROVISIONER}},
            "spec": {
                "accessModes": spec["accessModes"],
                "capacity": {"storage": spec["resources"]["requests"]["storage"]},
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    **{key: metadata[key] for key in ("name", "namespace", "uid")},
                },
                "local": {"path": path},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}},
                "persistentVolumeReclaimPolicy": "Delete",
                "storageClassName": spec["storageClassName"],
                "volumeMode": spec.get("volumeMode", "Filesystem"),
            },
        }
        try:
            await self.client.create(Volume.from_dict(volume))
        except ApiError as error:
            if error.status.code != 409:  # a second event of the same claim
                raise

    async def remove(self, name: str, path: str) -> None:
        """Remove a volume that nobody uses any more, its files first."""
        await self.command("rm", "-rf", path)
        try:
            await self.client.delete(Volume, name)
        except ApiError as error:
            if error.status.code != 404:  # a second event of the same volume
                raise

    async def grow(self, claim: Object) -> None:
        """Give volume and claim the size that is asked for: a folder has room for all."""
        wanted = claim["spec"]["resources"]["requests"]["storage"]
        given = claim["status"].get("capacity", {}).get("storage")
        if given is None or (parse_quantity(given) or 0) >= (parse_quantity(wanted) or 0):
            return
        capacity = {"capacity": {"storage": wanted}}
        merge = PatchType.MERGE
        volume, metadata = claim["spec"]["volumeName"], claim["metadata"]
        await self.client.patch(Volume, volume, {"spec": capacity}, patch_type=merge)
        await self.client.patch(
            Claim.Status,
            metadata["name"],
            {"status": capacity | {"conditions": [], "allocatedResourceStatuses": None}},
            namespace=metadata["namespace"],
            patch_type=merge,
        )

    async def command(self, *words: str) -> None:
        """Run a command where the volumes are."""
        child = await asyncio.create_subprocess_exec(
            *self.prefix, *words, stderr=asyncio.subprocess.PIPE
        )
        _, said = await child.communicate()
        if child.returncode:
            raise OSError(f"{shlex.join(words)}: {said.decode(errors='replace').strip()}")


async def main() -> None:
    """Serve one cluster; when its API server goes away for a while, try again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--node", action="append", required=True, help="may use the volumes")
    parser.add_argument("--prefix", default="", help="command that runs another on the node")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    config = KubeConfig.from_file(options.kubeconfig).get()
    prefix = tuple(shlex.split(options.prefix))
    while True:
        client = AsyncClient(config=config, trust_env=False)
        try:
            await Provisioner(client, options.folder, tuple(options.node), prefix).run()
        except* (ApiError, httpx2.HTTPError) as errors:
            log.warning("starting again after: %s", errors.exceptions[0])
            await asyncio.sleep(1)
        finally:
            await client.close()


if __name__ == "__main__":
    asyncio.run(main())
