"""The three forms of @bgtask, on apps of all kinds."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, Task, _state, shared_task
from celery.exceptions import ImproperlyConfigured
from pydantic import BaseModel

import celery_bgtask
from celery_bgtask import BgTask, bgtask
from celery_bgtask.options import options_of
from celery_bgtask.running.acceptance import Gate
from celery_bgtask.worker.request import BgRequest
from celery_bgtask.worker.steps import AgentStep, check_declarations


def export(customer_id, fmt="csv"):
    """Export what a customer has ordered."""
    return f"{customer_id}.{fmt}"


def export_bound(self, customer_id, fmt="csv"):
    """Export, knowing the task."""
    return f"{self.name}:{customer_id}.{fmt}"


def assert_limited(task: Any, *, limit: Any = 3, key: str = "42") -> None:
    """*task* is a BgTask with these options, and works."""
    assert isinstance(task, BgTask)
    assert task.bgtask.key.of((42,), {}) == key
    assert task.bgtask.limit_of(key) == limit
    assert AgentStep in task.app.steps["worker"]
    request_class: Any = task.Request
    assert issubclass(request_class, BgRequest)


def test_a_function_becomes_a_shared_task(app: Celery) -> None:
    """Form 1: the name, the documentation and the options are those of a task."""
    app.set_current()

    task = bgtask(task_key="customer_id", max_per_key=3, acks_late=True)(export)

    assert_limited(task)
    assert task.name == f"{__name__}.export"
    assert task.__doc__ == export.__doc__
    assert task.acks_late
    assert task.app is app
    assert task(1, "pdf") == "1.pdf"


def test_no_parentheses_are_needed(app: Celery) -> None:
    """``@bgtask`` alone limits the task as a whole, by the settings."""
    app.set_current()

    task = bgtask(export)

    assert task.bgtask.key.of((42,), {}) == ""
    assert task.bgtask.limit_of("") == 5
    assert task(1) == "1.csv"


def test_a_function_with_self_is_bound(app: Celery) -> None:
    """If the first parameter is ``self``, it is the task."""
    app.set_current()

    task = bgtask(name="e", task_key="customer_id", max_per_key=3)(export_bound)

    assert_limited(task)
    assert task(1) == "e:1.csv"


@pytest.mark.parametrize(("bind", "result"), [(True, "e"), (False, "x")])
def test_bind_goes_before_the_name_of_the_first_parameter(
    bind: bool, result: str, app: Celery
) -> None:
    """``bind=`` says what it says in Celery."""
    app.set_current()

    @bgtask(name="e", bind=bind)
    def named(self):
        return getattr(self, "name", self)

    assert (named() if bind else named("x")) == result


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("bind", [True, False])
def test_a_task_changes_in_place(bind: bool, lazy: bool, app: Celery) -> None:
    """Form 2: the registered task gets the limit and keeps all it had."""
    function = export_bound if bind else export
    celerys: dict[str, Any] = {"bind": bind, "acks_late": True, "max_retries": 7}
    made = app.task(name="e", lazy=lazy, **celerys)(function)

    task = bgtask(task_key="customer_id", max_per_key=3)(made)

    assert task is made
    assert_limited(app.tasks["e"])
    assert task.name == "e"
    assert task.acks_late
    assert task.max_retries == 7
    assert task(1) == ("e:1.csv" if bind else "1.csv")


def test_a_lazy_task_stays_lazy(app: Celery) -> None:
    """Decorating does not finalize an app that is still being set up."""
    bgtask(task_key="customer_id")(app.task(name="e")(export))

    assert not app.finalized  # type: ignore[attr-defined]  # not in the stub

    app.conf.bgtask_max_per_key = 9
    assert options_of(app.tasks["e"]).limit_of("k") == 9


def test_a_task_that_was_used_can_be_changed(app: Celery) -> None:
    """It does not matter whether a lazy task has been made yet."""
    made = app.task(name="e")(export)
    assert made.name == "e"

    assert_limited(bgtask(task_key="customer_id", max_per_key=3)(made))


@pytest.mark.parametrize("finalized", [True, False])
def test_a_shared_task_changes_in_place(finalized: bool, app: Celery) -> None:
    """Form 2 on top of ``@shared_task``, before or after the app is finalized."""
    app.set_current()
    if finalized:
        app.finalize()
    made = shared_task(name="e", bind=True)(export_bound)

    task = bgtask(task_key="customer_id", max_per_key=3)(made)

    assert task is made
    assert_limited(app.tasks["e"])
    assert task(1) == "e:1.csv"


@pytest.mark.parametrize("early", [True, False])
def test_a_shared_task_is_limited_in_every_app(
    early: bool, make_app: Callable[..., Celery]
) -> None:
    """Apps that exist already and apps that are made later: each has its own copy."""
    if early:
        apps = [make_app("one"), make_app("two")]
        apps[0].finalize()
    bgtask(name="e", task_key="customer_id", max_per_key=3)(export)
    if not early:
        apps = [make_app("one"), make_app("two")]

    tasks = [one.tasks["e"] for one in apps]

    assert tasks[0] is not tasks[1]
    for one, task in zip(apps, tasks, strict=True):
        assert task.app is one
        assert_limited(task)


def test_a_shared_task_takes_the_settings_of_each_app(
    make_app: Callable[..., Celery],
) -> None:
    """What the decorator leaves open, each app decides for itself."""
    bgtask(name="e")(export)

    limits = [
        options_of(make_app(bgtask_max_per_key=limit).tasks["e"]).limit_of("")
        for limit in (1, 2)
    ]

    assert limits == [1, 2]


# Shared tasks of other tests may have one short name.
@pytest.mark.filterwarnings("ignore:Task name 'my")
def test_a_shared_task_without_a_name_gets_one_from_its_app(app: Celery) -> None:
    """An app with a naming of its own is asked, as by Celery."""

    class Naming(Celery):
        def gen_task_name(self, name, module):
            return f"my.{name}"

    own = Naming("own", broker="memory://", set_as_current=False)
    bgtask(task_key="customer_id", max_per_key=3)(export)

    assert_limited(own.tasks["my.export"])


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("bind", [True, False])
def test_a_base_class_does_the_same(bind: bool, lazy: bool, app: Celery) -> None:
    """Form 3: ``base=BgTask`` takes the options beside Celery's."""
    function = export_bound if bind else export

    task = app.task(
        base=BgTask,
        name="e",
        bind=bind,
        lazy=lazy,
        task_key="customer_id",
        max_per_key=3,
        acks_late=True,
    )(function)

    assert_limited(task)
    assert task.acks_late
    assert task(1) == ("e:1.csv" if bind else "1.csv")


