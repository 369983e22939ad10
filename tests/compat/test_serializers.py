"""Serializers and compression: what waits in the store comes out as it went in."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from celery import chord
from celery.exceptions import ChordError

from celery_bgtask import LimitReached
from tests.compat.conftest import PATIENCE, Compared, current, value_of
from tests.compat.tasks import MODULE
from tests.helpers import wait_until
from tests.smoke.app import make_app
from tests.smoke.nodes import WorkerSpec


SERIALIZERS = ["json", "yaml", "msgpack", "pickle"]
COMPRESSIONS = ["zlib", "bzip2", "gzip"]

VALUE = {"text": "ü\n\x7f", "numbers": [0, -1, 2.5, 2**40], "none": None, "yes": True}

#: What only some can carry.
MORE: dict[str, Any] = {
    "json": dt.datetime(2024, 2, 29, 12, tzinfo=dt.timezone.utc),
    "yaml": {1: "a number for a key"},
    "msgpack": b"bytes \xff",
    "pickle": {frozenset({1, 2}), (3, 4)},
}


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """All serializers are accepted; results and their errors are pickled."""
    return {
        "accept_content": [*SERIALIZERS, "application/x-python-serialize"],
        "result_serializer": "pickle",
    }


@pytest.fixture(scope="module")
def smoke_workers() -> Iterator[tuple[WorkerSpec, ...]]:
    """One worker; as root, it takes pickles only when told so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("C_FORCE_ROOT", "1")
        yield (WorkerSpec("prefork", 2, tasks=MODULE),)


@contextlib.contextmanager
def taken(both: Compared, name: str) -> Iterator[None]:
    """Take the only slot of the limited ``held``: what is submitted then waits."""
    held = both.limited.held
    holder = held.delay(until=name)
    wait_until(lambda: held.control.stats().running, within=PATIENCE, that="it runs")
    try:
        yield
    finally:
        both.setup.ledger.client.rpush(f"ledger:go:{name}", "go")
    value_of(holder)


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_a_message_arrives_as_it_was_sent(both: Compared, serializer: str) -> None:
    """At once, by any serializer."""
    value = [VALUE, MORE[serializer]]

    assert both(lambda t: t.echo.apply_async((value,), serializer=serializer)) == value


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_a_message_that_has_waited_arrives_as_it_was_sent(
    both: Compared, key: str, serializer: str
) -> None:
    """By way of the store."""
    value = [VALUE, MORE[serializer]]
    with taken(both, key):
        waiting = both.limited.held.apply_async((value,), serializer=serializer)
        assert both.limited.held.control.stats().waiting == 1

    assert value_of(waiting) == value


@pytest.mark.parametrize("serializer", SERIALIZERS)
def test_a_task_has_a_serializer_of_its_own(both: Compared, serializer: str) -> None:
    """``serializer=`` of a task; its retries use it too."""
    value = [VALUE, MORE[serializer]]

    seen: Any = both(lambda t: getattr(t, f"retried_{serializer}").delay(value))

    assert seen == [value, 1]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_compressed_message_arrives(
    both: Compared, key: str, compression: str
) -> None:
    """At once, and by way of the store."""
    value = [VALUE] * 50
    assert (
        both(lambda t: t.echo.apply_async((value,), compression=compression)) == value
    )
    with taken(both, key):
        waiting = both.limited.held.apply_async((value,), compression=compression)

    assert value_of(waiting) == value


def test_a_message_that_has_waited_keeps_what_amqp_says_of_it(
    both: Compared, key: str
) -> None:
    """Properties that an application sets, and that Celery hands through."""
    said = {"app_id": "billing", "message_id": "m-1", "timestamp": 1, "type": "report"}
    held = both.limited.held
    with taken(both, key):
        waiting = held.apply_async((), {"tell": tuple(said)}, **said)
        at_once = both.kinds["plain"].held.apply_async(
            (), {"tell": tuple(said)}, **said
        )

    assert value_of(at_once) == value_of(waiting) == said


def test_an_error_of_ours_is_rebuilt_from_a_pickled_result(
    both: Compared, key: str
) -> None:
    """A refused member of a chord: its own error, and the chord's."""
    strict = both.limited.strict
    holder = strict.delay(until=key)
    wait_until(lambda: strict.control.stats().running, within=PATIENCE, that="it runs")

    result: Any = chord(
        [strict.si(), both.limited.add.s(1, 1)], both.limited.echo.s()
    )()
    refused = result.parent.results[0]

    with pytest.raises(LimitReached) as error:
        refused.get(timeout=PATIENCE)
    assert (error.value.limit, error.value.running) == (1, 1)
    with pytest.raises(ChordError, match="LimitReached"):
        result.get(timeout=PATIENCE, follow_parents=False)
    both.setup.ledger.client.rpush(f"ledger:go:{key}", "go")
    assert value_of(holder) == "done"


def test_messages_of_the_old_protocol(both: Compared, key: str) -> None:
    """``task_protocol = 1``: at once, and by way of the store."""
    old = make_app(both.setup.app.main, {**both.setup.app.conf["smoke_conf"]})
    old.conf.task_protocol = 1
    with current(old):
        for kind in both.kinds:
            added = old.tasks[f"{kind}.add"].apply_async((1, 2), {"z": 3})
            assert value_of(added) == 6
        with taken(both, key):
            waiting = old.tasks["limited.held"].delay(VALUE)

        assert value_of(waiting) == VALUE
    old.close()
