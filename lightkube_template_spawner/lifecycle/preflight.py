"""What a start needs before it writes: rights for its objects, and watches that see them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import anyio

from lightkube_template_spawner.cluster import rbac as rights
from lightkube_template_spawner.cluster.api import Kind
from lightkube_template_spawner.cluster.cluster import Cluster
from lightkube_template_spawner.cluster.rbac import Needs, Place
from lightkube_template_spawner.cluster.reflector import Reflector, Sight
from lightkube_template_spawner.concurrency import gather
from lightkube_template_spawner.errors import ClusterError, Forbidden
from lightkube_template_spawner.objects.identity import WAIT
from lightkube_template_spawner.objects.plan import Plan
from lightkube_template_spawner.objects.ref import NAMESPACE, POD, SERVICE, SLICE

_NOTHING_YET = "Nothing was created: "
_OWN_ROLES = "The template's own roles do not suffice: "
_TAKEN_AWAY = "A right was taken away while the server started: "


class Access:
    """One start's rights and watches.

    A namespace that the template renders together with a RoleBinding for the hub's account gives
    rights only once both are there: what is missing in it is asked for again then.
    """

    def __init__(
        self,
        cluster: Cluster,
        plan: Plan,
        kinds: Mapping[tuple[str, str], Kind],
        home: str,
        log: logging.Logger,
    ) -> None:
        self._cluster = cluster
        self._plan = plan
        self.kinds = kinds
        self._home = home
        self._log = log
        self._complete = all(item.kind != NAMESPACE for item in plan.objects)

    async def open(self) -> None:
        """Check every right, then open the watches: held objects and leftovers cost no request.

        Raises:
            Forbidden: rights are missing; the message names them all, and the rules to add.
        """
        places = await self._places()
        patience = anyio.current_time() + self._cluster.timing.recovering
        while True:
            missing = await self._missing(self._needs(places))
            refused = {p: v for p, v in missing.items() if not rights.promised(self._plan, p)}
            lasting = anyio.current_time() >= patience
            if (
                not refused
                or lasting
                or not any(store.recovering for store in self._cluster.stores())
            ):
                break
            await anyio.sleep(
                self._cluster.timing.binding_pause * 5
            )  # an API server that has just come back knows no roles
        if refused:
            raise await self._refusal(refused, _NOTHING_YET)
        await self._watch({p: v for p, v in places.items() if p not in missing}, _NOTHING_YET)

    async def complete(self) -> None:
        """The same once the template's own namespaces and bindings are there.

        Raises:
            Forbidden: the rights did not come with them.
        """
        if self._complete:
            return
        places = await self._places()
        needs = self._needs(places)
        timing = self._cluster.timing
        with anyio.move_on_after(timing.binding):
            while await self._missing(needs):  # noqa: ASYNC110 - nothing tells of it
                await anyio.sleep(timing.binding_pause)
        missing = await self._missing(needs)
        if missing:
            raise await self._refusal(missing, _OWN_ROLES)
        await self._watch(places, _OWN_ROLES)
        self._complete = True

    async def watch(self) -> list[Sight]:
        """What the start reads while it waits, opened again where another watch may show it.

        Raises:
            Forbidden: a right was taken away meanwhile.
        """
        places = await self._places()
        return await self._watch({place: True for place in places if places[place]}, _TAKEN_AWAY)

    def _needs(self, places: Mapping[Place, bool]) -> Needs:
        return rights.needed(self._plan, self.kinds, places)

    async def _places(self) -> dict[Place, bool]:
        """Where a watch is needed, and whether it must keep whole objects."""
        pods = await self._cluster.discovery.kind(*POD)
        places = {(pods, self._home): True}
        connection = self._plan.connection
        for item in self._plan.objects:
            place = (self.kinds[item.kind], item.namespace)
            full = item is connection or item.manifest["metadata"]["annotations"].get(WAIT)
            places[place] = places.get(place, False) or bool(full)
        if connection.kind == SERVICE:
            slices = await self._cluster.discovery.kind(*SLICE)
            places[slices, connection.namespace] = True
        return places

    async def _missing(self, needs: Needs) -> Needs:
        try:
            return await self._cluster.rights.missing(needs, events=self._home)
        except ClusterError as error:
            # The review is a courtesy: the API server itself refuses what we may not do.
            self._log.info("What the hub's account may do cannot be asked: %s", error)
            return {}

    async def _refusal(self, missing: Needs, head: str) -> Forbidden:
        account = await self._cluster.rights.account()
        return Forbidden(head + rights.explain(missing, account), code=403, reason="Forbidden")

    async def _watch(self, places: Mapping[Place, bool], head: str) -> list[Sight]:
        async def watch(place: Place) -> Reflector:
            kind, namespace = place
            return await self._cluster.watch(kind, namespace or None, full=places[place])

        try:
            stores = await gather(watch, places)
            return [(store, place[1]) for store, place in zip(stores, places, strict=True)]
        except Forbidden:
            # Allowed when it was asked last: what else was taken away with it?
            self._cluster.rights.forget()
            needs = {p: verbs for p, verbs in self._needs(places).items() if p in places}
            missing = await self._missing(needs)
            if missing:
                raise await self._refusal(missing, head) from None
            raise
