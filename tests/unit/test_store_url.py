"""Which server holds the slots, and that nobody sees its password."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from redis.backoff import NoBackoff
from redis.retry import Retry

from celery_bgtask.config import Settings
from celery_bgtask.exceptions import StoreUnavailable
from celery_bgtask.extension import extension_of
from celery_bgtask.location import connection_pool, redis_url, store_url
from celery_bgtask.store import Link


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("declared", "backend", "broker", "chosen"),
    [
        ("redis://a", "redis://b", "redis://c", "redis://a"),
        (None, "redis://b", "redis://c", "redis://b"),
        (None, "rpc://", "redis://c", "redis://c"),
        (None, None, "redis://c", "redis://c"),
        (None, "redis://b", "amqp://c", "redis://b"),
        (None, "db+sqlite:///x", "valkey://c", "valkey://c"),
        (None, "rediss://b/1?ssl_cert_reqs=none", "amqp://c", "rediss://b/1?ssl_cert_reqs=none"),
        (None, "sentinel://b;sentinel://c", "amqp://c", "sentinel://b;sentinel://c"),
        (None, "redis+socket:///tmp/r.sock", "amqp://c", "redis+socket:///tmp/r.sock"),
        ("valkeys://a", None, "amqp://c", "valkeys://a"),
        ("unix:///tmp/r.sock?db=2", None, "amqp://c", "unix:///tmp/r.sock?db=2"),
    ],
)  # fmt: skip
def test_the_store_is_what_is_set_else_what_is_redis(
    declared: Any,
    backend: Any,
    broker: str,
    chosen: str,
    make_app: Callable[..., Celery],
) -> None:
    """bgtask_redis_url, then the result backend, then the broker."""
    app = make_app()
    app.conf.update(result_backend=backend, broker_url=broker)

    assert store_url(app, declared) == chosen


@pytest.mark.parametrize(
    ("broker", "chosen"),
    [
        ("redis://a;redis://b", "redis://a"),
        (["redis://a", "redis://b"], "redis://a"),
        (["amqp://a", "amqp://b"], None),
        ("amqp://a;amqp://b", None),
    ],
)
def test_several_brokers_are_one_store(
    broker: Any, chosen: Any, make_app: Callable[..., Celery]
) -> None:
    """Celery takes a list of brokers; the store is the first of them."""
    app = make_app()
    app.conf.update(result_backend=None, broker_url=broker)

    if chosen is None:
        with pytest.raises(ImproperlyConfigured, match="set bgtask_redis_url"):
            store_url(app, None)
    else:
        assert store_url(app, None) == chosen


def test_a_broker_to_write_to_goes_first(make_app: Callable[..., Celery]) -> None:
    """Slots go where messages are sent."""
    app = make_app()
    app.conf.update(
        result_backend=None, broker_read_url="redis://r", broker_write_url="redis://w"
    )

    assert store_url(app, None) == "redis://w"


@pytest.mark.parametrize(
    ("backend", "broker"),
    [
        (None, "amqp://guest:guest@host"),
        ("rpc://", "amqp://guest:guest@host"),
        ("db+sqlite:///x", "memory://"),
        (None, "sqs://"),
        ("disabled://", "filesystem://"),
    ],
)
def test_no_store_is_an_error_that_says_what_to_set(
    backend: Any, broker: str, make_app: Callable[..., Celery]
) -> None:
    """Neither backend nor broker is Redis: the error names the setting."""
    app = make_app()
    app.conf.update(result_backend=backend, broker_url=broker)

    with pytest.raises(ImproperlyConfigured, match="set bgtask_redis_url, for example"):
        store_url(app, None)


@pytest.mark.parametrize(
    "url", ["amqp://user:s3cr3t@host//", "http://:s3cr3t@host", "s3cr3t"]
)
def test_a_store_of_another_kind_is_refused(url: str, app: Celery) -> None:
    """What was set is shown, without its password."""
    with pytest.raises(ImproperlyConfigured) as caught:
        store_url(app, url)

    assert "bgtask_redis_url is " in str(caught.value)
    if "://" in url:
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "spelled"),
    [
        ("redis://:pw@h:1/2", "redis://:pw@h:1/2"),
        ("valkey://h", "redis://h"),
        ("valkeys://h", "rediss://h"),
        ("redis+socket:///run/r.sock?virtual_host=3", "unix:///run/r.sock?db=3"),
        ("socket:///run/r.sock", "unix:///run/r.sock"),
        ("rediss://h?ssl_cert_reqs=CERT_NONE", "rediss://h?ssl_cert_reqs=none"),
        ("rediss://h?ssl_cert_reqs=CERT_REQUIRED", "rediss://h?ssl_cert_reqs=required"),
        ("rediss://h?ssl_cert_reqs=optional", "rediss://h?ssl_cert_reqs=optional"),
    ],
)
def test_urls_are_spelled_for_redis_py(url: str, spelled: str) -> None:
    """Celery and redis-py have different names for the same things."""
    assert redis_url(url) == spelled


def connection_of(app: Celery, url: str) -> Any:
    """A connection to *url* that is not made yet."""
    return connection_pool(app, url).make_connection()


def test_a_url_gives_host_port_database_and_password(app: Celery) -> None:
    """Quoted characters are unquoted."""
    connection = connection_of(app, "redis://user:p%40ss@example.com:6380/3")

    assert (connection.host, connection.port, connection.db) == ("example.com", 6380, 3)
    assert (connection.username, connection.password) == ("user", "p@ss")


def test_a_secure_url_gives_tls(app: Celery) -> None:
    """Both rediss and valkeys are TLS; certificates are checked as the URL says."""
    connection = connection_of(app, "rediss://host/1?ssl_cert_reqs=CERT_OPTIONAL")

    assert isinstance(connection, redis.SSLConnection)
    assert isinstance(connection_of(app, "valkeys://host"), redis.SSLConnection)


@pytest.mark.parametrize("name", ["redis_backend_use_ssl", "broker_use_ssl"])
def test_celerys_tls_settings_hold_for_the_store(
    name: str, make_app: Callable[..., Celery]
) -> None:
    """The store is backend or broker: certificates are where Celery has them."""
    url = "rediss://host/0"
    app = make_app(**{name: {"ssl_cert_reqs": "optional", "ssl_ca_certs": "/ca.pem"}})
    app.conf.update(
        result_backend=url if name == "redis_backend_use_ssl" else None, broker_url=url
    )

    connection = connection_of(app, store_url(app, None))

    assert connection.ca_certs == "/ca.pem"


def test_a_socket_url_gives_a_socket(app: Celery) -> None:
    """A path, a database and a password."""
    connection = connection_of(app, "redis+socket://:pw@/run/r.sock?virtual_host=3")

    assert isinstance(connection, redis.UnixDomainSocketConnection)
    assert (connection.path, connection.db) == ("/run/r.sock", 3)
    assert connection.password == "pw"


def test_sentinels_are_asked_for_the_primary(make_app: Callable[..., Celery]) -> None:
    """All sentinels of the URL are known, database and password are the primary's."""
    app = make_app(
        result_backend_transport_options={
            "master_name": "mymaster",
            "sentinel_kwargs": {"password": "sentinel-pw"},
        }
    )

    pool: Any = connection_pool(
        app, "sentinel://:pw@a:26379/2;sentinel://:pw@b:26380/2"
    )

    assert pool.service_name == "mymaster"
    assert pool.is_master
    assert pool.connection_kwargs["db"] == 2
    assert pool.connection_kwargs["password"] == "pw"
    hosts = [
        sentinel.connection_pool.connection_kwargs["host"]
        for sentinel in pool.sentinel_manager.sentinels
    ]
    assert hosts == ["a", "b"]


