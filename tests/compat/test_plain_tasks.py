"""Nothing changes for tasks that are not bgtasks, in the same worker: measured.

The same calls, by clients and workers of two kinds: those that know plain tasks only,
and those that have the same tasks beside a bgtask. The server counts their commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from celery.states import READY_STATES
from redis import Redis

from celery_bgtask.testing import EmbeddedServer, embedded_server
from tests.helpers import wait_until
from tests.smoke.nodes import ROOT, SmokeSetup, WorkerSpec


CALLS = 20

#: Of these, each has four calls and six runs.
RUNS = 6 * CALLS

#: Results of each.
RESULTS = 5

#: Of the worker itself: it enlists, a sweep, and two as it leaves. Each may come twice,
#: where a loaded machine lets a thread wake late; all the calls would be many more.
OF_THE_WORKER = 8

#: Commands that come with time, not with tasks; and those of this test.
IDLE = frozenset(
    {
        "brpop", "client|setinfo", "client|setname", "flushdb", "hello", "info", "mget",
        "ping", "psubscribe", "punsubscribe", "scan", "script|load", "select",
        "unsubscribe", "zrevrangebyscore",
    }
)  # fmt: skip

#: A client that imports the module it is given, as the worker does.
CLIENT = """
import importlib, sys
from tests.smoke.app import app
importlib.import_module(sys.argv[1])
from tests.compat.plain import add, fail, retry, steps
assert ("celery_bgtask" in sys.modules) == (sys.argv[1] == "tests.compat.mixed")
for number in range(int(sys.argv[2])):
    add.delay(number, 1)
    fail.delay()
    retry.delay()
    steps().apply_async()
"""


@pytest.fixture(scope="module")
def slots() -> Any:
    """A server for slots alone: whatever it is asked, a bgtask was the reason."""
    try:
        with embedded_server() as server:
            yield server
    except ModuleNotFoundError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def smoke_conf(slots: EmbeddedServer) -> dict[str, Any]:
    """Sweeps and heartbeats come with time; here they do not come."""
    return {
        "bgtask_redis_url": slots.url,
        "bgtask_lease": 3000,
        "bgtask_sweep_interval": 200,
    }


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Each test starts what it needs."""
    return ()


@pytest.fixture
def counted(smoke: SmokeSetup, redis_url: str) -> Callable[[str], dict[str, int]]:
    """Counts what broker and results are asked when a client calls plain tasks."""

    def count(module: str) -> dict[str, int]:
        with Redis.from_url(redis_url, decode_responses=True) as server:
            worker = smoke.start_worker(
                "counted",
                concurrency=1,
                tasks=module,
                options=("--without-heartbeat",),
            )
            before = commands(server)
            run_client(smoke, module)
            # Not by get(): how often that asks depends on who is first.
            wait_until(
                lambda: results(server) == RESULTS * CALLS,
                within=30,
                that="all have ended",
            )
            after = commands(server)
            server.flushdb()
            worker.kill("SIGTERM", reload_container=False)
            worker.wait()
        return {
            command: calls - before.get(command, 0)
            for command, calls in after.items()
            if calls > before.get(command, 0)
        }

    return count


def results(server: Redis) -> int:
    """How many results are stored that are final."""
    names = list(server.scan_iter("celery-task-meta-*"))
    stored: Any = server.mget(names) if names else []
    return sum(json.loads(one)["status"] in READY_STATES for one in stored if one)


def run_client(smoke: SmokeSetup, module: str) -> None:
    """Let a process of its own call the tasks."""
    subprocess.run(
        [sys.executable, "-c", CLIENT, module, str(CALLS)],
        cwd=ROOT,
        env={
            **os.environ,
            "SMOKE_APP": str(smoke.app.main),
            "SMOKE_CONF": json.dumps(smoke.conf),
        },
        check=True,
        timeout=50,
    )


def commands(server: Redis) -> dict[str, int]:
    """How often each command was given, but those of :data:`IDLE`."""
    stats: Any = server.info("commandstats")
    counts = {
        name.removeprefix("cmdstat_"): facts["calls"] for name, facts in stats.items()
    }
    return {name: calls for name, calls in counts.items() if name not in IDLE}


def test_a_plain_task_costs_no_command_more(
    counted: Callable[[str], dict[str, int]], slots: EmbeddedServer
) -> None:
    """Beside a bgtask as without one: broker, results and slots are asked the same."""
    with Redis.from_url(slots.url, decode_responses=True) as store:
        before = scripts_run(store)
        without = counted("tests.compat.plain")
        assert scripts_run(store) == before

        beside = counted("tests.compat.mixed")

        # When the worker starts and when it leaves; tasks and client ask nothing.
        assert scripts_run(store) - before <= OF_THE_WORKER
    assert without["lpush"] >= RUNS
    # The worker's start adds one or two of some. A command more for each task, or
    # for each call, would be more than that.
    more = {name: beside[name] - without.get(name, 0) for name in beside}
    assert {name: calls for name, calls in more.items() if calls > RUNS / 6} == {}


def scripts_run(store: Redis) -> int:
    """How many scripts a server has run."""
    counts = commands(store)
    return counts.get("eval", 0) + counts.get("evalsha", 0)
