"""Each task twice: as Celery has it, ``plain.*``, and as a bgtask, ``limited.*``.

The limited one may run once at a time, the sharpest limit there is, and waits: it
must do all the same what the plain one does.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, chain, chord, current_app, group, shared_task, signals
from celery._state import connect_on_app_finalize
from celery.exceptions import Ignore, Reject, Retry
from celery.utils.log import get_task_logger
from celery.worker.request import Request
from kombu.exceptions import OperationalError
from pydantic import BaseModel

from celery_bgtask import BgTask, bgtask
from tests.smoke.tasks import client_of, record


#: What :class:`WorkerSpec` calls this module.
MODULE = "tests.compat.tasks"

KINDS = ("plain", "limited")

logger = get_task_logger(__name__)


def twice(
    *, name: str = "", ours: dict[str, Any] | None = None, **options: Any
) -> Callable[[Any], Any]:
    """Declare a function as a plain task and, with the options *ours*, as a bgtask."""

    def declare(function: Any) -> Any:
        called = name or function.__name__
        limit = {"max_per_key": 1, "when_full": "wait", **(ours or {})}
        options.setdefault("bind", function.__code__.co_varnames[:1] == ("self",))
        shared_task(name=f"plain.{called}", **options)(function)
        bgtask(name=f"limited.{called}", **limit, **options)(function)
        return function

    return declare


def sibling(task: Task, name: str) -> Any:
    """Another task of the same kind."""
    return task.app.tasks[f"{task.name.partition('.')[0]}.{name}"]


def note(task: Task, name: str, value: Any) -> None:
    """Append a fact to a list that the tests read."""
    client_of(task).rpush(f"ledger:notes:{name}", str(value))


# Values


@twice()
def add(x: int, y: int, z: int = 0) -> int:
    """Add up."""
    return x + y + z


@twice()
def total(numbers: list[int]) -> int:
    """Add up a list."""
    return sum(numbers)


@twice()
def echo(value: Any = None) -> Any:
    """Return what it gets."""
    return value


@twice()
def slow(self: Task, value: Any = None, seconds: float = 0.1) -> Any:
    """Take its time; the ledger knows whether two run at once."""
    with record(self, self.name):
        time.sleep(seconds)
    return value


@twice()
def held(
    self: Task, value: Any = None, until: str = "", tell: tuple[str, ...] = ()
) -> Any:
    """Run until the test says so; *tell* properties of the message in the end."""
    with record(self, self.name):
        if until:
            client_of(self).blpop([f"ledger:go:{until}"], timeout=40)
    properties: Any = self.request.properties
    return {name: properties.get(name) for name in tell} or value


@twice()
def fail(*_: Any) -> None:
    """Raise."""
    raise ValueError("as asked for")


@twice()
def fail_once(self: Task, *_: Any) -> str:
    """Fail at its first attempt."""
    if not self.request.retries:
        raise self.retry(countdown=0, exc=ValueError("as asked for"))
    return "done"


@twice()
def remember(self: Task, *values: Any, name: str) -> None:
    """Note what it is called with: a callback."""
    note(self, name, list(values))


@shared_task
def errback(request: Any, exc: BaseException, traceback: Any, name: str) -> None:
    """Note whose error it is told; called in the worker, not sent."""
    del traceback
    told = f"{request.task.partition('.')[2]} {type(exc).__name__}"
    note(current_app.tasks[errback.name], name, told)


@twice()
def sent_errback(self: Task, task_id: str, name: str) -> None:
    """Note that it was told; sent with the id of the task that failed."""
    note(self, name, task_id)


# How messages travel


def _retried(self: Task, value: Any) -> list[Any]:
    """Return what its first retry gets."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    return [value, self.request.retries]


for _serializer in ("json", "yaml", "msgpack", "pickle"):
    twice(name=f"retried_{_serializer}", serializer=_serializer)(_retried)


@twice()
def where(self: Task, *_: Any) -> str:
    """Tell the app."""
    return str(self.app.main)


@bgtask(name="limited.where_waiting", max_per_key=1, when_full="wait")
def where_waiting(self: Task) -> str:
    """Tell the app, one at a time."""
    return str(self.app.main)


@bgtask(name="limited.undecided")
def undecided(self: Task, until: str) -> None:
    """Leave all options to the app's settings; run until the test says so."""
    client_of(self).blpop([f"ledger:go:{until}"], timeout=40)


# What a task knows of its call

#: What of a request must be equal for both kinds; ids are compared by their roles.
FACTS = (
    "args", "kwargs", "retries", "is_eager", "called_directly", "shadow", "eta",
    "timelimit", "ignore_result", "replaced_task_nesting", "stamps", "stamped_headers",
    "argsrepr", "kwargsrepr", "group_index", "errbacks", "callbacks", "headers",
    "properties", "delivery_info", "lang", "content_type",
)  # fmt: skip


