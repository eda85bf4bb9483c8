"""Writing to the hub's database through the one session that all of the hub shares."""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import SQLAlchemyError


def commit(session: Any) -> None:
    """Commit; a failure leaves the session usable for the hub's next request.

    Without the rollback every later use of the session would raise, whoever makes it.

    Raises:
        SQLAlchemyError: the database refused; nothing of the transaction was written.
    """
    try:
        session.commit()
    except SQLAlchemyError:
        session.rollback()
        raise
