"""The Lua scripts, one typed method each.

Only this package knows the order of a script's arguments.
"""

from __future__ import annotations

from .following import FollowingScripts
from .life import LifeScripts
from .operator import OperatorScripts
from .workers import WorkerScripts


__all__ = ["Scripts"]


class Scripts(LifeScripts, FollowingScripts, OperatorScripts, WorkerScripts):
    """All scripts, bound to one scope of one store."""