def facts_of(task: Task) -> dict[str, Any]:
    """What the request of *task* says, without what is different for each call."""
    request: Any = task.request
    facts = {name: getattr(request, name, None) for name in FACTS}
    headers = facts["headers"] or {}
    facts["headers"] = sorted(name for name in headers if name != "bgtask")
    properties = facts["properties"] or {}
    facts["properties"] = {
        # A retry of a plain task has its header "origin" among them as well.
        "named": sorted(properties.keys() - {"origin"}),
        "correlation_id": properties.get("correlation_id") == request.id,
        "priority": properties.get("priority"),
    }
    facts["is_root"] = request.root_id == request.id
    facts["has_parent"] = request.parent_id is not None
    facts["group"] = request.group is not None
    facts["has_chord"] = request.chord is not None
    facts["chain"] = [sig["task"].partition(".")[2] for sig in request.chain or ()]
    facts["expires"] = request.expires is not None
    return facts


@twice()
def facts(self: Task, *_args: Any, **_kwargs: Any) -> dict[str, Any]:
    """Tell what its request says."""
    return facts_of(self)


@twice(ignore_result=True)
def facts_noted(self: Task, name: str) -> None:
    """Note what its request says: its result is not stored."""
    note(self, name, repr(facts_of(self)))


@twice()
def facts_stored(self: Task, name: str) -> str:
    """Note what its request says, and return something."""
    note(self, name, repr(facts_of(self)))
    return "stored"


@twice()
def ids(self: Task, *_: Any) -> list[Any]:
    """Tell its family."""
    request = self.request
    return [request.id, request.parent_id, request.root_id, request.group]


# Replacing and submitting


@twice()
def replaced_by_task(self: Task, x: int, y: int) -> Any:
    """Become another task."""
    return self.replace(sibling(self, "add").s(x, y))


@twice()
def replaced_by_chain(self: Task, x: int, y: int) -> Any:
    """Become a chain."""
    plus = sibling(self, "add")
    return self.replace(chain(plus.s(x, y), plus.s(10)))


@twice()
def replaced_by_group(self: Task, numbers: list[int]) -> Any:
    """Become a group."""
    plus = sibling(self, "add")
    return self.replace(group(plus.s(number, 1) for number in numbers))


@twice()
def replaced_by_chord(self: Task, numbers: list[int]) -> Any:
    """Become a chord."""
    plus = sibling(self, "add")
    members = [plus.s(number, 1) for number in numbers]
    return self.replace(chord(members, sibling(self, "total").s()))


@twice()
def replaced_by_failure(self: Task) -> Any:
    """Become a task that fails."""
    return self.replace(sibling(self, "fail").si())


@twice()
def countdown_by_replacing(self: Task, left: int) -> Any:
    """Become itself, again and again."""
    if left:
        return self.replace(sibling(self, "countdown_by_replacing").s(left - 1))
    return self.request.replaced_task_nesting


@twice()
def adds_to_chord(self: Task, x: int) -> int:
    """Add a member to the chord that it is a member of."""
    self.add_to_chord(sibling(self, "add").s(x, 100))
    return x


@twice()
def submits_canvas(self: Task, name: str) -> str:
    """Submit a chord from a task, and do not wait for it."""
    plus = sibling(self, "add")
    body = chain(sibling(self, "total").s(), sibling(self, "remember").s(name=name))
    chord([plus.s(1, 1), plus.s(2, 2)], body).apply_async()
    return "submitted"


# Ends that are none of the task's doing


@twice(ours={"when_full": "reject"})
def strict(self: Task, *_: Any, until: str = "") -> str:
    """Refuse what is too much; hold the slot until the test says so."""
    if until:
        client_of(self).blpop([f"ledger:go:{until}"], timeout=40)
    return "done"


@bgtask(name="limited.prompt", max_per_key=1, when_full="wait", accept_timeout=1.0)
def prompt(seconds: float = 0.0) -> str:
    """Must be started within a second."""
    time.sleep(seconds)
    return "done"


@bgtask(name="limited.timely", max_per_key=1, when_full="wait", finish_timeout=1.0)
def timely(seconds: float = 0.0) -> str:
    """Must have ended within a second."""
    time.sleep(seconds)
    return "done"


# Retries


@twice(max_retries=3)
def retry(self: Task, times: int, countdown: float = 0.0) -> int:
    """Retry so many times and tell how many it were."""
    note(self, str(self.request.root_id), self.request.retries)
    if self.request.retries < times:
        raise self.retry(countdown=countdown)
    return int(self.request.retries)


@twice(max_retries=1)
def retry_with_cause(self: Task) -> None:
    """Retry until it fails with its own error."""
    note(self, str(self.request.root_id), self.request.retries)
    raise self.retry(exc=KeyError("the cause"), countdown=0)


