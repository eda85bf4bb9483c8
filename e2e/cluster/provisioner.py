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
from dataclasses import dataclass
from pathlib import Path

import httpx2
from lightkube import ApiError, AsyncClient, KubeConfig
from lightkube.models import core_v1 as core
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import PersistentVolume, PersistentVolumeClaim
from lightkube.types import PatchType
from lightkube.utils.quantity import parse_quantity

from e2e.cluster.model import PROVISIONER, STORAGE_CLASSES

PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
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
        await asyncio.gather(self.follow_claims(), self.follow_volumes())

    async def follow_claims(self) -> None:
        """Make a volume for each new claim, and let volumes grow with their claims."""
        async for event, claim in self.client.watch(PersistentVolumeClaim, namespace="*"):
            if event == "DELETED" or claim.spec.storageClassName not in STORAGE_CLASSES:
                continue
            try:
                if claim.spec.volumeName:
                    await self.grow(claim)
                elif not claim.metadata.deletionTimestamp:
                    await self.provide(claim)
            except (ApiError, OSError) as error:
                log.error("claim %s: %s", claim.metadata.name, error)

    async def follow_volumes(self) -> None:
        """Remove the volumes whose claims are gone."""
        async for event, volume in self.client.watch(PersistentVolume):
            if event == "DELETED" or volume.spec.storageClassName not in STORAGE_CLASSES:
                continue
            if volume.spec.persistentVolumeReclaimPolicy != "Delete":
                continue
            if volume.status.phase != "Released" or volume.metadata.deletionTimestamp:
                continue
            try:
                await self.command("rm", "-rf", volume.spec.local.path)
                await self.client.delete(PersistentVolume, volume.metadata.name)
            except (ApiError, OSError) as error:
                log.error("volume %s: %s", volume.metadata.name, error)

    async def provide(self, claim: PersistentVolumeClaim) -> None:
        """Make the folder and the volume, once the claim's class allows it."""
        annotations = claim.metadata.annotations or {}
        waits = claim.spec.storageClassName == STORAGE_CLASSES.wait_for_first_consumer
        if waits and SELECTED_NODE not in annotations:
            return
        name = f"pvc-{claim.metadata.uid}"
        path = self.folder / name
        await self.command("mkdir", "-p", "-m", "0777", str(path))
        term = core.NodeSelectorTerm(
            matchExpressions=[
                core.NodeSelectorRequirement("kubernetes.io/hostname", "In", list(self.nodes))
            ]
        )
        volume = PersistentVolume(
            metadata=ObjectMeta(name=name, annotations={PROVISIONED_BY: PROVISIONER}),
            spec=core.PersistentVolumeSpec(
                accessModes=claim.spec.accessModes,
                capacity={"storage": claim.spec.resources.requests["storage"]},
                claimRef=core.ObjectReference(
                    apiVersion="v1",
                    kind="PersistentVolumeClaim",
                    name=claim.metadata.name,
                    namespace=claim.metadata.namespace,
                    uid=claim.metadata.uid,
                ),
                local=core.LocalVolumeSource(str(path)),
                nodeAffinity=core.VolumeNodeAffinity(core.NodeSelector([term])),
                persistentVolumeReclaimPolicy="Delete",
                storageClassName=claim.spec.storageClassName,
                volumeMode=claim.spec.volumeMode,
            ),
        )
        try:
            await self.client.create(volume)
        except ApiError as error:
            if error.status.code != 409:  # a second event of the same claim
                raise

    async def grow(self, claim: PersistentVolumeClaim) -> None:
        """Give volume and claim the size that is asked for: a folder has room for all."""
        wanted = claim.spec.resources.requests["storage"]
        given = (claim.status.capacity or {}).get("storage")
        if given is None or (parse_quantity(given) or 0) >= (parse_quantity(wanted) or 0):
            return
        capacity = {"capacity": {"storage": wanted}}
        await self.client.patch(
            PersistentVolume, claim.spec.volumeName, {"spec": capacity}, patch_type=PatchType.MERGE
        )
        await self.client.patch(
            PersistentVolumeClaim.Status,
            claim.metadata.name,
            {"status": capacity | {"conditions": [], "allocatedResourceStatuses": None}},
            namespace=claim.metadata.namespace,
            patch_type=PatchType.MERGE,
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
        except (ApiError, httpx2.HTTPError) as error:
            log.warning("starting again after: %s", error)
            await asyncio.sleep(1)
        finally:
            await client.close()


if __name__ == "__main__":
    asyncio.run(main())
