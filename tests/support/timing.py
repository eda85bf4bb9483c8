"""A whole hub's pauses in milliseconds."""

from __future__ import annotations

from lightkube_template_spawner.cluster.timing import Timing

QUICK = Timing(
    retry=(0.001, 0.001),
    watch=(0.02, 0.08),
    events=(0.01, 0.01),
    linger=0.01,
    confirm=0.01,
    sight=0.02,
)
