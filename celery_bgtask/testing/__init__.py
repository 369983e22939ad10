"""For the tests of applications: what was submitted, eager mode, a server, a worker.

With pytest, ``pytest_plugins = ["celery_bgtask.testing.plugin"]`` in ``conftest.py``
makes fixtures of it.
"""

from __future__ import annotations

from .apps import connected, eager, running_worker
from .calls import Call, Calls
from .recorder import Recorder
from .server import EmbeddedServer, embedded_server


__all__ = [
    "Call",
    "Calls",
    "EmbeddedServer",
    "Recorder",
    "connected",
    "eager",
    "embedded_server",
    "running_worker",
]
