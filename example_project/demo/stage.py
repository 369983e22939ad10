"""Starts what the shop needs, in order, and stops it in reverse."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from uuid import uuid4

from kombu.exceptions import OperationalError
from redis import Redis, RedisError

from celery_bgtask.testing import embedded_server
from example_project import shop
from example_project.celery import app
from example_project.smtp_server import SmtpServer, smtp_server

from .interrupts import Interrupts
from .trouble import Trouble
from .worker import ARGUMENTS, Worker, running_worker


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs while the demonstration does."""

    smtp: SmtpServer
    worker: Worker


@contextmanager
def open_stage(interrupts: Interrupts, say: Callable[[str], None]) -> Iterator[Stage]:
    """Redis, mail server, worker and a shop full of orders, in a private directory.

    Raises:
        Trouble: If one of them does not start.
    """
    with ExitStack() as stack:

        def start(what: AbstractContextManager[T]) -> T:
            with interrupts.held():
                entered = stack.enter_context(what)
                stack.callback(interrupts.ignore)  # Runs before what stops it.
                return entered

        home = Path(start(TemporaryDirectory(prefix="shop-")))
        given = os.environ.get("REDIS_URL")
        url = given or start(embedded_server()).url
        say("Redis        " + ("at REDIS_URL" if given else f"{url} (embedded Valkey)"))
        smtp = start(smtp_server())
        say(f"Mail server  {smtp.host}:{smtp.port}")
        # Read by the worker, and by this process when it first needs a setting.
        os.environ["REDIS_URL"] = url
        os.environ["SHOP_QUEUE"] = f"shop-{uuid4().hex[:8]}"
        os.environ["SHOP_HOME"] = str(home)
        os.environ["SHOP_SMTP"] = f"{smtp.host}:{smtp.port}"
        start(cleaned(connect_redis(url)))
        worker = start(running_worker(home / "worker.log"))
        say(f"Worker       celery {' '.join(ARGUMENTS)}")
        shop.create()
        say(f"Shop         {shop.count_lines():,} order lines")
        worker.wait_until_ready()
        yield Stage(smtp, worker)


def connect_redis(url: str) -> Redis:
    """A client whose server answers.

    Raises:
        Trouble: If none does.
    """
    try:
        redis = Redis.from_url(url)
        redis.ping()
    except (RedisError, ValueError) as error:
        raise Trouble(f"REDIS_URL: {error}") from error
    return redis


@contextmanager
def cleaned(redis: Redis) -> Iterator[None]:
    """Leave nothing of this shop in a Redis that others use."""
    try:
        yield
    finally:
        with suppress(RedisError, OperationalError), app.connection() as connection:
            queue = app.amqp.queues[app.conf.task_default_queue].bind(connection)
            queue.declare()  # Only what a connection has declared can it delete.
            queue.delete()
            for name in redis.scan_iter(f"*{app.conf.bgtask_key_prefix}:*"):
                redis.delete(name)
            # What the worker had fetched and could not give back in time.
            for tag, message in redis.hscan_iter("unacked"):
                if queue.name.encode() in message:
                    redis.hdel("unacked", tag)
                    redis.zrem("unacked_index", tag)
