"""A thread that takes steps: what others may do between them."""

from __future__ import annotations

import threading

import pytest

from celery_bgtask.periodic import Periodic
from tests.helpers import PATIENCE


def nothing() -> bool:
    """An action that must not be taken."""
    return pytest.fail("it was taken within a step")


def test_an_action_is_taken_between_two_steps_and_never_within_one() -> None:
    """By the thread that calls; who is refused has to leave it to the steps."""
    inside, go_on = threading.Event(), threading.Event()

    def step() -> float:
        inside.set()
        assert go_on.wait(PATIENCE)
        return PATIENCE

    thread = Periodic("of a test", step, lambda: True)
    assert thread.between(lambda: True)

    thread.start()
    assert inside.wait(PATIENCE)
    assert not thread.between(nothing)
    go_on.set()
    thread.leave()
    thread.join(PATIENCE)

    here = threading.current_thread()
    assert thread.between(lambda: threading.current_thread() is here)


def test_no_action_is_taken_while_the_process_forks() -> None:
    """A child would inherit its locks for ever; after an error it goes on."""
    thread = Periodic("of a test", lambda: PATIENCE, lambda: True)

    thread.hold()
    assert not thread.between(nothing)
    thread.go_on()
    with pytest.raises(ValueError, match="as asked for"):
        thread.between(fail)

    assert thread.between(lambda: True)


def fail() -> bool:
    """An action that fails."""
    raise ValueError("as asked for")
