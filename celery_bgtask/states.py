"""The life of a task, as the store knows it.

These are the values of ``state`` in a task's record. Celery's own states stay
what they are: PENDING until the start, STARTED, and a final one.

::

    waiting <> dispatched -> running -> ended -> (forgotten)
                   |  ^        | |
                   v  |        | +-> stopping -> decided -> (forgotten)
                  lapsed       +---> dispatched, delayed: the next attempt

A dispatched task waits again if its key is blocked, paused or without slots when
its message arrives. Whatever has not started may be *decided* at any time.
"""

from __future__ import annotations


__all__ = [
    "DECIDED", "DELAYED", "DISPATCHED", "ENDED",
    "LAPSED", "RUNNING", "STOPPING", "WAITING",
]  # fmt: skip

#: Parked: no slot, the message is in the store.
WAITING = "waiting"

#: Has a slot, the message is with the broker.
DISPATCHED = "dispatched"

#: Lost its slot on the way; the message starts where it arrives and finds room.
LAPSED = "lapsed"

#: A worker has accepted it and renews its lease.
RUNNING = "running"

#: The body has ended, the slot is free, the result is about to be stored.
ENDED = "ended"

#: Has no slot: the message is with the broker until its ETA.
DELAYED = "delayed"

#: Ended by a verdict (a deadline, a cancellation) while its body runs: that
#: keeps its slot, and nothing that it does is stored.
STOPPING = "stopping"

#: Ended by a verdict; a worker concludes what follows from it.
DECIDED = "decided"