def test_sentinels_need_the_name_of_the_primary(app: Celery) -> None:
    """The error says where to put it."""
    with pytest.raises(ImproperlyConfigured, match="master_name in result_backend"):
        connection_pool(app, "sentinel://a:26379")


@pytest.mark.parametrize(
    "url",
    [
        f"redis://:{SECRET}@127.0.0.1:1/0",
        f"redis://user:{SECRET}@127.0.0.1:1/0",
        f"valkey://:{SECRET}@127.0.0.1:1",
        f"rediss://:{SECRET}@127.0.0.1:1?ssl_cert_reqs=none",
        f"redis://127.0.0.1:1/0?password={SECRET}",
        f"redis+socket://:{SECRET}@/nonexistent.sock",
        f"sentinel://:{SECRET}@127.0.0.1:1;sentinel://:{SECRET}@127.0.0.1:1",
    ],
)
def test_nobody_sees_the_password(url: str, make_app: Callable[..., Celery]) -> None:
    """The error of a store that is away shows where it is, not how to get in."""
    once = {"retry": Retry(NoBackoff(), 0)}
    app = make_app(
        result_backend_transport_options={"master_name": "m", "sentinel_kwargs": once}
    )
    link = Link(app, url)

    with pytest.raises(StoreUnavailable) as caught:
        link.run(type("S", (), {"sha": "x", "source": "return 1"})(), "{t}", ())

    cause: BaseException | None = caught.value
    while cause is not None:
        assert SECRET not in str(cause)
        assert SECRET not in repr(cause)
        cause = cause.__cause__
    assert SECRET not in caught.value.url


