"""By which names a person and their servers go in the cluster, as the hub's database tells.

Objects keep the names of the first start. So a name that the hub gives away again after a rename is
not free in the cluster: its new bearer goes by another one, and never meets the former's volume.
"""

from __future__ import annotations

import json
from typing import Any

from jupyterhub import orm
from sqlalchemy import Text, literal_column, select
from sqlalchemy.orm import object_session

from lightkube_template_spawner.record import STATE, Record


def username(spawner: Any, instance: str) -> str:
    """The name that this user's other servers go by; else the hub's, if nobody else has it."""
    for sibling in siblings(spawner):
        if sibling.identity.instance == instance:
            return sibling.identity.username
    name = str(spawner.user.name)
    # No name has a slash, so this one is nobody else's.
    return f"{name}/{spawner.user.id}" if _is_taken(spawner, instance, name) else name


def servername(spawner: Any, instance: str) -> str:
    """The hub's name, if no other server, renamed since, goes by it."""
    name = str(spawner.name)
    taken = any(
        (record.identity.instance, record.identity.servername) == (instance, name)
        for record in siblings(spawner)
    )
    return f"{name}/{spawner.orm_spawner.id}" if taken else name


def siblings(spawner: Any) -> list[Record]:
    """What the database knows of this user's other servers."""
    others = spawner.user.orm_user.orm_spawners.values()
    states = [other.state or {} for other in others if other is not spawner.orm_spawner]
    records = (Record.from_state(state.get(STATE)) for state in states)
    return [record for record in records if record is not None]


def _is_taken(spawner: Any, instance: str, name: str) -> bool:
    """Whether a user who was renamed since still goes by this name in the cluster."""
    session = object_session(spawner.orm_spawner)
    if session is None:
        return False
    state = literal_column("spawners.state", Text)  # the text: the hub's type reads JSON
    others = session.scalars(
        select(state)
        .select_from(orm.Spawner)
        .where(
            orm.Spawner.user_id != spawner.user.id,
            state.contains(f'"username": {json.dumps(name)}', autoescape=True),
        )
    )
    records = [Record.from_state(json.loads(other).get(STATE)) for other in others]
    return any(
        record is not None
        and (record.identity.instance, record.identity.username) == (instance, name)
        for record in records
    )
