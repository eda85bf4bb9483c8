"""By which names a person and their servers go in the cluster, as the hub's database tells.

Objects keep the names of the first start. So a name that the hub gives away again after a rename is
not free in the cluster: its new bearer goes by another one, and never meets the former's volume.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Any

from jupyterhub import orm
from sqlalchemy import Text, literal_column, select
from sqlalchemy.orm import object_session

from lightkube_template_spawner.cluster.live import Meta
from lightkube_template_spawner.hub import database
from lightkube_template_spawner.lifecycle.record import STATE, Record
from lightkube_template_spawner.objects.identity import USERID, Identity


def pinned(spawner: Any, record: Record | None, instance: str) -> Identity:
    """Whose server it is: as its record says, else by the names of its first start."""
    if record is not None and record.identity.instance == instance:
        return replace(record.identity, userid=spawner.user.id)
    names = username(spawner, instance), servername(spawner, instance)
    return Identity(instance, *names, spawner.user.id)


def username(spawner: Any, instance: str) -> str:
    """The name that this user's other servers go by; else the hub's, if nobody else has it."""
    for sibling in siblings(spawner):
        if sibling.identity.instance == instance:
            return sibling.identity.username
    name = str(spawner.user.name)
    return _nobody_elses(spawner) if _is_taken(spawner, instance, name) else name


def servername(spawner: Any, instance: str) -> str:
    """The hub's name, if no other server, renamed since, goes by it."""
    name = str(spawner.name)
    namesake = any(
        (record.identity.instance, record.identity.servername) == (instance, name)
        for record in siblings(spawner)
    )
    return f"{name}/{spawner.orm_spawner.id}" if namesake else name


def apart(spawner: Any, identity: Identity) -> Identity:
    """The identity of a user whose name somebody else goes by."""
    return replace(identity, username=_nobody_elses(spawner))


def is_anothers(spawner: Any, meta: Meta) -> bool:
    """Whether an object was made for another user of this hub, who is still there.

    A user who came after the object is not meant: the database was lost, and its numbers began
    anew. Then the name alone tells whose the object is.
    """
    userid = meta.annotations.get(USERID, "")
    session = object_session(spawner.orm_spawner)
    if not userid.isdigit() or int(userid) == spawner.user.id or session is None:
        return False
    user = session.get(orm.User, int(userid))
    if user is None or not meta.creation_timestamp:
        return False
    creation = datetime.fromisoformat(meta.creation_timestamp)
    # Kubernetes counts whole seconds: one who came in that very second may be who it was made for.
    arrival = user.created.replace(microsecond=0, tzinfo=None)
    return bool(arrival <= creation.replace(tzinfo=None))


def pin(spawner: Any, identity: Identity, namespace: str) -> None:
    """Keep a user's names on the default server, whose entry lives as long as the user."""
    entry = spawner.user.orm_user.orm_spawners.get("")
    if entry is None or Record.of_spawner(entry.state) is not None:
        return
    record = Record(replace(identity, servername=""), namespace)
    entry.state = {**(entry.state or {}), STATE: record.to_state()}
    session = object_session(entry)
    if session is not None:
        database.commit(session)
    if "" in spawner.user.spawners:
        spawner.user.spawners[""].load_state(entry.state)


def siblings(spawner: Any) -> list[Record]:
    """What the database knows of this user's other servers."""
    orm_spawners = spawner.user.orm_user.orm_spawners.values()
    states = [
        orm_spawner.state for orm_spawner in orm_spawners if orm_spawner is not spawner.orm_spawner
    ]
    records = map(Record.of_spawner, states)
    return [record for record in records if record is not None]


def _nobody_elses(spawner: Any) -> str:
    """A name for this user that no hub gives away: none of its names has a slash."""
    return f"{spawner.user.name}/{spawner.user.id}"


def _is_taken(spawner: Any, instance: str, name: str) -> bool:
    """Whether a user who was renamed since still goes by this name in the cluster."""
    session = object_session(spawner.orm_spawner)
    if session is None:
        return False
    state = literal_column("spawners.state", Text)  # the text: the hub's type reads JSON
    states = session.scalars(
        select(state)
        .select_from(orm.Spawner)
        .where(
            orm.Spawner.user_id != spawner.user.id,
            state.contains(f'"username": {json.dumps(name)}', autoescape=True),
        )
    )
    records = [Record.of_spawner(json.loads(text)) for text in states]
    return any(
        record is not None
        and (record.identity.instance, record.identity.username) == (instance, name)
        for record in records
    )