def test_a_base_class_may_be_derived_and_carry_options(app: Celery) -> None:
    """Options of a base class hold for its tasks, unless they say otherwise."""

    class Limited(BgTask):
        abstract = True
        task_key = "customer_id"
        max_per_key = 3
        when_full = "wait"

    plain = app.task(base=Limited, name="a")(export)
    other = app.task(base=Limited, name="b", max_per_key=1)(export)

    assert_limited(plain)
    assert_limited(other, limit=1)
    assert other.bgtask.wait
    assert Limited.bgtask_declared["max_per_key"] == 3


def test_a_wrong_option_of_a_class_is_an_error_of_the_class() -> None:
    """The class statement raises, with its name."""
    with pytest.raises(celery_bgtask.ImproperlyConfigured, match="Wrong: max_per_key"):

        class Wrong(BgTask):
            max_per_key = 0


@pytest.mark.parametrize("instance", [True, False])
@pytest.mark.parametrize("name", ["export", None])
def test_a_class_may_be_registered(name: Any, instance: bool, app: Celery) -> None:
    """A class-based task, with a name or with one that Celery makes."""
    members = {"name": name} if name else {}

    def run(self, customer_id, fmt="csv"):
        return f"{customer_id}.{fmt}"

    cls = type(
        "Export",
        (BgTask,),
        {"run": run, "task_key": "customer_id", "max_per_key": 3, **members},
    )

    task = app.register_task(cls() if instance else cls)

    assert_limited(app.tasks[task.name])
    assert task.bgtask.scope == task.name
    assert task(1) == "1.csv"


