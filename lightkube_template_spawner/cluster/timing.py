"""How long to wait before trying, looking or asking again: one value, which tests make quick.

What bounds a wait by the user's own time, such as a start's, is not among it.
"""

from __future__ import annotations

from dataclasses import dataclass

Backoff = tuple[float, float]  # the first pause in seconds, doubled up to the last


@dataclass(frozen=True)
class Timing:
    """Seconds between tries, and for how long an answer stands."""

    retry: Backoff = (0.5, 4.0)
    unbounded: float = 30.0  # for a caller without any deadline, such as the sweep
    recovering: float = 10.0  # in which a server that is back may not know anybody's rights yet
    watch: Backoff = (0.8, 2.5)  # with a connection's time-out it is back within five
    events: Backoff = (0.2, 2.0)
    linger: float = 60.0  # one watch of events serves a class that starts together
    rights: float = 5.0  # until what was allowed is asked again
    binding: float = 5.0  # until every API server knows a new binding
    binding_pause: float = 0.1
    confirm: float = 1.0  # between questions about an object that nothing watches
    doubt: float = 10.0  # after which a watch that tells nothing may be dead
    sight: float = 1.0  # until a start looks again whether its watches were refused
    going: float = 10.0  # what takes longer to go is held by something: the user is told


DEFAULT = Timing()
