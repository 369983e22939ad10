"""The options of @bgtask: checked when a task is declared, kept off its class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from celery_bgtask import BgTask, bgtask
from celery_bgtask.options import options_of


def export(customer_id=0, fmt="csv"):
    """Be a task's body."""


def declare_by_itself(app: Celery, **options: Any) -> Any:
    """Form 1: ``@bgtask(...)``."""
    app.set_current()
    task = bgtask(name="t", **options)(export)
    app.finalize()
    return task._get_current_object()


def declare_on_top(app: Celery, **options: Any) -> Any:
    """Form 2: ``@bgtask(...)`` on top of ``@app.task``."""
    made = app.task(name="t", lazy=False)(export)
    return bgtask(**options)(made)


def declare_by_base(app: Celery, **options: Any) -> Any:
    """Form 3: ``@app.task(base=BgTask, ...)``."""
    return app.task(base=BgTask, name="t", lazy=False, **options)(export)


FORMS = pytest.mark.parametrize(
    "declare", [declare_by_itself, declare_on_top, declare_by_base]
)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_per_kee", "max_per_key"),
        ("taskkey", "task_key"),
        ("when_ful", "when_full"),
        ("acks_lat", "acks_late"),
        ("rate_limits", "rate_limit"),
    ],
)
def test_an_unknown_option_is_refused_with_what_is_near(name: str, near: str) -> None:
    """A typo is an error at the decorator, not an option that does nothing."""
    with pytest.raises(ImproperlyConfigured) as caught:
        bgtask(**{name: 1})(export)

    assert f"unknown option {name}; did you mean {near}?" in str(caught.value)


def test_an_unknown_option_like_no_other_is_refused() -> None:
    """Without a guess the error still names the option."""
    with pytest.raises(
        ImproperlyConfigured, match=r"unknown option zzz; a base= class may define it$"
    ):
        bgtask(zzz=1)(export)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_per_key", 0),
        ("max_per_key", -2),
        ("max_per_key", True),
        ("max_per_key", False),
        ("max_per_key", "5"),
        ("max_per_key", 2.0),
        ("when_full", "wait!"),
        ("when_full", None),
        ("when_full", {}),
        ("max_waiting_per_key", 0),
        ("max_waiting_per_key", None),
        ("max_payload_size", -1),
        ("task_key", ""),
        ("task_key", 5),
        ("task_key", "custmer_id"),
        ("scope", ""),
        ("scope", 5),
    ],
)
@FORMS
def test_a_wrong_value_is_refused(
    declare: Callable[..., Any], name: str, value: Any, app: Celery
) -> None:
    """Each form says what is wrong with which option, when the task is made."""
    values = {"task_key": "customer_id", name: value}

    with pytest.raises(ImproperlyConfigured, match=name):
        declare(app, **values)


@FORMS
def test_options_go_before_settings(
    declare: Callable[..., Any], make_app: Callable[..., Celery]
) -> None:
    """What a task does not say, the settings say."""
    app = make_app(
        bgtask_max_per_key=7, bgtask_when_full="wait", bgtask_max_waiting_per_key=9
    )

    options = declare(app, task_key="customer_id", max_waiting_per_key=3).bgtask

    assert options.max_per_key == 7
    assert options.wait
    assert options.max_waiting_per_key == 3
    assert options.max_payload_size == 1024 * 1024
    assert options.scope == "t"


@FORMS
def test_none_is_an_option_too(
    declare: Callable[..., Any], make_app: Callable[..., Celery]
) -> None:
    """max_per_key=None means no limit, also where the settings have one."""
    app = make_app(bgtask_max_per_key=7)

    options = declare(app, max_per_key=None).bgtask

    assert options.limit_of("any") == -1


@FORMS
def test_a_callable_option_never_becomes_a_method(
    declare: Callable[..., Any], app: Celery
) -> None:
    """A function is called with what it was promised, never with the task before it."""

    def key(arguments):
        return arguments["customer_id"]

    def limit(key):
        return len(key)

    task = declare(app, task_key=key, max_per_key=limit)

    assert task.bgtask.key.of((42,), {}) == "42"
    assert task.bgtask.limit_of("abc") == 3
    assert not hasattr(task, "task_key")
    assert not hasattr(task, "max_per_key")


