"""The nodes of pytest-celery as processes of this machine: no Docker needed.

A *container* here is what the nodes need of one: it can be asked for its name,
state and log, signalled, restarted and torn down.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal as signals
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import celery
import psutil
from celery import Celery
from kombu import Connection
from pytest_celery import (
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestContainer,
    CeleryTestSetup,
    CeleryTestWorker,
)
from redis import Redis

from celery_bgtask.testing import EmbeddedServer
from tests.helpers import PATIENCE, our_keys, part_of, wait_until
from tests.smoke.ledger import Ledger


ROOT = Path(__file__).parents[2]

#: The release of kombu; before 5.7 its Redis transport gives back what a lost worker
#: had fetched after 100 s at least, whatever its options say.
KOMBU = tuple(int(part) for part in version("kombu").split(".")[:2])

#: Seconds in which a worker is ready, on a busy machine of two cores.
BOOT = 90.0


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is started with."""

    pool: str = "prefork"
    concurrency: int = 4
    conf: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    tasks: str = "tests.smoke.tasks"


class LocalContainer(CeleryTestContainer):
    """A process group in the place of a container."""

    def __init__(
        self, command: list[str], *, name: str, env: dict[str, str], log: Path
    ) -> None:
        # Without super(): it would ask Docker.
        self._command = command
        self._name = name
        self._env = env
        self._log = log
        self._id = uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def id(self) -> str:
        """A name that no other container has."""
        return self._id

    @property
    def name(self) -> str:
        """The name it was given."""
        return self._name

    @property
    def env(self) -> dict[str, str]:
        """What its environment has besides ours."""
        return self._env

    @property
    def pid(self) -> int:
        """The main process; also after its end."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def status(self) -> str:
        """As Docker calls it: created, running or exited."""
        if self._process is None:
            return "created"
        return "running" if self._process.poll() is None else "exited"

    @property
    def exit_code(self) -> int | None:
        """What the main process has returned, if it has ended."""
        return self._process.poll() if self._process else None

    @property
    def attrs(self) -> dict[str, Any]:
        """Nothing of what Docker knows."""
        return {"Config": {"Hostname": "localhost"}}

    def start(self) -> None:
        """Start the processes."""
        env = {**os.environ, **self._env}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def logs(self) -> str:
        """All that its processes have written, over all starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def ready(self) -> bool:
        """Wait until it says that it is ready."""
        wait_until(
            lambda: (
                self.status != "running" or (self.ready_prompt or "") in self.logs()
            ),
            within=BOOT,
            that=f"{self.name} is ready; it has written\n{self.logs()[-3000:]}",
        )
        assert self.status == "running", f"{self.name} ended:\n{self.logs()[-3000:]}"
        return True

    def kill(self, signal: str | int = "SIGKILL", *, group: bool | None = None) -> None:
        """Send a signal: to all processes if it cannot be caught, else to the main.

        Args:
            signal: Its name or number.
            group: To all processes or not, whatever the signal.
        """
        number = signals.Signals[signal] if isinstance(signal, str) else signal
        if group is None:
            group = number in (signals.SIGKILL, signals.SIGSTOP, signals.SIGCONT)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)
        if number == signals.SIGKILL:
            self.wait()

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for the end of the main process and return its exit code."""
        assert self._process is not None
        return self._process.wait(timeout)

    def restart(self, timeout: float = 10.0) -> None:
        """End it in good order, at the latest after *timeout*, and start it again."""
        self.stop(timeout)
        self.start()

    def stop(self, timeout: float = 4.0) -> None:
        """End it in good order, at the latest after *timeout*."""
        if self.status == "running":
            self.kill("SIGCONT")
            self.kill("SIGTERM")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(timeout)
        if self._process is not None:
            self.kill("SIGKILL")

    def reload(self) -> None:
        """Nothing to read anew: a process is asked each time."""

    def remove(self, **_options: Any) -> None:
        """Nothing stays of a process."""

    def teardown(self) -> None:
        """End it."""
        self.stop()


class WorkerContainer(LocalContainer):
    """A ``celery worker`` with its pool."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        name: str,
        app: Celery,
        conf: dict[str, Any],
        log: Path,
    ) -> None:
        self.spec = spec
        self._queue = conf["task_default_queue"]
        super().__init__(
            [
                *(sys.executable, "-m", "celery", "-A", "tests.smoke.app"),
                *("worker", "-n", name, "-P", spec.pool, "-c", str(spec.concurrency)),
                *("-l", "INFO", "--without-mingle", "--without-gossip"),
                *spec.options,
            ],
            name=name,
            env={
                "SMOKE_APP": str(app.main),
                "SMOKE_CONF": json.dumps(
                    {**conf, "imports": [spec.tasks], **spec.conf}
                ),
                "SMOKE_PARENT": str(os.getpid()),
                "PYTHONUNBUFFERED": "1",
            },
            log=log,
        )

    @property
    def ready_prompt(self) -> str:
        """What a worker writes when it takes tasks."""
        return " ready."

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """The settings it was started with."""
        return dict(json.loads(self._env["SMOKE_CONF"]))

    def version(self) -> str:
        """Celery's version: ours."""
        return celery.__version__

    def log_level(self) -> str:
        """The level it logs at."""
        return "INFO"

    def worker_name(self) -> str:
        """The part of its name before the ``@``."""
        return self.name.partition("@")[0]

    def worker_queue(self) -> str:
        """The queue it consumes."""
        return str(self._queue)


