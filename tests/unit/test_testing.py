"""What applications have for their own tests, as far as it needs no server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_bgtask import BgTask
from celery_bgtask.testing import Recorder, eager


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    """An app with a bgtask and a plain task; it connects nowhere."""
    app = make_app()
    app.set_current()
    limited: Any = {"shared": False, "base": BgTask}

    @app.task(name="export", task_key="customer", bind=True, **limited)
    def export(self, customer, fmt="csv", fails=0):
        if self.request.retries < fails:
            raise self.retry(countdown=0)
        self.progress(1, 1)
        return f"{customer}.{fmt}"

    @app.task(name="whole", **limited)
    def whole(*names):
        if not names:
            raise ValueError("no names")

    @app.task(shared=False, name="plain")
    def plain(text):
        app.tasks["export"].delay(1, fmt=text)

    return app


def test_eager_mode_is_on_for_the_block_only(app: Celery) -> None:
    """The settings are as before, and so is what a failure does."""
    app.conf.task_eager_propagates = False
    with eager(app):
        assert app.tasks["export"].delay(1).get() == "1.csv"
        with pytest.raises(ValueError, match="no names"):
            app.tasks["whole"].delay()

    assert (app.conf.task_always_eager, app.conf.task_eager_propagates) == (
        False, False
    )  # fmt: skip


def test_a_failure_may_be_left_in_the_result(app: Celery) -> None:
    """As in production."""
    with eager(app, propagates=False) as calls:
        result = app.tasks["whole"].delay()

    assert result.state == "FAILURE"
    assert calls.submitted("whole").one().state == "ended"


def test_calls_are_told_with_all_their_arguments(app: Celery) -> None:
    """In order, by position and by name; a call within another comes after it."""
    with eager(app) as calls:
        app.tasks["export"].delay(42)
        app.tasks["plain"].delay("pdf")
        app.tasks["whole"].apply_async(("a", "b"), task_id="mine")

    facts = [(c.task, c.args, c.kwargs, c.key) for c in calls.submitted()]
    assert facts == [
        ("export", (42,), {}, "42"),
        ("plain", ("pdf",), {}, None),
        ("export", (1,), {"fmt": "pdf"}, "1"),
        ("whole", ("a", "b"), {}, None),
    ]
    export = calls.submitted(app.tasks["export"], 42).one()
    assert export.arguments == {"customer": 42, "fmt": "csv", "fails": 0}
    whole = calls.submitted("whole").one()
    assert (whole.id, whole.arguments) == ("mine", {"names": ("a", "b")})


def test_calls_are_found_by_key_and_by_argument(app: Celery) -> None:
    """However these were given."""
    export = app.tasks["export"]
    with eager(app) as calls:
        export.delay(1)
        export.delay(customer=1, fmt="pdf")
        export.delay(2, "pdf")

    assert [c.key for c in calls.submitted(export, fmt="pdf")] == ["1", "2"]
    assert len(calls.submitted(export, "1")) == len(calls.submitted(export, 1)) == 2
    assert calls.submitted(export, 1, fmt="csv").one().args == (1,)
    assert calls.submitted(export, 3) == []
    assert calls.submitted(export, nothing=1) == []


def test_a_retry_is_the_call_that_it_repeats(app: Celery) -> None:
    """One call, however often it runs."""
    with eager(app) as calls:
        assert app.tasks["export"].delay(1, fails=2).get() == "1.csv"

    assert calls.submitted("export").one().kwargs == {"fails": 2}


def test_a_call_whose_arguments_do_not_fit_has_no_names_for_them(app: Celery) -> None:
    """It can be looked at all the same."""
    with eager(app) as calls, pytest.raises(TypeError):
        app.tasks["export"].apply((), {"wrong": 1}, throw=True)

    call = calls.submitted("export").one()
    assert (call.kwargs, call.arguments, call.key) == ({"wrong": 1}, {}, None)


def test_eager_mode_has_nothing_parked_or_refused(app: Celery) -> None:
    """A test that asks for it means another fixture, and is told which."""
    with eager(app) as calls:
        for ask in (calls.parked, calls.refused):
            with pytest.raises(RuntimeError, match=r"no limits.*bgtasks"):
                ask("export")


@pytest.mark.parametrize("protocol", [1, 2])
def test_plain_tasks_are_told_as_well(app: Celery, protocol: int) -> None:
    """Over a broker, in either form of Celery's messages."""
    app.conf.task_protocol = protocol
    with Recorder(app).recording() as calls:
        app.tasks["plain"].delay("pdf")
        app.send_task("elsewhere", kwargs={"a": 1})
    app.tasks["plain"].delay("not recorded")

    plain, other = calls.submitted()
    assert (plain.task, plain.arguments, plain.state) == (
        "plain", {"text": "pdf"}, "dispatched"
    )  # fmt: skip
    assert (other.task, other.kwargs, other.arguments, other.key) == (
        "elsewhere", {"a": 1}, {}, None
    )  # fmt: skip
    app.backend.store_result(plain.id, None, "SUCCESS")
    assert calls.submitted("plain").one().state == "ended"


def test_what_is_cleared_is_not_told_again(app: Celery) -> None:
    """So a test can look at one step after another."""
    with eager(app) as calls:
        app.tasks["export"].delay(1)
        calls.clear()
        app.tasks["export"].delay(2)

    assert calls.submitted().one().key == "2"


def test_the_text_of_no_calls_says_what_there_was(app: Celery) -> None:
    """An assertion that fails shows it."""
    with eager(app) as calls:
        assert repr(calls.submitted("export")) == (
            "<no submitted call of export; there were: no calls at all>"
        )
        app.tasks["export"].delay(1, fmt="pdf")

    assert repr(calls.submitted("export", 2, fmt="csv")) == (
        "<no submitted call of export of key '2' with fmt='csv'; "
        "there were: export(1, fmt='pdf'): key '1' ended>"
    )
    assert repr(calls.submitted("export")).startswith("[Call(task='export', id=")


def test_the_only_call_must_be_the_only_one(app: Celery) -> None:
    """Otherwise all that there were are told, one a line."""

    def message(calls: Any) -> str:
        with pytest.raises(AssertionError) as error:
            calls.one()
        return str(error.value)

    with eager(app) as calls:
        assert message(calls.submitted("export")) == (
            "expected one submitted call of export, found none; "
            "there were no calls at all"
        )
        app.tasks["export"].delay(1)
        app.tasks["whole"].delay("a")
        app.tasks["export"].delay(2)

    assert message(calls.submitted("export")) == (
        "expected one submitted call of export, found 2; all calls:\n"
        "  export(1): key '1' ended\n"
        "  whole('a'): ended\n"
        "  export(2): key '2' ended"
    )