@twice()
def retry_elsewise(self: Task, x: int, factor: int = 1) -> int:
    """Retry with other arguments."""
    if not self.request.retries:
        raise self.retry(args=(x + 1,), kwargs={"factor": 10}, countdown=0)
    return x * factor


@twice(ours={"task_key": "key"})
def retry_as(self: Task, key: str, other: str) -> str:
    """Retry under another key."""
    if not self.request.retries:
        raise self.retry(args=(other, other), countdown=0)
    return key


@twice()
def retry_and_go_on(self: Task) -> str:
    """Ask for a retry and go on."""
    note(self, str(self.request.root_id), self.request.retries)
    if not self.request.retries:
        self.retry(countdown=0, throw=False)
        return "first"
    return "second"


@twice()
def retry_by_hand(self: Task) -> None:
    """Raise Celery's exception without asking for a retry."""
    raise Retry("as asked for")


@twice(ours={"when_full": "reject"})
def strict_retry(
    self: Task, countdown: float, *, until: str = "", retries: int = 1
) -> int:
    """Retry later; at its last attempt, hold the slot until the test says so."""
    with record(self, self.name):
        if self.request.retries < retries:
            raise self.retry(countdown=countdown)
        if until:
            client_of(self).blpop([f"ledger:go:{until}"], timeout=40)
    return int(self.request.retries)


@twice()
def retried_facts(self: Task, *_args: Any, **_kwargs: Any) -> dict[str, Any]:
    """Tell what the request of its first retry says."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    return facts_of(self)


def _fail_and_note(self: Task, error: str, *, until: int = 9) -> int:
    """Note the attempt and when it was due, and fail."""
    note(self, str(self.request.root_id), f"{self.request.retries} {time.time()}")
    if self.request.retries < until:
        raise ERRORS[error](error)
    return int(self.request.retries)


ERRORS = {
    "value": ValueError,
    "key": KeyError,
    "os": OSError,
    "operational": OperationalError,
}


def _autoretry(name: str, **options: Any) -> None:
    twice(name=name, **options)(_fail_and_note)


_autoretry(
    "autoretry",
    autoretry_for=(ValueError, OperationalError),
    retry_kwargs={"max_retries": 2, "countdown": 0},
)
_autoretry(
    "autoretry_but",
    autoretry_for=(Exception,),
    dont_autoretry_for=(KeyError,),
    retry_kwargs={"max_retries": 2, "countdown": 0},
)
_autoretry(
    "backoff",
    autoretry_for=(ValueError,),
    retry_backoff=True,
    retry_backoff_max=2,
    retry_jitter=False,
    max_retries=2,
)
_autoretry(
    "jitter",
    autoretry_for=(ValueError,),
    retry_backoff=2,
    retry_jitter=True,
    max_retries=1,
)
_autoretry(
    "throwing",
    autoretry_for=(OSError,),
    retry_kwargs={"max_retries": 1, "countdown": 0},
    throws=(ValueError,),
)


# Endings


def _end(self: Task, how: str, *, seconds: float = 0.0, limit: int = 1) -> Any:
    if how == "retry" and self.request.retries < limit:
        raise self.retry(countdown=0)
    if how == "fail":
        raise ValueError("as asked for")
    if how == "ignore":
        raise Ignore
    if how == "reject":
        raise Reject("as asked for", requeue=False)
    if how == "kill" and not (self.request.delivery_info or {}).get("redelivered"):
        client_of(self).incr(f"ledger:killed:{self.request.id}")
        time.sleep(seconds)  # so that others have got processes of their own
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(seconds)
    return how


@twice(max_retries=1)
def end(self: Task, how: str, **facts: Any) -> Any:
    """End in the way that is asked for."""
    return _end(self, how, **facts)


@twice(acks_late=True, reject_on_worker_lost=True)
def survive(self: Task, how: str, **facts: Any) -> Any:
    """End in the way that is asked for; delivered again if its process dies."""
    return _end(self, how, **facts)


@twice(acks_late=True)
def late(self: Task, how: str, **facts: Any) -> Any:
    """End in the way that is asked for; acknowledged then."""
    return _end(self, how, **facts)


@twice(track_started=True)
def tracked(self: Task, until: str) -> str:
    """Show that it has started; run until the test says so."""
    client_of(self).blpop([f"ledger:go:{until}"], timeout=40)
    return str(self.AsyncResult(str(self.request.id)).state)


@twice(time_limit=1)
def limited_hard(seconds: float) -> None:
    """Be killed after a second."""
    time.sleep(seconds)


@twice(soft_time_limit=1, time_limit=30)
def limited_soft(seconds: float) -> None:
    """Be interrupted after a second."""
    time.sleep(seconds)


@twice(rate_limit="2/s")
def rated(self: Task, name: str) -> None:
    """Note when it ran; no more than two in a second."""
    note(self, name, time.time())


@twice(ignore_result=True, store_errors_even_if_ignored=True)
def only_errors(how: str) -> str:
    """Store nothing but an error."""
    if how == "fail":
        raise ValueError("as asked for")
    return how


# How a task is made


class Base(Task):
    """An app's own base class."""

    abstract = True
    shared_fact = "of the base"

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Note it."""
        note(self, task_id, "before_start")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Note it."""
        note(self, task_id, "on_success")
        super().on_success(retval, task_id, args, kwargs)


