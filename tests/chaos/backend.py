"""A result backend that tells the ledger of every final state that is stored."""

from __future__ import annotations

import os
from typing import Any

from celery import states
from celery.backends.redis import RedisBackend
from redis import Redis


OUTCOMES = "chaos:outcomes"

#: Without Celery's types, which do not know what is overridden.
_Base: Any = RedisBackend

_clients: dict[int, Redis] = {}


class RecordingBackend(_Base):
    """Celery's own, and a line in the ledger after what it has stored."""

    def _set_with_state(self, key: Any, value: Any, state: str) -> Any:
        answer = super()._set_with_state(key, value, state)
        if state in states.READY_STATES:
            name = key.decode() if isinstance(key, bytes) else str(key)
            task_id = name.removeprefix(self.task_keyprefix.decode())
            pid = os.getpid()
            if pid not in _clients:
                _clients[pid] = Redis.from_url(self.app.conf["smoke_ledger_url"])
            fields: dict[Any, Any] = {"task_id": task_id, "state": state, "pid": pid}
            _clients[pid].xadd(OUTCOMES, fields)
        return answer
