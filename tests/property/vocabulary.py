"""The words of the machine: its settings, what it draws from, and its names."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

from celery_bgtask.config import SETTINGS as ALL_SETTINGS
from celery_bgtask.config import Settings
from celery_bgtask.scripts.replies import Terms


#: Seconds. A step of time is 600: it ends one sweep's turn and one grace, two of
#: them are a silence, five outlast a lease, ten a dispatch lease.
SETTINGS = Settings(
    **{
        **{setting.name: setting.default for setting in ALL_SETTINGS},
        "max_waiting_bytes": 680,
        "lease": 2900,
        "dispatch_lease": 5900,
        "sweep_interval": 240,
        "publish_grace": 500,
        "claim_lease": 900,
        "tombstone_ttl": 10**8,
    }
)
STEP = 600
FOR_EVER = 10**9

RANK = 2**42
HALF = RANK // 2
KEYS = ("a", "c {d}\n")
IDS = tuple(f"t{number}" for number in range(5))
WORKERS = ("w0", "w1", "w2")
QUEUES = ("q", "q {r}")

NO_TERMS = Terms()
END = '{"id": "t", "attempt": 1, "state": "SUCCESS"}'

#: Nothing more than a limit, mostly; else deadlines off the steps of time.
TERMS = (
    NO_TERMS,
    NO_TERMS,
    Terms(max_lost=1, keep=True),
    Terms(accept=1500),
    Terms(accept=1500, finish=4000, keep=True),
    Terms(finish=4000),
    Terms(expires=2200),
)

HOLDING = {"dispatched", "running", "stopping"}
NOT_STARTED = {"waiting", "dispatched", "lapsed", "delayed"}

ids = st.sampled_from(IDS)
keys = st.sampled_from(KEYS)
limits = st.sampled_from((1, 1, 2, 3, -1))
ranks = st.sampled_from((0, 0, 0, 3, 9))
picks = st.integers(0, 30)
retries = st.sampled_from((0, 0, 0, 1, 2))
all_terms = st.sampled_from(TERMS)

numbers = itertools.count()