def test_a_callable_of_a_class_is_no_method(app: Celery) -> None:
    """Functions in a class body are options like others; so are static methods."""

    class Export(BgTask):
        name = "export"

        def task_key(arguments: Any):  # noqa: N805
            return arguments["customer_id"]

        @staticmethod
        def max_per_key(key):
            return int(key)

        def run(self, customer_id):
            return customer_id

    task = app.register_task(Export())

    assert task.bgtask.key.of((3,), {}) == "3"
    assert task.bgtask.limit_of("3") == 3


def test_the_class_of_the_app_is_kept(make_app: Callable[..., Celery]) -> None:
    """Forms 1 and 2 mix BgTask into the app's own Task."""

    class AppTask(Task):
        abstract = True

        def delay_on_commit(self, *args):
            return args

    app = make_app(task_cls=AppTask)
    made = bgtask(max_per_key=1)(app.task(name="a")(export))
    bgtask(name="b", max_per_key=1)(export)

    tasks: list[Any] = [made, app.tasks["b"]]
    for task in tasks:
        assert isinstance(task._get_current_object() if task is made else task, AppTask)
        assert task.delay_on_commit(1) == (1,)
        assert isinstance(task, BgTask)


def test_decorating_twice_is_decorating_once(app: Celery) -> None:
    """The last word counts; there is one gate and one agent."""
    task = app.task(name="e", lazy=False)(export)

    bgtask(task_key="customer_id", max_per_key=1)(task)
    bgtask(task_key="customer_id", max_per_key=3)(task)

    assert_limited(task)
    assert len(app.steps["worker"]) == 1


def test_a_limited_task_may_get_options_on_top(app: Celery) -> None:
    """Form 2 on a task of form 3: what it does not mention stays."""
    task = app.task(base=BgTask, name="e", task_key="customer_id", lazy=False)(export)

    bgtask(max_per_key=3)(task)

    assert_limited(task)


@pytest.mark.parametrize("target", [5, None, "name", b"x"], ids=repr)
def test_what_is_no_function_is_refused(target: Any) -> None:
    """The error says what the decorator takes."""
    with pytest.raises(ImproperlyConfigured, match="takes a function or a Celery task"):
        bgtask(max_per_key=1)(target)


def test_a_class_is_told_to_derive() -> None:
    """A class is no task yet."""
    with pytest.raises(ImproperlyConfigured, match="a class derives from BgTask"):
        bgtask(max_per_key=1)(type("Export", (), {}))


def test_celerys_options_go_to_celerys_decorator(app: Celery) -> None:
    """On top of a task only options of this package make sense."""
    task = app.task(name="e", lazy=False)(export)

    with pytest.raises(
        ImproperlyConfigured, match="acks_late: give Celery's options to Celery's"
    ):
        bgtask(acks_late=True)(task)

    assert not isinstance(task, BgTask)


def test_a_refused_declaration_leaves_the_task_as_it_was(app: Celery) -> None:
    """A wrong option on top of a task changes nothing of it."""
    task = app.task(name="e", lazy=False)(export)

    for wrong in ({"max_per_key": 0}, {"task_key": "custmer_id"}):
        with pytest.raises(ImproperlyConfigured):
            bgtask(**wrong)(task)

    assert not isinstance(task, BgTask)
    assert task(1) == "1.csv"


@pytest.mark.parametrize("form", [1, 2, 3])
def test_annotations_hold(form: int, make_app: Callable[..., Celery]) -> None:
    """``task_annotations`` set options of Celery and of this package."""
    app = make_app(
        task_annotations={"e": {"rate_limit": "9/s", "max_per_key": 2}},
    )
    app.set_current()
    task = {
        1: lambda: bgtask(name="e", task_key="customer_id", max_per_key=3)(export),
        2: lambda: bgtask(task_key="customer_id", max_per_key=3)(
            app.task(name="e")(export)
        ),
        3: lambda: app.task(
            base=BgTask, name="e", task_key="customer_id", max_per_key=3
        )(export),
    }[form]()

    assert task.rate_limit == "9/s"
    assert_limited(task, limit=2)


