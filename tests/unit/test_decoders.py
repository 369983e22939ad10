"""What arrives over Redis or the broker may be anything: no decoder trusts it."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.utils import json

from celery_bgtask import BgTask, BgTaskError, MissingTaskKey
from celery_bgtask.events import (
    Announcement,
    Answer,
    Ended,
    Progress,
    encode_end,
    encode_progress,
)
from celery_bgtask.message import HEADER, Message, Unreadable, number_in
from celery_bgtask.results.follower import Follower
from celery_bgtask.results.listener import events_of
from celery_bgtask.running.arrival import Arrival
from celery_bgtask.verdicts import error_of, state_of


#: They are many in a second, and what they look for is found by few.
few = settings(max_examples=40)

#: Any JSON, numbers that are none and half surrogates among it.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def some_of(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """A mapping that has some of these names, with anything."""
    return st.dictionaries(st.sampled_from(names), anything)


FIELDS = (
    "id", "attempt", "worker", "state", "error", "text",
    "current", "total", "description", "data",
)  # fmt: skip

HEADERS = (
    "key", "attempt", "reply", "clock", "start_by", "finish_by", "metadata",
    "broadcast", "until",
)  # fmt: skip

good_events = st.sampled_from(
    (
        encode_end("t", 1, state="SUCCESS"),
        encode_end("t", 2, state="FAILURE", error=ValueError("x")),
        encode_progress("t", 1, current=1, total=2.5, description="d", data={}),
    )
)


@st.composite
def raw_events(draw: Any) -> bytes:
    """A line of a log: as written, with other values in it, or nonsense."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=40))
    facts = json.loads(draw(good_events)) | draw(some_of(*FIELDS))
    for name in draw(st.sets(st.sampled_from(FIELDS), max_size=2)):
        facts.pop(name, None)
    numbers = draw(st.sampled_from(("1 2", "-1 0", "x 1", f"{10**20} {10**20}")))
    return f"{numbers} {json.dumps(facts)}".encode("utf-8", "surrogatepass")


@few
@given(st.lists(raw_events(), max_size=4))
def test_what_is_told_is_an_event_or_is_left_out(raw: list[bytes]) -> None:
    """Whatever is on a channel or in a log, a follower can be told of it."""
    heard: list[Any] = []
    follower = Follower(
        "t",
        scripts=(),
        channels=(),
        result=None,  # type: ignore[arg-type]
        hear=heard.append,
    )
    for event in events_of(raw):
        hash(event.task_id)
        assert isinstance(event, (Answer, Ended, Progress))
        if isinstance(event, Progress):
            assert isinstance(event.percent, float)
            assert isinstance(event.data, dict)
        follower.tell(event)
    assert len(heard) <= len(raw)


@pytest.fixture(scope="module")
def task() -> Any:
    """A task with a key."""
    app = Celery("decoders", set_as_current=False)

    @app.task(base=BgTask, task_key="k", shared=False, lazy=False)
    def task(k: Any = 0) -> None:
        """Do nothing."""

    return task


@few
@given(header=anything | some_of(*HEADERS), retries=anything)
def test_a_header_that_others_have_written_harms_nothing(
    task: Any, header: Any, retries: Any
) -> None:
    """What is not what it should be counts as not said."""
    request = {"id": "t", HEADER: header, "retries": retries}
    arrival = Arrival(task, task.bgtask, request, None, "w")

    assert type(arrival.attempt) is int
    assert 0 < arrival.attempt <= 2**53
    assert all(type(at) is int and at >= 0 for at in arrival.deadlines)
    arrival.reply.encode()
    dict(arrival.metadata)
    with contextlib.suppress(MissingTaskKey):
        arrival.key((1,), {}).encode()


@few
@given(some_of("x"))
def test_a_number_is_a_whole_one_that_lua_can_count(header: dict[str, Any]) -> None:
    """Everything else is none."""
    number = number_in(header, "x")
    assert type(number) is int
    assert number in (0, header.get("x"))
    assert 0 <= number < 2**53


@few
@given(
    st.binary(max_size=30)
    | (
        anything
        | some_of(
            "headers", "properties", "exchange", "routing_key", "content_type",
            "content_encoding",
        )
    ).map(lambda facts: json.dumps(facts).encode("utf-8", "surrogatepass"))
)  # fmt: skip
def test_a_stored_message_is_one_or_is_unreadable(envelope: bytes) -> None:
    """And nothing else, to whoever publishes, runs or concludes it."""
    try:
        opened = Message(b"", envelope).opened()
    except Unreadable:
        return
    assert isinstance(opened["headers"].get(HEADER, {}), dict)
    assert isinstance(opened["routing_key"], str)


@few
@given(
    st.text(max_size=30)
    | st.sampled_from(("unaccepted", "unfinished", "cancelled")).flatmap(
        lambda word: st.text(max_size=9).map(lambda rest: f"{word} {rest}")
    )
)
def test_any_verdict_is_an_error(verdict: str) -> None:
    """A task that has ended by something has ended."""
    error = error_of("t", verdict)
    assert isinstance(error, BgTaskError)
    assert state_of(error) in {"REVOKED", "FAILURE"}
    str(error)


@few
@given(
    st.binary(max_size=30)
    | (anything | some_of("task", "queue", "metadata", "offered")).map(
        lambda facts: json.dumps(facts).encode("utf-8", "surrogatepass")
    )
)
def test_a_stored_announcement_is_one_or_a_value_error(news: bytes) -> None:
    """And hides no other offer."""
    with contextlib.suppress(ValueError):
        announcement = Announcement.of(b"t", b"k", b"1", news)
        hash((announcement.task, announcement.queue))