@pytest.mark.parametrize(
    ("returned", "limit"), [(1, 1), (-1, -1), (None, -1), (10**6, 10**6)]
)
def test_a_limit_per_key_may_be_computed(
    returned: Any, limit: int, app: Celery
) -> None:
    """The callable gets the key and says how many slots it has."""
    task = declare_by_base(app, max_per_key=lambda key: returned)

    assert task.bgtask.limit_of("k") == limit


@pytest.mark.parametrize("returned", [0, -2, True, "5", 1.5, len])
def test_a_computed_limit_is_checked(returned: Any, app: Celery) -> None:
    """The error says which task and key, and what was returned."""
    task = declare_by_base(app, max_per_key=lambda key: returned)

    with pytest.raises(ImproperlyConfigured, match=r"t: max_per_key\('k'\) returned"):
        task.bgtask.limit_of("k")


def test_the_sense_of_a_setting_that_is_wrong_shows_at_declaration(
    make_app: Callable[..., Celery],
) -> None:
    """A wrong setting is told as the setting, not as an option of the task."""
    with pytest.raises(ImproperlyConfigured, match="bgtask_max_per_key must be"):
        declare_by_base(make_app(bgtask_max_per_key=0))


@pytest.mark.parametrize(
    "limits",
    [(3, 5), (3, None), (3, lambda key: 3)],
    ids=["number", "none", "callable"],
)
def test_one_scope_has_one_limit(limits: Any, app: Celery) -> None:
    """Tasks that share keys and disagree on the slots are an error with both names."""
    app.task(base=BgTask, name="a", scope="s", max_per_key=limits[0], lazy=False)(
        export
    )

    with pytest.raises(ImproperlyConfigured) as caught:
        app.task(base=BgTask, name="b", scope="s", max_per_key=limits[1], lazy=False)(
            export
        )

    assert "in scope 's', a has max_per_key=3 and b has max_per_key=" in str(
        caught.value
    )


def test_tasks_of_one_scope_may_agree(app: Celery) -> None:
    """The same number, or the very same callable, is one limit."""

    def limit(key):
        return 3

    for number in range(3):
        app.task(
            base=BgTask, name=f"t{number}", scope="s", max_per_key=limit, lazy=False
        )(export)

    assert {options_of(app.tasks[f"t{number}"]).scope for number in range(3)} == {"s"}


def test_a_task_whose_name_is_the_scope_of_another_shares_its_limit(
    app: Celery,
) -> None:
    """By default the scope is the task's name, so another task may join it by name."""
    app.task(base=BgTask, name="a", max_per_key=2, lazy=False)(export)

    with pytest.raises(ImproperlyConfigured, match="in scope 'a'"):
        app.task(base=BgTask, name="b", scope="a", max_per_key=3, lazy=False)(export)


def test_scopes_of_two_apps_are_two_scopes(make_app: Callable[..., Celery]) -> None:
    """What one app declares does not bind another one."""
    for name, limit in (("one", 1), ("two", 2)):
        make_app(name).task(base=BgTask, name="a", max_per_key=limit, lazy=False)(
            export
        )


def test_a_limit_that_cannot_be_computed_says_so(app: Celery) -> None:
    """A callable's own error is not mistaken for one of the broker."""
    task = declare_by_base(app, max_per_key=lambda key: {}[key])

    with pytest.raises(ImproperlyConfigured, match=r"callable raised KeyError\('k'\)"):
        task.bgtask.limit_of("k")


@pytest.mark.parametrize("name", ["lease", "bgtask_lease"])
def test_a_setting_is_no_option(name: str) -> None:
    """Who takes one for the other is told where it belongs."""
    with pytest.raises(ImproperlyConfigured, match=r"setting: app\.conf\.bgtask_lease"):
        bgtask(**{name: 5})(export)
