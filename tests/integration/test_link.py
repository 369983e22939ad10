"""The way to the store: lost, restarted, flushed, forked, shut, and away."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from celery_bgtask import StoreUnavailable
from celery_bgtask.extension import extension_of
from celery_bgtask.message import Message
from celery_bgtask.scripts import Scripts
from celery_bgtask.scripts.loader import SCRIPTS, make_script
from celery_bgtask.store import Link
from celery_bgtask.testing import EmbeddedServer, embedded_server
from tests.helpers import PATIENCE


SECRET = "s3cr3t"
ECHO = make_script("echo", "return ARGV[1]")


def ask(link: Link, text: str = "x") -> tuple[str, int]:
    """Have *text* said back, and tell by which local port."""
    said = link.run(ECHO, ("{t}",), (text,)).decode()
    return said, link._connection._sock.getsockname()[1]


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server that a test may stop, shut and break."""
    with embedded_server() as server:
        yield server


@pytest.fixture
def link(app: Celery, redis_url: str) -> Link:
    """A link to the server of all tests."""
    return Link(app, redis_url)


def submit(scripts: Scripts, task_id: str = "t") -> str:
    """Take a slot for *task_id*."""
    return scripts.submit(
        task_id, "k", limit=1, wait=False, max_waiting=1, rank=0, retries=0, token="",
        delay=0, nonce=task_id, message=Message(b"body", b"{}"),
    ).status  # fmt: skip


def scripts_of(app: Celery, url: str) -> Scripts:
    """The scripts of a scope on the server at *url*."""
    settings = extension_of(app).settings
    return Scripts(Link(app, url), prefix="link", scope="s", settings=settings)


def test_nothing_is_connected_before_it_is_used(redis: Redis, link: Link) -> None:
    """Making a link is no I/O."""
    before = redis.info("clients")["connected_clients"]

    assert link._connection is None
    ask(link)

    assert redis.info("clients")["connected_clients"] == before + 1
    link.close()


