"""Celery signals an application may connect to."""

from __future__ import annotations

from celery.utils.dispatch import Signal


__all__ = [
    "key_blocked",
    "lease_lost",
    "task_accepted",
    "task_available",
    "task_done",
    "task_error",
    "task_progress",
]

#: A worker learns that a run is not its own any more, for it was away for longer
#: than the lease. Sent in the worker's main process, on the thread of the
#: heartbeat. Sender: the task. Arguments: *task_id*, *key*.
lease_lost = Signal(name="lease_lost", providing_args=("task_id", "key"))

#: A task that this process has submitted reports how far it has come. Sent on the
#: listener's thread, as the next two are; a task that is submitted before anybody
#: has connected sends none. Sender: the task. Arguments: *progress*, a
#: :class:`.Progress`, and *result*, a :class:`.BgResult`.
task_progress = Signal(name="task_progress", providing_args=("progress", "result"))

#: A task that this process has submitted has succeeded.
#: Sender: the task. Arguments: *result*, whose ``get()`` has the value, and *ended*,
#: an :class:`.Ended`.
task_done = Signal(name="task_done", providing_args=("result", "ended"))

#: A task that this process has submitted has not succeeded, its final state is
#: being another one. Sender: the task. Arguments: *result* and *ended*, which has
#: state, type and text of the error.
task_error = Signal(name="task_error", providing_args=("result", "ended"))

#: A key has been blocked, for its bad tasks or by hand. Sent in the process whose
#: call has blocked it. Sender: the task. Arguments: *key*, *reason*, *seconds*;
#: the last is ``None`` for a block that does not end by itself.
key_blocked = Signal(name="key_blocked", providing_args=("key", "reason", "seconds"))

#: A worker is told that a task has become available, for it was submitted with a
#: slot, was handed one, or is to be run again. Sent in the worker's main process, on
#: a thread of its own. Of a task with ``delivery="offer"`` a receiver may return
#: :data:`.IGNORE`: then this worker leaves it to others. Sender: the task. Arguments:
#: *task_id*, *key*, *metadata*, *queue*.
task_available = Signal(
    name="task_available", providing_args=("task_id", "key", "metadata", "queue")
)

#: A worker has accepted a task, which starts now. Sent in the process that runs it,
#: before Celery's ``task_prerun``. Sender: the task. Arguments: *task_id*, *key*,
#: *attempt*.
task_accepted = Signal(
    name="task_accepted", providing_args=("task_id", "key", "attempt")
)