@pytest.mark.parametrize("form", [1, 2, 3])
def test_autoretry_stays(form: int, app: Celery) -> None:
    """``autoretry_for`` wraps the body of a limited task as of any other."""
    calls = []

    def flaky(customer_id):
        calls.append(customer_id)
        if len(calls) < 3:
            raise OSError
        return "done"

    celerys: dict[str, Any] = {
        "name": "e",
        "autoretry_for": (OSError,),
        "retry_backoff": False,
    }
    celerys |= {"default_retry_delay": 0}
    ours: dict[str, Any] = {"task_key": "customer_id", "max_per_key": 3}
    app.set_current()
    task = {
        1: lambda: bgtask(**celerys, **ours)(flaky),
        2: lambda: bgtask(**ours)(app.task(**celerys)(flaky)),
        3: lambda: app.task(base=BgTask, **celerys, **ours)(flaky),
    }[form]()

    result = task.apply((42,))

    assert result.get() == "done"
    assert calls == [42, 42, 42]
    assert_limited(task)


class Order(BaseModel):
    """An argument with fields."""

    customer_id: int


@pytest.mark.parametrize("form", [1, 2, 3])
def test_pydantic_models_are_validated_and_carry_the_key(
    form: int, app: Celery
) -> None:
    """``pydantic=True`` works, and the key may be a field of the model."""

    def ship(order: Order) -> int:
        return order.customer_id

    # Types, not their text, which Celery understands since 5.6 only.
    ship.__annotations__ = {"order": Order, "return": int}
    ours: dict[str, Any] = {"task_key": "customer_id", "max_per_key": 3}
    app.set_current()
    task = {
        1: lambda: bgtask(name="e", pydantic=True, **ours)(ship),
        2: lambda: bgtask(**ours)(app.task(name="e", pydantic=True)(ship)),
        3: lambda: app.task(base=BgTask, name="e", pydantic=True, **ours)(ship),
    }[form]()

    assert task.bgtask.key.of(({"customer_id": 42},), {}) == "42"
    assert task.bgtask.key.of((), {"order": {"customer_id": 42}}) == "42"
    assert task.apply(({"customer_id": 42},)).get() == 42


@pytest.mark.parametrize("typing", [True, False])
def test_the_check_of_arguments_is_celerys(typing: bool, app: Celery) -> None:
    """``typing=`` says whether a wrong call is an error at once, as for any task."""
    task = app.task(base=BgTask, name="e", typing=typing)(export)

    assert task.typing is typing
    if typing:
        with pytest.raises(TypeError):
            task.apply_async(())


def test_the_gate_stands_around_every_tracer(app: Celery) -> None:
    """Whoever sets the tracer of a task, Celery or a pool, sets it behind the gate."""
    task = app.task(base=BgTask, name="e", lazy=False)(export)
    assert task.__trace__ is None

    def tracer(*args):
        return "traced"

    task.__trace__ = tracer

    assert isinstance(task.__trace__, Gate)
    assert task.__trace__.tracer is tracer


@pytest.mark.parametrize("bind", [True, False])
def test_a_limited_task_pickles_by_name(bind: bool, app: Celery) -> None:
    """A task comes out of a pickle as the registered one."""
    app.set_current()
    task = app.task(base=BgTask, name="e", bind=bind, lazy=False)(
        export_bound if bind else export
    )

    assert pickle.loads(pickle.dumps(task)).name == "e"  # noqa: S301


def test_signatures_know_the_task(app: Celery) -> None:
    """Canvas is made as from any task."""
    task = app.task(base=BgTask, name="e", lazy=False)(export)

    signature: Any = task.si(1) | task.s()

    assert [step["task"] for step in signature.tasks] == ["e", "e"]


def test_an_app_that_is_gone_is_gone() -> None:
    """What is kept for an app does not keep the app."""
    app = Celery("gone", broker="memory://", set_as_current=False)
    app.task(base=BgTask, name="e", lazy=False)(export)
    kept = celery_bgtask.extension._extensions
    before = len(kept)

    app.close()
    del app
    gc.collect()

    assert len(kept) < before


def test_a_worker_refuses_a_task_that_hides_a_limited_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Celery's decorator on top of ours would make a task without a limit."""
    app = Celery("upside-down", set_as_current=False)
    current: Any = _state
    monkeypatch.setattr(current._tls, "current_app", app, raising=False)

    @app.task(name="order")
    @bgtask(name="limited", max_per_key=1)
    def order() -> None:
        """Do nothing."""

    with pytest.raises(ImproperlyConfigured, match="order: put @bgtask above"):
        check_declarations(app)
