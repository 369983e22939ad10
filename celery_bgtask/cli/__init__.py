"""`celery bgtask`: the operator's view and remedies, on the command line."""

from __future__ import annotations

from .blocks import block, blocked, unblock
from .busiest import top
from .calls import cancel, redispatch, release
from .explanation import explain
from .group import bgtask
from .limits import limit, pause, resume
from .listing import keys, show
from .upkeep import check, repair, sweep, sweep_all
from .waiting import drain, purge
from .watch import watch


__all__ = ["bgtask", "sweep_all"]

# In the order of a bad night: look, hold, help, mend.
for command in (
    *(keys, show, top, explain, watch),
    *(limit, pause, resume, block, unblock, blocked),
    *(cancel, release, redispatch, purge, drain),
    *(check, repair, sweep),
):
    bgtask.add_command(command)