class Derived(Base):
    """A base class of a base class, which is called in its own way."""

    abstract = True
    shared_fact = "of the derived"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Add something to what the body returns."""
        return [self.shared_fact, super().__call__(*args, **kwargs)]


@twice(base=Derived)
def derived(self: Task, value: Any) -> Any:
    """Return what it gets, and what its class says."""
    return [value, self.shared_fact]  # type: ignore[attr-defined]


class ClassBased(Base):
    """A task that is a class."""

    name = "plain.class_based"
    autoretry_for = (ValueError,)
    retry_kwargs = {"max_retries": 1, "countdown": 0}  # noqa: RUF012 - as in Celery

    def __init__(self) -> None:
        self.calls = 0

    def run(self, value: Any, *, fails: bool = False) -> Any:
        """Return what it gets; the instance lives as long as its process."""
        self.calls += 1
        if fails and not self.request.retries:
            raise ValueError("as asked for")
        return [value, self.calls > 0, self.request.retries]


class LimitedClassBased(ClassBased, BgTask):
    """The same with a limit."""

    name = "limited.class_based"
    max_per_key = 1
    when_full = "wait"


@connect_on_app_finalize
def _register_classes(app: Celery) -> None:
    app.register_task(ClassBased())
    app.register_task(LimitedClassBased())


class Point(BaseModel):
    """What the pydantic task takes."""

    x: int
    y: int


class Sum(BaseModel):
    """What the pydantic task returns."""

    total: int


def add_points(point: Any) -> Any:
    """Add the fields up."""
    assert isinstance(point, Point)
    return Sum(total=point.x + point.y)


# As classes: Celery 5.5 cannot read annotations that are texts.
add_points.__annotations__ = {"point": Point, "return": Sum}
twice(pydantic=True, ours={"task_key": "x"})(add_points)


@twice(typing=False)
def untyped(x: int) -> int:
    """Take one argument; who calls with two finds out when it runs."""
    return x


@twice(shadow_name=lambda task, args, kwargs, options: f"shown {args[0]}")
def shadowed(self: Task, value: Any) -> Any:
    """Show another name."""
    return [value, self.request.shadow]


class NotingRequest(Request):
    """An app's own request: notes what the pool tells it."""

    def on_accepted(self, pid: Any, time_accepted: float) -> None:
        """Note it."""
        super().on_accepted(pid, time_accepted)
        note(self.task, self.id, "accepted")


class RequestedTask(Task):
    """A task class with a request class of its own."""

    abstract = True
    Request: Any = NotingRequest


class NamedRequestTask(Task):
    """The same by its name, as Celery's default is."""

    abstract = True
    Request: Any = f"{MODULE}:NotingRequest"


@twice(base=RequestedTask)
def requested(value: Any) -> Any:
    """Return what it gets."""
    return value


@twice(base=NamedRequestTask)
def requested_by_name(value: Any) -> Any:
    """Return what it gets."""
    return value


class Unpicklable(Exception):
    """An error that needs two arguments, and has one of them in ``args`` only."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(what)
        self.why = why


@twice()
def fail_badly() -> None:
    """Raise an error that does not survive pickling."""
    raise Unpicklable("what", "why")


# Signals, in the order in which a process has seen them

#: The signals of a worker that concern one task.
WATCHED = (
    "task_received", "task_prerun", "task_postrun", "task_success", "task_failure",
    "task_retry", "task_revoked", "task_internal_error", "task_rejected",
)  # fmt: skip

_main = os.getpid()


def _watch(name: str) -> None:
    def receive(sender: Any = None, **facts: Any) -> None:
        request = facts.get("request")
        task = sender if isinstance(sender, Task) else getattr(request, "task", None)
        if not isinstance(task, Task):
            return
        known = (facts.get("task_id"), getattr(request, "id", None), task.request.id)
        task_id = next((one for one in known if one), None)
        if task_id:
            where = "main" if os.getpid() == _main else "child"
            said = ",".join(sorted(fact for fact in facts if fact != "signal"))
            line = f"{name} {facts.get('state') or ''} {said}"
            note(task, f"{task_id}:{where}", line)

    getattr(signals, name).connect(receive, weak=False)


for _name in WATCHED:
    _watch(_name)
