"""Celery on this machine: pytest-celery's fixtures, with processes as nodes.

A module says what it wants by overriding ``smoke_conf``, ``smoke_workers``,
``smoke_broker_url`` or ``smoke_store``; its workers are shared by its tests, each of
which has keys of its own and leaves nothing behind.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestSetup,
    CeleryWorkerCluster,
)
from redis import Redis

from celery_bgtask.testing import EmbeddedServer, embedded_server
from tests.helpers import our_keys, wait_until_drained
from tests.smoke import tasks
from tests.smoke.app import make_app
from tests.smoke.command_line import CommandLine
from tests.smoke.nodes import (
    ROOT,
    AmqpContainer,
    ServerContainer,
    SmokeBackend,
    SmokeBroker,
    SmokeSetup,
    WorkerSpec,
    make_worker,
)


FOLDER = Path(__file__).parent

del tasks  # imported for what it registers, once for all apps of this process


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Settings of the module's app, besides those that say where things are."""
    return {}


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """The workers that the tests of the module share; may be none."""
    return (WorkerSpec(),)


@pytest.fixture(scope="module")
def smoke_store(server: EmbeddedServer, redis_url: str) -> ServerContainer:
    """Where the module keeps slots and results."""
    return ServerContainer(server, url=redis_url)


@pytest.fixture(scope="module")
def store() -> Iterator[EmbeddedServer]:
    """A server that remembers over a restart, for this module alone."""
    try:
        with embedded_server(appendonly=True) as server:
            yield server
    except ModuleNotFoundError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def smoke_broker(smoke_store: ServerContainer) -> ServerContainer:
    """The module's broker: the store's server, if it does not say otherwise."""
    return smoke_store


@pytest.fixture(scope="module")
def amqp() -> AmqpContainer:
    """The RabbitMQ that ``BGTASK_TEST_AMQP_URL`` names."""
    url = os.environ.get("BGTASK_TEST_AMQP_URL")
    if not url:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "BGTASK_TEST_AMQP_URL is not set: no RabbitMQ to test with"
        )
    return AmqpContainer(str(url))


@pytest.fixture(scope="module")
def celery_broker_cluster(
    smoke_broker: ServerContainer,
) -> Iterator[CeleryBrokerCluster]:
    """The broker, as pytest-celery wants it."""
    broker = SmokeBroker(smoke_broker)
    broker.ready()
    yield CeleryBrokerCluster(broker)
    broker.teardown()


@pytest.fixture(scope="module")
def celery_backend_cluster(
    smoke_store: ServerContainer,
) -> Iterator[CeleryBackendCluster]:
    """The result backend, which is the store as well."""
    backend = SmokeBackend(smoke_store)
    backend.ready()
    with smoke_store.client as client:
        client.flushdb()
    yield CeleryBackendCluster(backend)
    backend.teardown()


@pytest.fixture(scope="module")
def celery_setup_app(
    celery_broker_cluster: CeleryBrokerCluster,
    celery_backend_cluster: CeleryBackendCluster,
    smoke_conf: dict[str, Any],
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Celery]:
    """The module's app, with a name, queue and prefix of its own."""
    name = f"smoke-{uuid.uuid4().hex[:8]}"
    store = celery_backend_cluster[0].config()["host_url"]
    broker = celery_broker_cluster[0].config()["host_url"]
    conf = {
        "broker_url": broker,
        "result_backend": store,
        "task_default_queue": name,
        "bgtask_redis_url": store,
        "bgtask_key_prefix": f"bgtask:{name}",
        "smoke_ledger_url": redis_url,
        "smoke_logs": str(tmp_path_factory.mktemp(name)),
        **smoke_conf,
    }
    app = make_app(name, {**conf, "smoke_conf": conf})
    with Redis.from_url(redis_url) as client:
        client.flushdb()
    yield app
    app.close()
    container = celery_broker_cluster[0].container
    if isinstance(container, AmqpContainer):
        container.forget(name)


@pytest.fixture(scope="module")
def celery_worker_cluster(
    celery_setup_app: Celery, smoke_workers: tuple[WorkerSpec, ...]
) -> Iterator[CeleryWorkerCluster | None]:
    """The workers that the tests of the module share."""
    workers = [
        make_worker(celery_setup_app, spec, name=f"{spec.pool}{number}")
        for number, spec in enumerate(smoke_workers)
    ]
    try:
        for worker in workers:
            worker.ready()
        yield CeleryWorkerCluster(*workers) if workers else None
    finally:
        for worker in workers:
            worker.teardown()


@pytest.fixture(scope="module")
def celery_setup_cls() -> type[CeleryTestSetup]:
    """Our setup, which can start workers and read the ledger."""
    return SmokeSetup


@pytest.fixture(scope="session", autouse=True)
def _results_go_quietly() -> Iterator[None]:
    """A result that is collected after its server has gone does not try to reach it.

    Celery unsubscribes in ``AsyncResult.__del__``, and what that raises would be
    an error of whichever test runs at the time.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AsyncResult, "__del__", lambda _self: None)
        yield
        gc.collect()


@pytest.fixture
def smoke(celery_setup: SmokeSetup) -> Iterator[SmokeSetup]:
    """The setup; when the test has passed nothing may be held, parked or owed."""
    celery_setup.ledger.clear()
    yield celery_setup
    wait_until_drained(celery_setup.store, prefix=celery_setup.prefix)


@pytest.fixture
def alone(smoke: SmokeSetup) -> Iterator[SmokeSetup]:
    """The setup, with all forgotten that is owed: without a worker nobody ends it."""
    yield smoke
    for worker in smoke.workers:
        worker.container.kill("SIGKILL")
    smoke.app.control.purge()
    for name in our_keys(smoke.store, smoke.prefix):
        smoke.store.delete(name)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A task key that no other test uses."""
    return f"{request.node.name}-{uuid.uuid4().hex[:4]}"


@pytest.fixture
def client_process(
    smoke: SmokeSetup,
) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Runs lines of Python in a process that has the app as ``app``."""
    processes: list[subprocess.Popen[str]] = []

    def run(code: str) -> subprocess.Popen[str]:
        prelude = "from tests.smoke.app import app; from tests.smoke import tasks\n"
        process = subprocess.Popen(
            [sys.executable, "-c", prelude + code],
            cwd=ROOT,
            env={
                **os.environ,
                "SMOKE_APP": str(smoke.app.main),
                "SMOKE_CONF": json.dumps(smoke.conf),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def cli(smoke: SmokeSetup, smoke_workers: tuple[WorkerSpec, ...]) -> CommandLine:
    """``celery bgtask`` for the module's app, with the tasks of its workers."""
    tasks = [spec.tasks for spec in smoke_workers]
    return CommandLine(str(smoke.app.main), {**smoke.conf, "imports": tasks})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker("worker")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
    """Show the workers' logs with a test that failed, and let its tasks end."""
    del call
    report = yield
    setup = getattr(item, "funcargs", {}).get("celery_setup")
    if report.failed and isinstance(setup, SmokeSetup):
        if report.when == "call":
            setup.ledger.release_all()
        for worker in setup.workers:
            report.sections.append((worker.name(), worker.logs()[-8000:]))
    return report
