"""@bgtask: declare a task, or turn one that exists into a BgTask.

However it is written, a task is first made by Celery and then changed in place:
its class gets :class:`.BgTask` in front of the app's own ``Task``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast, overload

from celery import Celery, Task, _state, shared_task
from celery.local import PromiseProxy, Proxy

from .exceptions import ImproperlyConfigured
from .options import OPTIONS, check_names, check_options, without_first
from .task import BgTask
from .taskkey import TaskKey


__all__ = ["bgtask"]


@overload
def bgtask(declared: Callable[..., Any], /) -> Any: ...
@overload
def bgtask(**options: Any) -> Callable[[Any], Any]: ...
def bgtask(declared: Any = None, /, **options: Any) -> Any:
    """Limit how often a task runs at once, per task key.

    On a function it declares a task as :func:`celery.shared_task` does: bound if
    the first parameter is ``self``, or as *bind* says. On top of ``@app.task``
    or ``@shared_task`` it changes that task and keeps its options.

    Args:
        declared: The function or task, of ``@bgtask`` without options.
        task_key: The name of a parameter, or of a field of the only argument,
            or a callable of the bound arguments. Without it, the limit holds
            for the task as a whole.
        max_per_key: Slots per key; ``None`` or -1 for no limit; or a callable
            ``key -> int``.
        when_full: ``"reject"``: a call of a full key raises
            :exc:`.LimitReached`; ``"wait"``: it waits for a slot.
        max_waiting_per_key: Tasks that may wait per key.
        accept_timeout: Seconds in which a worker must start a call; then it ends
            with :exc:`.AcceptTimeout`.
        finish_timeout: Seconds in which it must have ended; then it ends with
            :exc:`.FinishTimeout`.
        when_lost: ``"fail"`` or ``"rerun"``: what becomes of a running task whose
            worker vanishes; by default ``"rerun"`` with ``acks_late``.
        max_lost: How often ``"rerun"`` runs it again.
        delivery: ``"queue"``: the broker picks the worker; ``"offer"``: the first
            worker that wants a call takes it.
        scope: Tasks of one scope share keys and limits; by default the task's
            name.
        max_payload_size: Bytes a message body may have as serialized.
        block_threshold: Bad tasks that a key may have; one more blocks it.
        block_interval: Seconds in which they are counted.
        block_for: Seconds for which the key is blocked.
        **options: Any option of a Celery task.

    What is not said is as the setting of the same name has it, with ``bgtask_`` in
    front. The shape is node-background-task's: ``taskKey`` and ``maxTasksPerKey``.

    Raises:
        ImproperlyConfigured: If an option is unknown or has a wrong value.

    Example::

        @bgtask(task_key="customer_id", max_per_key=5)
        def export(self, customer_id): ...
    """
    if declared is not None:
        return _declare(declared, {}, {})
    ours = {name: options.pop(name) for name in list(options) if name in OPTIONS}
    return lambda target: _declare(target, ours, options)


def _declare(target: Any, ours: dict[str, Any], celerys: dict[str, Any]) -> Any:
    if (
        type(target) is PromiseProxy
        or type(target) is Proxy
        or isinstance(target, Task)
    ):
        name = "@bgtask on a task"
        if celerys:
            raise ImproperlyConfigured(
                f"{name}: {', '.join(celerys)}: give Celery's options to "
                "Celery's decorator"
            )
        check_options(ours, name)
        return _convert_declared(target, ours)
    if not callable(target) or isinstance(target, type):
        raise ImproperlyConfigured(
            f"@bgtask takes a function or a Celery task, not {target!r}; "
            "a class derives from BgTask instead"
        )
    check_names(celerys, celerys.get("base") or Task, target.__qualname__)
    check_options(ours, target.__qualname__)
    signature = inspect.signature(target)
    bound = celerys.setdefault("bind", next(iter(signature.parameters), "") == "self")
    if bound:
        signature = without_first(signature)
    TaskKey(target.__qualname__, ours.get("task_key"), signature)
    task = shared_task(**celerys)(target)
    _convert_shared(task, ours)
    return task


def _convert_declared(target: Any, ours: dict[str, Any]) -> Any:
    """Convert what ``@app.task`` or ``@shared_task`` has returned."""
    if type(target) is PromiseProxy:  # made when it is first used
        target.__then__(lambda: _try_convert(target._get_current_object(), ours))  # noqa: SLF001
    elif type(target) is Proxy:
        _convert_shared(target, ours)
    else:
        _convert(target, ours)
    return target


def _convert_shared(proxy: Any, ours: dict[str, Any]) -> None:
    """Convert a shared task in each app, now or when the app is finalized.

    Celery's finalizers run in no order; what an app has pending is evaluated
    after them. All that is private here was read in Celery 5.5 to 5.7.
    """

    def convert(app: Celery, how: Callable[..., None] = _convert) -> None:
        with_app = app.tasks.get(name_in(app))
        if with_app is not None:
            how(with_app, ours)

    def name_in(app: Celery) -> str:
        closure = inspect.getclosurevars(proxy._Proxy__local).nonlocals  # noqa: SLF001
        fun = closure["fun"]
        return closure["name"] or app.gen_task_name(fun.__name__, fun.__module__)

    def later(app: Celery) -> None:
        pending: Any = PromiseProxy(convert, (app, _try_convert))  # type: ignore[arg-type]
        app._pending.append(pending)  # type: ignore[attr-defined]  # noqa: SLF001

    _state.connect_on_app_finalize(later)
    for app in _state._get_active_apps():  # type: ignore[attr-defined]  # noqa: SLF001
        if app.finalized:
            convert(app)


def _try_convert(task: Task[Any, Any], ours: dict[str, Any]) -> None:
    """Convert *task* while its app is finalized.

    An error would leave all that is still pending as it is: without a limit.
    So a task that is declared wrong raises later, when the app binds it (that
    is the end of ``app.finalize()``), and whenever it is used.
    """
    try:
        _convert(task, ours)
    except ImproperlyConfigured as exc:
        error = exc

        def refuse(*_args: Any, **_kwargs: Any) -> Any:
            raise error

        made_by = cast("type[Any]", type(task))
        members = {
            "apply_async": refuse,
            "bind": classmethod(refuse),
            "run": staticmethod(refuse),
        }
        refused: type[Any] = type(made_by.__name__, (made_by,), members)
        task.__class__ = refused


def _convert(task: Task[Any, Any], ours: dict[str, Any]) -> None:
    """Turn *task* into a BgTask in place, with the options *ours*.

    What ``task_annotations`` says is on its class already, and beats them. The
    task is changed last, so that a refused declaration leaves it as it was.
    """
    made_by = cast("type[Any]", type(task))
    class_name = made_by.__name__
    bases = (made_by,) if issubclass(made_by, BgTask) else (BgTask, made_by)
    annotated = {name: vars(made_by)[name] for name in OPTIONS if name in vars(made_by)}
    members = {"__module__": made_by.__module__, "__doc__": made_by.__doc__}
    changed: type[Any] = type(class_name, bases, {**members, **ours, **annotated})
    changed.bind(task.app)
    for name in annotated:
        delattr(made_by, name)
    task.__class__ = changed