class ServerContainer(CeleryTestContainer):
    """An embedded server, or one that runs already."""

    def __init__(self, server: EmbeddedServer, *, url: str | None = None) -> None:
        # Without super(): it would ask Docker.
        self.server = server
        self.url = url or server.url
        self._id = uuid.uuid4().hex

    @property
    def client(self) -> Redis:
        """A client of its database."""
        return Redis.from_url(self.url, decode_responses=True)

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """Where Celery finds it."""
        return {"url": self.url, "host_url": self.url, "port": self.server.port}

    @property
    def id(self) -> str:
        """A name that no other container has."""
        return self._id

    @property
    def name(self) -> str:
        """The name to show."""
        return f"server-{self.server.port}"

    @property
    def status(self) -> str:
        """As Docker calls it: running or exited."""
        return "running" if self.server.is_running else "exited"

    def ready(self) -> bool:
        """Say that it answers: a server does when its start returns."""
        return self.server.is_running

    def logs(self) -> str:
        """What the server has written."""
        return self.server.log

    def kill(self, signal: str | int = "SIGTERM") -> None:
        """Stop it; data is written before."""
        del signal
        self.server.stop()

    def restart(self, timeout: float = 10.0, *, after: float = 0.0) -> None:
        """Stop it and start it again on its port."""
        del timeout
        self.server.restart(after=after)

    def reload(self) -> None:
        """Nothing to read anew."""

    def teardown(self) -> None:
        """Whoever started the server stops it."""


class AmqpContainer(ServerContainer):
    """A RabbitMQ that runs already."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._id = uuid.uuid4().hex

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """Where Celery finds it."""
        return {"url": self.url, "host_url": self.url}

    @property
    def name(self) -> str:
        """The name to show."""
        return "rabbitmq"

    @property
    def status(self) -> str:
        """Somebody else runs it."""
        return "running"

    def ready(self) -> bool:
        """Connect, or fail."""
        with Connection(self.url, connect_timeout=5) as connection:
            connection.ensure_connection(max_retries=1)
        return True

    def logs(self) -> str:
        """Somebody else has them."""
        return ""

    def kill(self, signal: str | int = "SIGTERM") -> None:
        """Refuse."""
        raise RuntimeError(f"{self.name} is not ours to stop ({signal})")

    def forget(self, queue: str) -> None:
        """Delete what an app has made there."""
        with Connection(self.url) as connection:
            channel: Any = connection.channel()
            channel.queue_delete(queue)
            channel.exchange_delete(queue)


class SmokeBroker(CeleryTestBroker):
    """A broker that is a process of this machine."""


class SmokeBackend(CeleryTestBackend):
    """A result backend, and a store, that is a process of this machine."""


class SmokeWorker(CeleryTestWorker):
    """A worker that is a process of this machine."""

    container: WorkerContainer

    def hostname(self) -> str:
        """The name that tasks see."""
        return self.container.name

    @property
    def pid(self) -> int:
        """Its main process."""
        return self.container.pid

    def children(self) -> list[int]:
        """The processes of its pool that live."""
        return [
            child.pid for child in psutil.Process(self.pid).children() if lives(child)
        ]

    def get_running_processes_info(
        self, columns: list[str] | None = None, filters: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """What psutil says of its processes."""
        main = psutil.Process(self.pid)
        infos = [
            process.as_dict(columns or ["pid", "name", "cmdline"])
            for process in (main, *main.children(recursive=True))
        ]
        wanted = (filters or {}).items()
        return [info for info in infos if all(info.get(k) == v for k, v in wanted)]

    def reserved(self) -> list[str]:
        """The ids of the tasks that it has fetched and not started."""
        with self.app.connection_for_write() as connection:
            fetched = self.app.control.inspect(
                [self.hostname()], timeout=PATIENCE, connection=connection
            ).reserved()
        mine = (fetched or {}).get(self.hostname(), ())
        return [request["id"] for request in mine]

    def pause(self) -> None:
        """Stop all its processes where they are: SIGSTOP."""
        self.container.kill("SIGSTOP")

    def resume(self) -> None:
        """Let them go on: SIGCONT."""
        self.container.kill("SIGCONT")

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end and return the exit code."""
        return self.container.wait(timeout)

    def consume(self) -> None:
        """Take tasks from now on: it was started idle."""
        # By a connection of its own: a test before may have cut those of the pool.
        with self.app.connection_for_write() as connection:
            self.app.control.add_consumer(
                self.worker_queue,
                destination=[self.hostname()],
                reply=True,
                connection=connection,
            )


