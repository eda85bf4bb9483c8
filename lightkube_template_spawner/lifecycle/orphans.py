"""Which objects nobody owns any more, judged by their labels and what the hub knows; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

from lightkube_template_spawner.lifecycle.record import Record
from lightkube_template_spawner.objects.identity import (
    INSTANCE,
    OWNER,
    SERVERNAME,
    Identity,
    Policy,
    hub_selector,
)


@dataclass(frozen=True, slots=True)
class KnownServer:
    """What a hub knows of one server; ``active`` while it runs, starts or stops."""

    name: str
    active: bool
    state: object = None


@dataclass(slots=True)
class Roster:
    """Everybody whom one hub knows, by the labels that their objects carry.

    Where names of the hub and names of the first start differ, both count: an object is an orphan
    only when neither leads to somebody.
    """

    instance: str
    lifecycle_key: str
    records: int = 0  # of servers of this instance
    other_instances: set[str] = field(default_factory=set)  # instances of other records
    namespaces: set[str] = field(default_factory=set)  # that the records name
    _owners: set[str] = field(default_factory=set)
    _servers: dict[tuple[str, str], bool] = field(default_factory=dict)  # active?

    @property
    def selector(self) -> str:
        """Selects every object of the instance."""
        return hub_selector(self.instance)

    def add(self, user: str, servers: Iterable[KnownServer]) -> None:
        """Know a user by the hub's name, with all servers of theirs, stopped ones included."""
        owners = {Identity(self.instance, user).owner}
        slugs = {"": False}  # the default server has no row before its first start
        for server in servers:
            names = {server.name}
            record = Record.of_spawner(server.state)
            if record is not None and record.identity.instance != self.instance:
                self.other_instances.add(record.identity.instance)
            elif record is not None:
                self.records += 1
                self.namespaces.update(record.namespaces)
                owners.add(record.identity.owner)
                names.add(record.identity.servername)
            for name in names:
                slug = Identity(self.instance, user, name).server_slug
                slugs[slug] = slugs.get(slug, False) or server.active
        self._owners |= owners
        for key in product(owners, slugs):
            self._servers[key] = self._servers.get(key, False) or slugs[key[1]]

    def includes(self, labels: Mapping[str, str]) -> bool:
        """Whether the object is this instance's; an API may ignore selectors."""
        return labels.get(INSTANCE) == self.instance and bool(labels.get(OWNER))

    def why_orphan(self, labels: Mapping[str, str]) -> str:
        """Why nobody owns an object of this instance; "" if somebody does."""
        owner = labels.get(OWNER, "")
        if owner not in self._owners:
            return "the hub knows no such user"
        policy = labels.get(self.lifecycle_key)
        if policy not in (Policy.STOPPED, Policy.SERVER_DELETED) or SERVERNAME not in labels:
            return ""
        server = owner, labels[SERVERNAME]
        if server not in self._servers:
            return "the hub knows no such server of this user"
        if policy == Policy.STOPPED and not self._servers[server]:
            return "the server neither runs nor starts"
        return ""