def test_one_connection_serves_all_threads(link: Link) -> None:
    """Threads take turns, and each gets its own answer."""
    answers: list[Any] = []

    def work(name: str) -> None:
        answers.extend((name, *ask(link, name)) for _ in range(50))

    threads = [threading.Thread(target=work, args=(f"n{n}",)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 500
    assert all(name == said for name, said, _ in answers)
    assert len({port for *_, port in answers}) == 1
    link.close()


def test_a_connection_that_was_cut_is_made_again(redis: Redis, link: Link) -> None:
    """The call that finds it cut does not fail."""
    ask(link)

    redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    assert ask(link, "y")[0] == "y"
    link.close()


def test_scripts_that_were_flushed_are_sent_again(redis: Redis, link: Link) -> None:
    """``SCRIPT FLUSH``, or another server, knows no script: it is told."""
    ask(link)

    redis.script_flush()

    assert ask(link, "y")[0] == "y"
    link.close()


def test_a_script_is_sent_once(redis: Redis, link: Link) -> None:
    """After the first call only its hash goes over the wire."""
    redis.config_resetstat()

    for _ in range(5):
        ask(link)

    stats = redis.info("commandstats")
    assert stats["cmdstat_eval"]["calls"] == 1
    assert stats["cmdstat_evalsha"]["calls"] == 4
    link.close()


def test_what_is_not_waited_for_is_done_in_order(redis: Redis, link: Link) -> None:
    """An unawaited script runs before the next one, and its reply is nobody's."""
    write = make_script(
        "write", 'redis.call("SET", KEYS[1] .. ":" .. ARGV[1], 1, "EX", 9)'
    )

    for number in range(3):
        link.send(write, ("{t}",), (number,))
        assert ask(link, f"x{number}")[0] == f"x{number}"

    assert sorted(redis.keys("{t}:*")) == ["{t}:0", "{t}:1", "{t}:2"]
    link.close()


def test_an_unawaited_script_that_fails_disturbs_nobody(link: Link) -> None:
    """Its error is skipped like any reply."""
    ask(link)

    link.send(make_script("wrong", "return redis.call('NO')"), ("{t}",), ())

    assert ask(link, "y")[0] == "y"
    link.close()


def test_a_restarted_server_is_found_again(
    app: Celery, own_server: EmbeddedServer
) -> None:
    """The first call after the restart works; nothing has to be told."""
    scripts = scripts_of(app, own_server.url)
    assert submit(scripts, "a") == "dispatched"

    own_server.restart()

    assert submit(scripts, "b") == "dispatched"
    assert scripts.stats("k").dispatched == 1


def test_a_server_that_is_away_is_an_error_that_says_where(
    app: Celery, own_server: EmbeddedServer
) -> None:
    """StoreUnavailable, with the address; and it works again when it is back."""
    scripts = scripts_of(app, own_server.url)
    own_server.stop()

    with pytest.raises(StoreUnavailable) as caught:
        submit(scripts)

    assert f"127.0.0.1:{own_server.port}" in str(caught.value)
    assert "refused" in str(caught.value)
    own_server.start()
    assert submit(scripts) == "dispatched"


def test_a_call_waits_for_the_store_as_it_does_for_the_broker(
    app: Celery, own_server: EmbeddedServer, declare: Callable[..., Any]
) -> None:
    """``delay()`` tries by Celery's publish retry policy, then raises."""
    app.conf.bgtask_redis_url = own_server.url
    app.conf.task_publish_retry_policy = {
        "max_retries": 3, "interval_start": 0.01, "interval_step": 0,
        "interval_max": 0.01,
    }  # fmt: skip
    task = declare()
    own_server.stop()
    tries: list[str] = []
    link = extension_of(app).link
    run = link.run

    def counted(script: Any, keys: Any, args: Any) -> Any:
        tries.append(script.name)
        return run(script, keys, args)

    link.run = counted  # type: ignore[method-assign]

    with pytest.raises(StoreUnavailable):
        task.delay("k")
    assert len(tries) == 4

    tries.clear()
    with pytest.raises(StoreUnavailable):
        task.apply_async(("k",), retry=False)
    assert len(tries) == 1


@pytest.mark.parametrize("given", [SECRET + "x", None], ids=["wrong", "none"])
def test_a_wrong_password_is_told_without_it(
    given: str | None, app: Celery, own_server: EmbeddedServer
) -> None:
    """The error says that it is the password, and does not show it."""
    with Redis.from_url(own_server.url) as client:
        client.config_set("requirepass", SECRET)
    url = own_server.url
    scripts = scripts_of(app, url.replace("//", f"//:{given}@") if given else url)

    with pytest.raises(StoreUnavailable) as caught:
        submit(scripts)

    text = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert SECRET not in text
    assert "WRONGPASS" in text or "password" in text or "Authentication" in text

    with Redis.from_url(url, password=SECRET) as client:
        client.config_set("requirepass", "")


def test_a_right_password_works(app: Celery, own_server: EmbeddedServer) -> None:
    """A password in the URL is used."""
    with Redis.from_url(own_server.url) as client:
        client.config_set("requirepass", SECRET)

    scripts = scripts_of(app, own_server.url.replace("//", f"//:{SECRET}@"))

    assert submit(scripts) == "dispatched"


def test_a_replica_is_an_error_that_says_so(
    app: Celery, own_server: EmbeddedServer
) -> None:
    """A server that takes no writes is told as such, and used when it does."""
    with Redis.from_url(own_server.url) as client:
        client.replicaof("127.0.0.1", "1")
        scripts = scripts_of(app, own_server.url)

        with pytest.raises(StoreUnavailable, match=r"read.only replica"):
            submit(scripts)

        client.replicaof("NO", "ONE")
    assert submit(scripts) == "dispatched"


def test_a_server_without_its_replicas_is_an_error_that_says_so(
    app: Celery, own_server: EmbeddedServer
) -> None:
    """``min-replicas-to-write`` refuses writes until replicas are there."""
    with Redis.from_url(own_server.url) as client:
        client.config_set("min-replicas-to-write", 1)
        scripts = scripts_of(app, own_server.url)

        with pytest.raises(StoreUnavailable, match=r"(?i)replicas"):
            submit(scripts)

        client.config_set("min-replicas-to-write", 0)
    assert submit(scripts) == "dispatched"


def test_a_full_server_is_an_error_that_says_so(
    app: Celery, own_server: EmbeddedServer
) -> None:
    """Out of memory: the call fails, and has changed nothing."""
    with Redis.from_url(own_server.url) as client:
        scripts = scripts_of(app, own_server.url)
        client.config_set("maxmemory", 1)

        with pytest.raises(StoreUnavailable, match=r"(?i)OOM|maxmemory"):
            submit(scripts)

        client.config_set("maxmemory", 0)
        assert client.keys("*") == []
    assert submit(scripts) == "dispatched"


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_has_a_connection_of_its_own(
    redis: Redis, declare: Callable[..., Any], app: Celery
) -> None:
    """Parent and child never write to one socket, used before the fork or not."""
    link = extension_of(app).link
    mine = ask(link)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        sender.send([ask(link) for _ in range(3)])
        os._exit(0)

    processes = [context.Process(target=child) for _ in range(2)]
    for process in processes:
        process.start()
    theirs = [receiver.recv() for _ in processes]
    for process in processes:
        process.join(PATIENCE)

    assert ask(link) == mine
    assert len({answer for answers in theirs for answer in answers} | {mine}) == 3
    link.close()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_fork_while_a_thread_asks_blocks_nobody(link: Link) -> None:
    """A lock that was held at the fork is free in the child."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        sender.send(ask(link))
        os._exit(0)

    with link._lock:
        process = context.Process(target=child)
        process.start()
        assert receiver.poll(PATIENCE), "the child waits for a lock of its parent"
        assert receiver.recv()[0] == "x"
    process.join(PATIENCE)


def test_every_script_is_lua_that_the_server_takes(redis: Redis) -> None:
    """The server compiles all of them, to the hash we call them by."""
    for one in SCRIPTS.values():
        assert redis.script_load(one.source) == one.sha


def test_many_processes_take_exactly_the_slots(
    app: Celery, redis: Redis, redis_url: str
) -> None:
    """Four processes ask for five slots each, of five: five get one."""
    code = (
        "import sys, uuid\n"
        "from celery import Celery\n"
        "from tests.integration.test_link import scripts_of\n"
        "from celery_bgtask.message import Message\n"
        "s = scripts_of(Celery('c'), sys.argv[1])\n"
        "sys.stdin.read(1)\n"
        "print(*[s.submit(uuid.uuid4().hex, 'k', limit=5, wait=False, max_waiting=1,"
        " rank=0, retries=0, token='', delay=0, nonce='n', message=Message(b'', b''))"
        ".status for _ in range(5)])\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, redis_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = " ".join(process.communicate("x")[0] for process in processes).split()

    assert sorted(said) == ["dispatched"] * 5 + ["refused"] * 15
    assert scripts_of(app, redis_url).stats("k").dispatched == 5
    redis.flushdb()
