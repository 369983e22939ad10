"""What tests wait for, and what they count."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from redis import Redis


T = TypeVar("T")

#: Seconds to wait for what must come. It costs nothing where it comes, and a busy
#: machine may stand still for five seconds at any moment.
PATIENCE = 30.0

#: What stays without a lifetime when nothing is owed: nothing yet.
PERMANENT: frozenset[str] = frozenset()

#: The parts of a scope that are empty, and so do not exist, once all has ended.
OWED = frozenset({"slots", "waiting", "leases", "outbox"})


def wait_until(
    predicate: Callable[[], T], *, within: float = PATIENCE, that: str = "it holds"
) -> T:
    """Return the first true value of *predicate*, or fail saying what was awaited."""
    deadline = time.monotonic() + within
    pause = 0.005
    while True:
        late = time.monotonic() > deadline
        value = predicate()
        if value:
            return value
        if late:
            raise AssertionError(f"waited {within:g} s in vain until {that}: {value!r}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def let_pass(seconds: float, *, since: float | None = None) -> None:
    """Wait until so many seconds have passed: time itself is what is waited for.

    Args:
        seconds: How many.
        since: A reading of ``time.monotonic()``; by default now.
    """
    begun = time.monotonic() if since is None else since
    time.sleep(max(0.0, begun + seconds - time.monotonic()))


def value_of(result: Any) -> Any:
    """Return the value of a task without waiting for news of it.

    Of a result that is stored while its client comes back to a server that was away
    Celery may have none, up to 5.7 at least: it looks first and subscribes then.
    """
    wait_until(result.ready, that=f"{result.id} has ended")
    return result.get()


def part_of(name: str) -> str:
    """What a key of ours is: ``{prefix:scope}:slots:42`` is ``slots``."""
    return name.partition("}:")[2].partition(":")[0]


def scope_of(name: str) -> str:
    """Whose key it is: ``{prefix:scope}:slots:42`` is ``prefix:scope``."""
    return name.partition("}:")[0].removeprefix("{")


def our_keys(client: Redis, prefix: str = "") -> list[str]:
    """All keys of ours in the database, those of one *prefix* if given."""
    pattern = "{" + _escaped(prefix) + "*}:*"
    return sorted(
        name.decode() if isinstance(name, bytes) else name
        for name in client.scan_iter(pattern, count=1000)
    )


def immortal_keys(client: Redis, prefix: str = "") -> list[str]:
    """The keys of ours that would stay for ever, but those meant to."""
    return [
        name
        for name in our_keys(client, prefix)
        if part_of(name) not in PERMANENT and client.pttl(name) == -1
    ]


def owed_keys(client: Redis, prefix: str = "") -> list[str]:
    """The keys of ours that say that something runs, waits or is to be sent."""
    return [name for name in our_keys(client, prefix) if part_of(name) in OWED]


def leaked_keys(client: Redis) -> list[str]:
    """The immortal keys of scopes in which nothing is owed."""
    busy = {scope_of(name) for name in owed_keys(client)}
    return [name for name in immortal_keys(client) if scope_of(name) not in busy]


def wait_until_drained(
    client: Redis, *, prefix: str = "", within: float = PATIENCE
) -> None:
    """Wait until nothing is held, parked or owed, and what is left has a lifetime.

    A run settles without waiting for the reply, so its record may outlive its
    result by a moment.
    """
    left: list[str] = []

    def nothing_left() -> bool:
        left[:] = {*owed_keys(client, prefix), *immortal_keys(client, prefix)}
        return not left

    try:
        wait_until(nothing_left, within=within)
    except AssertionError:
        told = {name: _content(client, name) for name in sorted(left)}
        raise AssertionError(f"left after {within:g} s: {told}") from None


def _content(client: Redis, name: str) -> Any:
    """What a key holds, but messages: shown when it should have gone."""
    if client.type(name) in {b"hash", "hash"}:
        held: Any = client.hgetall(name)
        return {part: value for part, value in held.items() if len(value) < 200}
    return client.type(name)


def _escaped(text: str) -> str:
    return "".join("\\" + char if char in "*?[]\\" else char for char in text)


@contextmanager
def monitored(url: str) -> Iterator[list[dict[str, Any]]]:
    """The commands that the server is given within a ``with`` block."""
    seen: list[dict[str, Any]] = []
    with Redis.from_url(url) as client, Redis.from_url(url) as other:
        client.echo("connected")
        with watched(other, seen):
            yield seen
            client.echo("over")


@contextmanager
def watched(client: Redis, seen: list[dict[str, Any]]) -> Iterator[None]:
    """Notes what the server is given, until it is told that this is over."""
    with client.monitor() as monitor:

        def listen() -> None:
            for command in monitor.listen():
                if command["command"] == "ECHO over":
                    return
                seen.append(command)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield
        thread.join(PATIENCE)
