"""A private server per test process, an app per test, the leak check."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest
from celery import Celery
from celery.worker.state import reset_state
from hypothesis import HealthCheck, settings
from redis import Redis

from celery_bgtask.extension import extension_of
from celery_bgtask.testing import EmbeddedServer, embedded_server
from tests.helpers import leaked_keys, wait_until


# A shell starts what runs in the background with Ctrl-C ignored, and so would be
# all that the tests start.
with contextlib.suppress(ValueError):  # not in the main thread
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that stands still for some seconds is no fault of a test.
settings.register_profile(
    "patient", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """The server of this test process: private, or the one ``REDIS_URL`` names."""
    try:
        with embedded_server(url=os.environ.get("REDIS_URL")) as server:
            yield server
    except ModuleNotFoundError as exc:
        if os.environ.get("CI"):
            pytest.fail(str(exc))
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def redis_url(server: EmbeddedServer) -> str:
    """The database of this test process: the tests may do there what they want.

    Of a server that somebody else runs it is the database that ``REDIS_URL``
    names; without a name an empty one is taken, from the last on.
    """
    if not os.environ.get("REDIS_URL") or urlsplit(server.url).path.strip("/"):
        return server.url
    for number in range(15, 0, -1):
        url = urlunsplit(urlsplit(server.url)._replace(path=f"/{number}"))
        with Redis.from_url(url) as client:
            if not client.dbsize():
                return url
    pytest.fail("REDIS_URL: no empty database from 1 to 15; name one that may go")


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of the test database, empty before the test and after."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        client.flushdb()
        yield client
        client.flushdb()


@pytest.fixture
def app(redis: Redis, redis_url: str) -> Iterator[Celery]:
    """An app with a name, a queue and a key prefix that no other test has."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    app = Celery(name, broker=redis_url, backend=redis_url, set_as_current=False)
    app.conf.update(
        task_default_queue=name,
        broker_connection_retry_on_startup=True,
        bgtask_redis_url=redis_url,
        bgtask_key_prefix=f"bgtask:{name}",
    )
    yield app
    # What a worker of this process has left in hand would keep its agent for ever.
    reset_state()
    extension_of(app).close()
    app.close()


@pytest.fixture(autouse=True)
def _no_key_outlives_its_use(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test every key of a scope where nothing is owed has a lifetime.

    What a test leaves running or waiting is owed; see ``wait_until_drained`` for
    the check that nothing is.
    """
    if "redis" not in request.fixturenames:
        yield
        return
    client: Redis = request.getfixturevalue("redis")
    yield
    wait_until(
        lambda: not leaked_keys(client),
        that=f"every key has a lifetime, {leaked_keys(client)} too",
    )