def test_a_prefix_is_named_for_the_app(make_app: Callable[..., Celery]) -> None:
    """One prefix is one app; a setting replaces it; an app without a name has one."""
    assert extension_of(make_app("shop")).prefix == "bgtask:shop"
    assert extension_of(make_app("shop", bgtask_key_prefix="x")).prefix == "x"
    assert extension_of(make_app(None)).prefix == "bgtask:app"


@pytest.mark.parametrize(
    ("broker", "priority", "rank"),
    [
        ("redis://", None, 0),
        ("redis://", 0, 0),
        ("redis://", 9, 9),
        ("rediss://", 9, 9),
        ("valkey://", 9, 9),
        ("sentinel://a;sentinel://b", 9, 9),
        ("redis+socket:///x", 9, 9),
        ("redis://", 1000, 255),
        ("redis://", -5, 0),
        ("amqp://", None, 255),
        ("amqp://", 9, 246),
        ("amqp://", 255, 0),
        (["amqp://a", "amqp://b"], 9, 246),
        (["redis://a", "redis://b"], 9, 9),
        ("amqp://a;amqp://b", 9, 246),
    ],
)
def test_priorities_have_the_sense_of_the_broker(
    broker: Any, priority: Any, rank: int, make_app: Callable[..., Celery]
) -> None:
    """Redis starts the lowest first, RabbitMQ the highest; ranks are one order."""
    app = make_app()
    app.conf.update(broker_url=broker)

    assert extension_of(app).rank(priority) == rank


def test_settings_are_read_once(make_app: Callable[..., Celery]) -> None:
    """An extension is one per app, and so are its settings."""
    app = make_app()

    assert extension_of(app) is extension_of(app)
    assert isinstance(extension_of(app).settings, Settings)
    assert extension_of(app).settings is extension_of(app).settings


def test_celerys_default_app_is_told_from_ones_own(
    make_app: Callable[..., Celery],
) -> None:
    """What stands behind a missing store is often a thread without a current app."""
    for name, advice in (("default", True), ("shop", False)):
        app = make_app(name)
        app.conf.update(result_backend=None, broker_url=None)
        with pytest.raises(ImproperlyConfigured) as error:
            store_url(app, None)
        assert ("set_default()" in str(error.value)) is advice