def lives(process: psutil.Process) -> bool:
    """Tell whether a process is more than an exit code that nobody has read."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


class SmokeSetup(CeleryTestSetup):
    """One app, its servers and workers, and the ledger of what they ran."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._extra: list[SmokeWorker] = []
        self.conf: dict[str, Any] = self.app.conf["smoke_conf"]
        self.ledger = Ledger(
            Redis.from_url(self.conf["smoke_ledger_url"], decode_responses=True)
        )
        self.store = Redis.from_url(
            self.conf["bgtask_redis_url"], decode_responses=True
        )
        self.prefix: str = self.conf["bgtask_key_prefix"]

    @property
    def workers(self) -> list[SmokeWorker]:
        """All workers, also those that this test has started."""
        return [*(self.worker_cluster or ()), *self._extra]

    def task(self, name: str) -> Any:
        """A task of :mod:`tests.smoke.tasks`, of this app."""
        return self.app.tasks[f"tests.smoke.tasks.{name}"]

    def received(self, result: Any) -> int:
        """How often workers have received a message of a task."""
        logs = "".join(worker.logs() for worker in self.workers)
        return logs.count(f"[{result.id}] received")

    def lease_of(self, result: Any) -> float:
        """The time of the store, in seconds, up to which a task has its lease."""
        names = our_keys(self.store, self.prefix)
        leases = [name for name in names if part_of(name) == "leases"]
        found = (self.store.zscore(name, result.id) for name in leases)
        due: Any = next(due for due in found if due is not None)
        return float(due) / 1000

    def now(self) -> float:
        """The time of the store, in seconds."""
        seconds, microseconds = self.store.time()
        return seconds + microseconds / 1_000_000

    def start_worker(
        self, name: str, *, idle: bool = False, wait: bool = True, **spec: Any
    ) -> SmokeWorker:
        """Start one more worker, for this test only.

        Args:
            name: The part of its name before the ``@``.
            idle: Without work, until :meth:`SmokeWorker.consume`. A paused worker
                would not do: its broker connection still takes messages.
            wait: Until it is ready.
            spec: What is said to :class:`WorkerSpec`.
        """
        if idle:
            spec["options"] = (*spec.get("options", ()), "-Q", f"{name}-idle")
        worker = make_worker(self.app, WorkerSpec(**spec), name=name)
        self._extra.append(worker)
        if wait:
            worker.ready()
        return worker

    def teardown(self) -> None:
        """End the workers that the test has started."""
        for worker in self._extra:
            worker.teardown()


def make_worker(app: Celery, spec: WorkerSpec, *, name: str) -> SmokeWorker:
    """Start a worker of *app*; its log lies where the app's settings say."""
    conf = app.conf["smoke_conf"]
    container = WorkerContainer(
        spec,
        name=f"{name}@{uuid.uuid4().hex[:6]}",
        app=app,
        conf=conf,
        log=Path(conf["smoke_logs"]) / f"{name}-{uuid.uuid4().hex[:6]}.log",
    )
    container.start()
    return SmokeWorker(container, app)


@contextlib.contextmanager
def held(*workers: SmokeWorker) -> Iterator[None]:
    """Keep workers from doing anything for the time of a block."""
    for worker in workers:
        worker.pause()
    try:
        yield
    finally:
        for worker in workers:
            worker.resume()
