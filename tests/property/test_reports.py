"""What is published of a task, in any order of its life, against a model.

The model knows which run is the task's own and what was published of it. Followers
come, lose their connection and come back at any time; what one has heard at the end
is all that was told while it was there or that the log still had, each event once,
the end once and last.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from celery import Celery
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from celery_bgtask import Ended, Progress
from celery_bgtask.config import SETTINGS as ALL_SETTINGS
from celery_bgtask.config import Settings
from celery_bgtask.events import Event, decode, encode_end, encode_progress
from celery_bgtask.keys import scope_tag
from celery_bgtask.message import Message
from celery_bgtask.results.follower import Follower
from celery_bgtask.scripts import Scripts
from celery_bgtask.scripts.loader import make_script
from celery_bgtask.scripts.replies import Terms
from celery_bgtask.store import Link


KEEP = 4
SETTINGS = Settings(
    **{
        **{setting.name: setting.default for setting in ALL_SETTINGS},
        "progress_keep": KEEP,
        "progress_ttl": 500.0,
    }
)
MESSAGE = Message(b"body", b"{}")
IDS = ("a", "b")

MARK = make_script("mark", 'return redis.call("PUBLISH", ARGV[1], "that is all")')

ids = st.sampled_from(IDS)
picks = st.integers(0, 20)

_numbers = itertools.count()


@dataclass
class Life:
    """A task from its submission to its end; *state* is ``""`` before and after."""

    state: str = ""
    attempt: int = 0
    token: str = ""
    retries: int = 0
    told: bool = False
    concluded: bool = False
    log: list[Event] = field(default_factory=list)

    def note(self, event: Event) -> None:
        """Note that *event* was published; and kept, if it is a report."""
        if self.log or isinstance(event, Progress):
            self.log = [*self.log, event][-KEEP:]


@dataclass
class Watcher:
    """One who follows a task, as the listener has it do."""

    follower: Follower
    heard: list[Event]
    expected: list[Event]
    connected: bool = True

    def replay(self, log: list[Event]) -> None:
        """Hear what the log has."""
        for event in log:
            self.follower.tell(event)


class ReportsMachine(RuleBasedStateMachine):
    """Runs, their doubles, and who follows them."""

    link: Link
    client: Redis

    @initialize()
    def begin(self) -> None:
        """Every example has a scope of its own, and a listener that hears all."""
        scope = f"r{next(_numbers)}"
        self.scripts = Scripts(self.link, prefix="p", scope=scope, settings=SETTINGS)
        self.tag = scope_tag("p", scope)
        self.reply = f"reply:{scope}"
        self.pubsub = self.client.pubsub(ignore_subscribe_messages=True)
        self.channels = [self.reply, *map(self.scripts.channel, IDS)]
        self.pubsub.subscribe(*self.channels)
        for _ in self.channels:
            self.pubsub.get_message(timeout=5)
        self.lives = {task_id: Life() for task_id in IDS}
        self.runs: list[tuple[str, str, int]] = []  # id, token, attempt
        self.watchers: list[Watcher] = []
        self.tokens = itertools.count()
        self.said = itertools.count()

    def teardown(self) -> None:
        """End what is left, and give the connection back."""
        if hasattr(self, "lives"):
            for task_id in IDS:
                self.end_all(task_id)
            self.all_heard()
            self.pubsub.close()

    # What is published

    def published(self, task_id: str) -> list[Any]:
        """What the last step has published; the same on both channels."""
        # By the same connection: settling does not wait for its reply.
        self.link.run(MARK, (self.tag,), (self.reply,))
        found: dict[str, list[Any]] = {name: [] for name in self.channels}
        while True:
            message = self.pubsub.get_message(timeout=5)
            assert message is not None, "the mark did not come"
            if message["data"] == b"that is all":
                break
            found[message["channel"].decode()].append(decode(message["data"]))
        own = found[self.scripts.channel(task_id)]
        assert found[self.reply] == own, "[reply] both channels say the same"
        assert sum(map(len, found.values())) == 2 * len(own), "[id] of no other task"
        return own

    def step(self, task_id: str, expected: type[Event] | None) -> None:
        """Take in what a step has published: one event of a kind, or nothing."""
        events = self.published(task_id)
        if expected is None:
            assert not events, "[stale] nothing is told"
            return
        assert [type(event) for event in events] == [expected], "[once]"
        (event,) = events
        assert event.task_id == task_id
        life = self.lives[task_id]
        if isinstance(event, Progress):
            assert not life.told, "[last] nothing comes after the end"
            before = [one for one in life.log if isinstance(one, Progress)]
            numbers = [(one.attempt, one.seq) for one in (*before, event)]
            assert numbers == sorted(set(numbers)), "[order] by attempt and number"
        else:
            assert not life.told, "[once] the end is told once"
            life.told = True
        life.note(event)
        for watcher in self.watchers:
            if watcher.follower.task_id == task_id:
                self._tell(watcher, event)

    def _tell(self, watcher: Watcher, event: Event) -> None:
        if watcher.expected[-1:] and isinstance(watcher.expected[-1], Ended):
            return  # it has ended for this one: a new call of the id is another
        if watcher.connected:
            watcher.follower.tell(event)
        watcher.expected.append(event)

    # A task's life

    def _in(self, *states: str) -> list[str]:
        """The tasks in one of these states."""
        return [one for one in IDS if self.lives[one].state in states]

    @rule(task_id=ids)
    def submit(self, task_id: str) -> None:
        """Call the task; a second call while there is one changes nothing."""
        life = self.lives[task_id]
        if life.state == "ended":
            return  # the next attempt, of which the first run's end is not told
        answer = self.scripts.submit(
            task_id, "k", limit=-1, wait=False, max_waiting=1, rank=0, retries=0,
            token="", delay=0, nonce=f"n{next(self.said)}", message=MESSAGE,
            terms=Terms(keep=True), reply=self.reply,
        )  # fmt: skip
        if life.state:
            assert answer.status == "known"
        else:
            self.lives[task_id] = Life("dispatched", answer.attempt)
            self.watchers = [
                one for one in self.watchers if one.follower.task_id != task_id
            ]
        self.step(task_id, None)

    @precondition(lambda self: self._in("dispatched"))
    @rule(pick=picks)
    def start(self, pick: int) -> None:
        """A worker accepts it."""
        found = self._in("dispatched")
        self._start(found[pick % len(found)])

    def _start(self, task_id: str) -> None:
        life = self.lives[task_id]
        token = f"token{next(self.tokens)}"
        accepted = self.scripts.accept(
            task_id, life.attempt, "k", limit=-1, token=token, worker="w", fresh=False,
            rank=0, retries=life.retries, keep=True, reply=self.reply,
        )  # fmt: skip
        assert accepted.status == "started"
        life.state, life.token = "running", token
        self.runs.append((task_id, token, life.attempt))
        self.step(task_id, None)

    @precondition(lambda self: self.runs)
    @rule(pick=picks)
    def report(self, pick: int) -> None:
        """A run reports, its task's own or one that was ended before."""
        self._report(*self.runs[pick % len(self.runs)])

    def _doubles(self) -> list[tuple[str, str, int]]:
        """The stale runs of tasks that run again."""
        running = {self.lives[one].token for one in self._in("running")}
        again = self._in("running")
        return [run for run in self.runs if run[0] in again and run[1] not in running]

    @precondition(lambda self: self._doubles())
    @rule(pick=picks)
    def report_late(self, pick: int) -> None:
        """A run reports beside the one that has come after it."""
        doubles = self._doubles()
        self._report(*doubles[pick % len(doubles)])

    def _report(self, task_id: str, token: str, attempt: int) -> None:
        life = self.lives[task_id]
        valid = life.state == "running" and life.token == token
        standing = self.scripts.report(task_id, token, self._text(task_id, attempt))
        if not life.state:  # nobody knows it; nobody is told
            self.step(task_id, None)
            return
        assert standing.valid is valid
        stopped = life.state in {"stopping", "decided"} and life.token == token
        assert standing.verdict.startswith("cancelled") is stopped
        self.step(task_id, Progress if valid else None)

    @precondition(lambda self: self.runs)
    @rule()
    def report_much(self) -> None:
        """More than the log keeps."""
        for _ in range(KEEP + 2):
            self._report(*self.runs[-1])

    def _text(self, task_id: str, attempt: int) -> str:
        return encode_progress(
            task_id,
            attempt,
            current=next(self.said),
            total=None,
            description="",
            data={},
        )

    @precondition(lambda self: self._in("running"))
    @rule(pick=picks)
    def retry(self, pick: int) -> None:
        """Its own run submits the next attempt and ends; another worker starts it."""
        found = self._in("running")
        task_id = found[pick % len(found)]
        life = self.lives[task_id]
        life.retries += 1
        answer = self.scripts.submit(
            task_id, "k", limit=-1, wait=True, max_waiting=1, rank=0,
            retries=life.retries, token=life.token, delay=0,
            nonce=f"n{next(self.said)}", message=MESSAGE, terms=Terms(keep=True),
            reply=self.reply,
        )  # fmt: skip
        assert answer.status == "deferred"
        released = self.scripts.release(
            task_id, token=life.token, worker="w", attempt=life.attempt
        )
        (granted,) = released.granted
        self.scripts.confirm([granted])
        life.state, life.token, life.attempt = "dispatched", "", granted.attempt
        self.step(task_id, None)
        if pick % 2:
            self._start(task_id)

    @precondition(lambda self: self._in("running"))
    @rule(pick=picks)
    def requeue(self, pick: int) -> None:
        """The same attempt comes again."""
        found = self._in("running")
        task_id = found[pick % len(found)]
        life = self.lives[task_id]
        self.scripts.release(
            task_id, token=life.token, worker="w", attempt=life.attempt, requeue=True
        )
        life.state, life.token = "dispatched", ""
        self.step(task_id, None)
        if pick % 2:
            self._start(task_id)

    @precondition(lambda self: self._in("running", "stopping"))
    @rule(task_id=ids)
    def release(self, task_id: str) -> None:
        """The body has ended; the result is not stored yet."""
        self._release(task_id)

    def _release(self, task_id: str) -> None:
        life = self.lives[task_id]
        if life.state == "stopping":
            self.scripts.release(
                task_id, token=life.token, worker="w", attempt=life.attempt
            )
            life.state = "" if life.concluded else "decided"
        elif life.state == "running":
            self.scripts.release(
                task_id, token=life.token, worker="w", attempt=life.attempt
            )
            life.state = "ended"
        self.step(task_id, None)

    @precondition(lambda self: self.runs)
    @rule(pick=picks, owed=st.booleans())
    def settle(self, pick: int, owed: bool) -> None:
        """A run settles: its task's own once, any other never."""
        task_id, token, attempt = self.runs[pick % len(self.runs)]
        life = self.lives[task_id]
        own = life.state == "ended" and life.token == token
        self.scripts.settle(
            task_id, token=token, worker="w", attempt=attempt, remember=False,
            event=encode_end(task_id, attempt, state="SUCCESS"), owed=owed,
        )  # fmt: skip
        self.step(task_id, Ended if own else None)
        if own:
            self._over(task_id, owed=owed)

    @precondition(lambda self: self._in("dispatched", "running"))
    @rule(task_id=ids)
    def cancel(self, task_id: str) -> None:
        """Somebody ends it; a body that runs is to stop."""
        life = self.lives[task_id]
        if life.state in {"dispatched", "running"}:
            self.scripts.cancel(task_id, reason="why", terminate=True)
            life.state = "stopping" if life.state == "running" else "decided"
        self.step(task_id, None)

    @precondition(lambda self: self._in("running", "stopping", "decided"))
    @rule(task_id=ids, owed=st.booleans())
    def announce(self, task_id: str, owed: bool) -> None:
        """Somebody has stored the verdict; only the first is heard."""
        life = self.lives[task_id]
        if not life.state:
            return  # of what the store does not know the end is told: it may be new
        first = life.state in {"stopping", "decided"} and not life.told
        event = encode_end(task_id, 0, state="REVOKED")
        self.scripts.announce(task_id, event, owed=owed)
        self.step(task_id, Ended if first else None)
        if first and owed and not life.log:
            self._keep_end(task_id)

    @rule(task_id=ids, owed=st.booleans())
    def conclude(self, task_id: str, owed: bool) -> None:
        """A worker concludes the verdict."""
        life = self.lives[task_id]
        event = encode_end(task_id, life.attempt, state="REVOKED")
        self.scripts.conclude(task_id, life.attempt, event, owed=owed)
        judged = life.state in {"stopping", "decided"}
        first = judged and not life.concluded and not life.told
        life.concluded = life.concluded or judged
        self.step(task_id, Ended if first else None)
        if life.state == "decided":
            self._over(task_id, owed=owed and first)
        elif first and owed and not life.log:
            self._keep_end(task_id)

    @precondition(lambda self: self._in("dispatched", "running"))
    @rule(task_id=ids)
    def withdraw(self, task_id: str) -> None:
        """It is revoked before its start."""
        life = self.lives[task_id]
        event = encode_end(task_id, life.attempt, state="REVOKED")
        self.scripts.withdraw(task_id, life.attempt, event)
        begun = life.state == "dispatched"
        self.step(task_id, Ended if begun else None)
        if begun:
            self._over(task_id, owed=False)

    def _over(self, task_id: str, *, owed: bool) -> None:
        self.lives[task_id].state = ""
        if owed and not self.lives[task_id].log:
            self._keep_end(task_id)

    def _keep_end(self, task_id: str) -> None:
        """Nobody can look the result up: the log has the end alone."""
        (known,) = self.scripts.history([task_id])
        (end,) = map(decode, known.events)
        assert isinstance(end, Ended), "[owed] the end is kept where it is owed"
        self.lives[task_id].log = [end]

    @rule(task_id=ids)
    def expire(self, task_id: str) -> None:
        """The log has lived out its time."""
        self.client.delete(f"{self.tag}:progress:{task_id}")
        life = self.lives[task_id]
        life.log = []
        for watcher in self.watchers:
            if watcher.follower.task_id == task_id and not watcher.connected:
                # What it missed is gone: it may hear less than was told.
                watcher.expected = list(watcher.heard)

    # Who follows

    @rule(task_id=ids)
    def follow(self, task_id: str) -> None:
        """Somebody begins to follow: the log, then what comes."""
        heard: list[Event] = []
        follower = Follower(
            task_id, scripts=(), channels=(), result=None, hear=heard.append  # type: ignore[arg-type]
        )  # fmt: skip
        watcher = Watcher(follower, heard, list(self.lives[task_id].log))
        self.watchers.append(watcher)
        watcher.replay(self._history(task_id))

    @precondition(lambda self: self.watchers)
    @rule(pick=picks)
    def disconnect(self, pick: int) -> None:
        """A follower's connection is lost."""
        self.watchers[pick % len(self.watchers)].connected = False

    @precondition(lambda self: self.watchers)
    @rule(pick=picks)
    def reconnect(self, pick: int) -> None:
        """It is back, or was never away: the log is read again."""
        watcher = self.watchers[pick % len(self.watchers)]
        log = self._history(watcher.follower.task_id)
        if not watcher.connected:
            # What the log has lost meanwhile is lost.
            kept = {(one.attempt, one.seq) for one in (*log, *watcher.heard)}
            watcher.expected = [
                one for one in watcher.expected if (one.attempt, one.seq) in kept
            ]
        watcher.connected = True
        watcher.replay(log)

    def _history(self, task_id: str) -> list[Any]:
        (known,) = self.scripts.history([task_id])
        assert known.state == self.lives[task_id].state or known.state == "decided"
        return [decode(event) for event in known.events]

    def end_all(self, task_id: str) -> None:
        """Bring a task to its end, whatever it is at."""
        if self.lives[task_id].state == "dispatched":
            self._start(task_id)
        life = self.lives[task_id]
        if life.state in {"running", "stopping"}:
            self._release(task_id)
        if life.state == "ended":
            index = [token for _, token, _ in self.runs].index(life.token)
            self.settle(index, owed=False)
        self.conclude(task_id, owed=False)
        assert not self.lives[task_id].state
        if self.lives[task_id].attempt:
            assert self.lives[task_id].told, "[told] every end is told"

    def all_heard(self) -> None:
        """Who is connected at the end has heard all, the end once and last."""
        for number, watcher in enumerate(self.watchers):
            self.reconnect(number)
            assert watcher.heard == watcher.expected, "[all] each event once, in order"
            ends = [event for event in watcher.heard if isinstance(event, Ended)]
            assert ends in ([], watcher.heard[-1:]), "[last] the end is the last"

    @invariant()
    def the_logs_are_as_published(self) -> None:
        """The last few events, each log with a lifetime."""
        if not hasattr(self, "lives"):
            return
        for task_id, life in self.lives.items():
            name = f"{self.tag}:progress:{task_id}"
            with self.client.pipeline(transaction=False) as pipe:
                pipe.lrange(name, 0, -1)
                pipe.pttl(name)
                lines, ttl = pipe.execute()
            assert [decode(line) for line in lines] == life.log, "[log]"
            assert not lines or 0 < ttl <= 500_000, "[lifetime]"


MODEL = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.timeout(300)
def test_what_is_told_of_a_task_is_what_happened(redis_url: str) -> None:
    """Stale runs, trimmed logs, lost connections, in any order, against a model."""
    app = Celery("reports", set_as_current=False)
    with Redis.from_url(redis_url) as client:
        facts = {"link": Link(app, redis_url), "client": client}
        machine = type("Machine", (ReportsMachine,), facts)
        run_state_machine_as_test(machine, settings=MODEL)
        client.flushdb()
