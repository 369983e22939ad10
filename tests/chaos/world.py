"""What a chaos run is made of: servers, lines between them, workers, producers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
from celery import Celery
from kombu import Connection
from redis import Redis

from celery_bgtask.extension import extension_of
from celery_bgtask.testing import EmbeddedServer
from tests.chaos import tasks
from tests.chaos.proxy import Proxy
from tests.helpers import wait_until
from tests.smoke.app import make_app
from tests.smoke.ledger import Ledger
from tests.smoke.nodes import LocalContainer, WorkerContainer, WorkerSpec


#: Seconds; short, so that what is lost is found while one looks on.
LEASE = 6.0
SWEEP = 0.5
DISPATCH_LEASE = 5.0

SIDES = ("left", "right")

SETTINGS = {
    "bgtask_lease": LEASE,
    "bgtask_sweep_interval": SWEEP,
    "bgtask_dispatch_lease": DISPATCH_LEASE,
    "bgtask_claim_lease": 2.0,
    "bgtask_publish_grace": 1.0,
    "bgtask_tombstone_ttl": 600.0,
    "bgtask_store_wait": 3.0,
}
REDIS_TRANSPORT = {
    "visibility_timeout": 4,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}


def kill_server(server: EmbeddedServer) -> None:
    """Kill a server as a power cut does: it can write nothing more."""
    assert server._keeper is not None
    for process in psutil.Process(server._keeper.pid).children():
        process.kill()
        process.wait()
    server.stop()


class World:
    """The processes of one run; each side has lines of its own to store and broker.

    Args:
        logs: A folder for what the processes write.
        amqp: A RabbitMQ that runs; without it the store is the broker, too.

    Attributes:
        store: The server of slots and results, which a run takes away.
        ledger: What really happened, on a server that nothing takes away.
        lines: The proxies to the store, by side.
        broker_lines: Those to the broker; with Redis they are the same.
        leaving: The workers that were told to end what they run, and go.
    """

    def __init__(self, logs: Path, *, amqp: str | None = None) -> None:
        self.name = f"chaos-{uuid.uuid4().hex[:8]}"
        self._logs = logs
        self._amqp = amqp
        self._count = 0
        self.store = EmbeddedServer(appendonly=True)
        self._second = EmbeddedServer()
        self.redis = Redis.from_url(self.store.url, decode_responses=True)
        self.start_store()
        self._second.start()
        self.ledger = Ledger(Redis.from_url(self._second.url, decode_responses=True))
        self.lines = {side: Proxy("127.0.0.1", self.store.port) for side in SIDES}
        self.broker_lines = self.lines
        if amqp:
            url = urlsplit(amqp)
            assert url.hostname
            self.broker_lines = {
                side: Proxy(url.hostname, url.port or 5672) for side in SIDES
            }
        self.app = self._make_app()
        self.workers: list[WorkerContainer] = []
        self.producers: list[LocalContainer] = []
        self.leaving: list[WorkerContainer] = []

    @property
    def prefix(self) -> str:
        """Begins all names of the run in the store."""
        return f"bgtask:{self.name}"

    def now(self) -> float:
        """The time of the ledger, in seconds."""
        seconds, microseconds = self.ledger.client.time()
        return seconds + microseconds / 1_000_000

    def start_worker(self, *, newer: bool) -> WorkerContainer:
        """Start one more worker, on the sides in turn."""
        self._count += 1
        side = SIDES[self._count % len(SIDES)]
        worker = WorkerContainer(
            WorkerSpec(concurrency=3, tasks=tasks.MODULE),
            name=f"w{self._count}-{side}@{self.name}",
            app=self.app,
            conf=self._conf(side),
            log=self._logs / f"w{self._count}.log",
        )
        worker.env.update({"CHAOS_NEWER": "1"} if newer else {})
        worker.start()
        self.workers.append(worker)
        return worker

    def start_producer(
        self, name: str, seed: int, *, keys: int, pause: float
    ) -> LocalContainer:
        """Start one more producer, on the sides in turn."""
        self._count += 1
        producer = LocalContainer(
            [sys.executable, "-m", "tests.chaos.producer"],
            name=name,
            env={
                "SMOKE_APP": self.name,
                "SMOKE_CONF": json.dumps(self._conf(SIDES[self._count % len(SIDES)])),
                "SMOKE_PARENT": str(os.getpid()),
                "CHAOS_PRODUCER": name,
                "CHAOS_SEED": str(seed),
                "CHAOS_KEYS": str(keys),
                "CHAOS_PAUSE": str(pause),
            },
            log=self._logs / f"{name}.log",
        )
        producer.start()
        self.producers.append(producer)
        return producer

    def stop_producers(self) -> None:
        """Let the producers come to their end."""
        self.ledger.client.set(tasks.STOP, 1)
        for producer in self.producers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                producer.wait(60)
            producer.kill("SIGKILL")

    def wait_for_workers(self) -> None:
        """Wait until all workers that run are ready."""
        for worker in self.workers:
            if worker.status == "running":
                worker.ready()

    def lead_to(self, server: EmbeddedServer) -> None:
        """Let all reach another server instead of the store."""
        for line in self.lines.values():
            line.lead_to(server.port)
        self.redis = Redis.from_url(server.url, decode_responses=True)

    def start_store(self) -> None:
        """Start the store, and wait until it answers.

        It writes what it is told before it answers. With ``everysec`` it would wait
        for a sync that is going on: up to two seconds are lost when it is killed.
        """
        self.store.start()
        wait_until(self._answers, that="the store answers")
        self.redis.config_set("appendfsync", "no")

    def close(self) -> None:
        """End everything."""
        for process in (*self.producers, *self.workers):
            if process.status == "running":
                process.kill("SIGKILL")
        extension_of(self.app).close()
        self.app.close()
        for line in {*self.lines.values(), *self.broker_lines.values()}:
            line.close()
        self.redis.close()
        self.ledger.client.close()
        for server in (self.store, self._second):
            server.close()
        if self._amqp:
            self._forget_queue(self._amqp)

    def _make_app(self) -> Celery:
        app = make_app(self.name, self._conf(SIDES[0]))
        app.loader.import_module(tasks.MODULE)
        app.finalize()
        return app

    def _conf(self, side: str) -> dict[str, Any]:
        """Settings of who sits on a side."""
        store = f"redis://127.0.0.1:{self.lines[side].port}/0"
        return {
            **SETTINGS,
            "broker_url": self._broker_url(side) if self._amqp else store,
            "broker_transport_options": {} if self._amqp else REDIS_TRANSPORT,
            "result_backend": f"tests.chaos.backend:RecordingBackend+{store}",
            "result_expires": 7 * 86_400,
            "task_default_queue": self.name,
            "bgtask_redis_url": store,
            "bgtask_key_prefix": self.prefix,
            "smoke_ledger_url": self._second.url,
        }

    def _broker_url(self, side: str) -> str:
        url = urlsplit(self._amqp or "")
        user = url.netloc.rpartition("@")[0]
        port = self.broker_lines[side].port
        return urlunsplit(url._replace(netloc=f"{user}@127.0.0.1:{port}"))

    def _answers(self) -> bool:
        try:
            return bool(self.redis.ping())
        except Exception:  # noqa: BLE001 - not yet
            return False

    def _forget_queue(self, url: str) -> None:
        with Connection(url) as connection:
            channel: Any = connection.channel()
            channel.queue_delete(self.name)
            channel.exchange_delete(self.name)
