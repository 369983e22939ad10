"""Canvas: chains, groups, chords and what hangs on them end as with plain tasks.

The bgtasks here run once at a time, of one task as a whole: members of a chord wait
for each other all the time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import chain, chord, group
from celery.canvas import StampingVisitor  # type: ignore[attr-defined]
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import GroupResult, ResultSet

from celery_bgtask import (
    AcceptTimeout,
    FinishTimeout,
    LimitReached,
    TaskCancelled,
    TaskLost,
)
from tests.compat import tasks
from tests.compat.conftest import PATIENCE, Compared, ending_of, value_of
from tests.helpers import wait_until


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """What a lost worker held is free soon; errbacks are of members, too."""
    return {
        "bgtask_lease": 3,
        "bgtask_sweep_interval": 0.25,
        "task_allow_error_cb_on_chord_header": True,  # what will be the default
    }


CANVAS: dict[str, tuple[Callable[[SimpleNamespace], Any], Any]] = {
    "chain": (lambda t: chain(t.add.s(1, 2), t.add.s(3), t.add.s(4)), 10),
    "chain-by-pipe": (lambda t: t.add.s(1, 2) | t.echo.si("new") | t.echo.s(), "new"),
    "group": (lambda t: group(t.add.s(n, n) for n in range(5)), [0, 2, 4, 6, 8]),
    "group-of-groups": (
        lambda t: group(group(t.add.s(1, 1), t.add.s(2, 2)), t.add.s(3, 3)),
        [2, 4, 6],
    ),
    "chord": (lambda t: chord([t.add.s(n, n) for n in range(5)], t.total.s()), 20),
    "chord-of-one": (lambda t: chord([t.add.s(1, 1)], t.total.s()), 2),
    "chord-of-none": (lambda t: chord([], t.total.s()), 0),
    "group-in-chain": (
        lambda t: chain(t.add.s(1, 1), group(t.add.s(1), t.add.s(2)), t.total.s()),
        7,
    ),
    "chain-ends-in-group": (
        lambda t: chain(t.add.s(1, 1), group(t.add.s(1), t.add.s(2))),
        [3, 4],
    ),
    "groups-in-chain": (
        lambda t: chain(
            group(t.add.s(1, 1), t.add.s(2, 2)),
            t.total.s(),
            group(t.add.s(10), t.add.s(20)),
            t.total.s(),
        ),
        42,
    ),
    "chains-in-group": (
        lambda t: group(t.add.s(1, 1) | t.add.s(1), t.add.s(2, 2) | t.add.s(2)),
        [3, 6],
    ),
    "chains-in-chord": (
        lambda t: chord(
            [t.add.s(1, 1) | t.add.s(1), t.add.s(2, 2) | t.add.s(2)], t.total.s()
        ),
        9,
    ),
    "chord-in-chord": (
        lambda t: chord(
            [chord([t.add.s(1, 1), t.add.s(2, 2)], t.total.s()), t.add.s(4, 4)],
            t.total.s(),
        ),
        14,
    ),
    "chain-as-body": (
        lambda t: chord([t.add.s(1, 1), t.add.s(2, 2)], t.total.s() | t.add.s(1)),
        7,
    ),
    "chord-as-body": (
        lambda t: chord(
            [t.add.s(1, 1), t.add.s(2, 2)],
            chord([t.total.s(), t.total.s()], t.total.s()),
        ),
        12,
    ),
    "map": (lambda t: t.total.map([[1, 2], [3, 4]]), [3, 7]),
    "starmap": (lambda t: t.add.starmap([(1, 2), (3, 4)]), [3, 7]),
    "chunks": (
        lambda t: t.add.chunks(((n, n) for n in range(4)), 2).group(),
        [[0, 2], [4, 6]],
    ),
    "replaced-by-task": (lambda t: t.replaced_by_task.s(1, 2), 3),
    "replaced-by-chain": (lambda t: t.replaced_by_chain.s(1, 2), 13),
    "replaced-by-group": (lambda t: t.replaced_by_group.s([1, 2]), [2, 3]),
    "replaced-by-chord": (lambda t: t.replaced_by_chord.s([1, 2]), 5),
    "replaced-again": (lambda t: t.countdown_by_replacing.s(4), 4),
    "replaced-in-chain": (
        lambda t: chain(t.replaced_by_chain.s(1, 2), t.add.s(100)),
        113,
    ),
    "replaced-by-chord-in-chain": (
        lambda t: chain(t.replaced_by_chord.s([1, 2]), t.add.s(100)),
        105,
    ),
    "replaced-in-group": (
        lambda t: group(t.replaced_by_task.s(1, 2), t.add.s(1, 1)),
        [3, 2],
    ),
    "replaced-in-chord": (
        lambda t: chord([t.replaced_by_chain.s(1, 2), t.add.s(1, 1)], t.total.s()),
        15,
    ),
    "added-to-chord": (
        lambda t: chord([t.adds_to_chord.s(1), t.adds_to_chord.s(2)], t.total.s()),
        206,
    ),
    "retried-in-chain": (lambda t: chain(t.fail_once.s(), t.echo.s()), "done"),
    "retried-in-chord": (
        lambda t: chord([t.fail_once.s(), t.fail_once.s()], t.echo.s()),
        ["done", "done"],
    ),
}


@pytest.mark.parametrize("name", CANVAS)
def test_a_canvas_returns_the_same(both: Compared, name: str) -> None:
    """Whatever is made of signatures."""
    canvas, expected = CANVAS[name]

    assert both(lambda t: canvas(t).apply_async()) == expected


def test_the_body_of_a_chord_is_called_with_what_its_members_return(
    both: Compared,
) -> None:
    """With members of both kinds."""
    plain, limited = both.kinds["plain"], both.limited

    mixed = chord([plain.add.s(1, 1), limited.add.s(2, 2)], limited.total.s())

    assert value_of(mixed.apply_async()) == 6


def test_a_chord_whose_members_wait_for_one_slot_ends(both: Compared) -> None:
    """All of them wait for one slot, and so does the body, of the same task."""
    slow = both.limited.slow

    result = chord([slow.si(n, 0.05) for n in range(8)], slow.s(0.0)).apply_async()

    assert sorted(value_of(result)) == list(range(8))
    assert both.setup.ledger.peak(slow.name) == 1
    assert len(both.setup.ledger.runs(key=slow.name)) == 9


def test_a_task_submits_a_chord_of_its_own_kind(both: Compared, key: str) -> None:
    """From the body, where the submitting task itself holds a slot."""
    assert (
        both(lambda t: t.submits_canvas.delay(f"{key}-{t.kind}"), value_of)
        == "submitted"
    )

    for kind in both.kinds:
        assert both.notes(f"{key}-{kind}") == ["[6]"]


# What hangs on a task


def test_callbacks_are_called_with_the_result(both: Compared, key: str) -> None:
    """One, several, and one that is given no result."""

    def submit(t: SimpleNamespace) -> Any:
        again = t.remember.s(name=f"{key}-{t.kind}")
        t.add.apply_async((1, 2), link=again)
        t.add.apply_async((3, 4), link=[again, t.add.s(1) | again])
        t.add.apply_async((5, 6), link=t.remember.si("own", name=f"{key}-{t.kind}"))
        return f"{key}-{t.kind}"

    assert both(submit, lambda name: sorted(both.notes(name, count=4))) == [
        "['own']",
        "[3]",
        "[7]",
        "[8]",
    ]


def test_a_result_knows_its_callbacks(both: Compared) -> None:
    """``children``, ``collect()`` and ``graph`` name what was started from a task."""

    def see(result: Any) -> Any:
        result.get(timeout=PATIENCE)
        wait_until(lambda: result.children, within=PATIENCE, that="it has children")
        (child,) = result.children
        collected = [value for _, value in result.collect(timeout=PATIENCE)]
        return value_of(child), collected, len(result.graph)

    assert both(lambda t: t.add.apply_async((1, 2), link=t.add.s(10)), see) == (
        13,
        [3, 13],
        2,
    )


ERRORS: dict[str, tuple[Callable[[SimpleNamespace], Any], list[str]]] = {
    "task": (lambda t: t.fail.s(), ["fail ValueError"]),
    "chain": (
        lambda t: chain(t.add.s(1, 2), t.fail.s(), t.add.s(3)),
        ["fail ValueError"],
    ),
    "group": (
        lambda t: group(t.fail.s(), t.add.s(1, 1), t.fail.s()),
        ["fail ValueError"] * 2,
    ),
    "chord": (
        lambda t: chord([t.fail.s(), t.add.s(1, 1)], t.total.s()),
        # The member's own error, and the body's that never ran.
        ["fail ValueError", "total ChordError"],
    ),
    "body": (lambda t: chord([t.add.s(1, 1)], t.fail.s()), ["fail ValueError"]),
    "replaced": (lambda t: t.replaced_by_failure.s(), ["fail ValueError"]),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errbacks_are_told_the_same(both: Compared, key: str, name: str) -> None:
    """Of a task, and of whatever is made of signatures."""
    canvas, expected = ERRORS[name]
    errback = both.setup.app.tasks["tests.compat.tasks.errback"]

    def submit(t: SimpleNamespace) -> Any:
        told = f"{key}-{t.kind}"
        return told, canvas(t).on_error(errback.s(name=told)).apply_async()

    def see(submitted: Any) -> Any:
        told, result = submitted
        wait_until(result.ready, within=PATIENCE, that="it has ended")
        return sorted(both.notes(told, count=len(expected)))

    assert both(submit, see) == expected


def test_an_errback_may_be_a_bgtask(both: Compared, key: str) -> None:
    """Of Celery's old kind, which is sent like a task."""

    def submit(t: SimpleNamespace) -> Any:
        name = f"{key}-{t.kind}"
        return name, t.fail.apply_async(link_error=t.sent_errback.s(name=name))

    def see(submitted: Any) -> Any:
        name, result = submitted
        return both.notes(name) == [result.id]

    assert both(submit, see)


def test_a_failed_chain_fails_to_its_end(both: Compared) -> None:
    """What would have followed has the failure for its result, too."""

    def see(result: Any) -> Any:
        endings = []
        while result is not None:
            endings.append(ending_of(result))
            result = result.parent
        return endings

    failed = ("FAILURE", "ValueError", "as asked for")

    assert both(lambda t: chain(t.add.s(1, 2), t.fail.s(), t.echo.s())(), see)[-2:] == [
        failed,
        ("SUCCESS", "int", "3"),
    ]


def test_a_failed_member_fails_its_chord(both: Compared) -> None:
    """With Celery's own error, which names the member's."""

    def see(result: Any) -> Any:
        state, kind, text = ending_of(result)
        return state, kind, text.replace(result.parent.results[0].id, "member")

    assert both(
        lambda t: chord([t.fail.s(), t.add.s(1, 1)], t.total.s()).apply_async(), see
    ) == (
        "FAILURE",
        "ChordError",
        "Dependency member raised ValueError('as asked for')",
    )


# Family, stamps, groups


def test_tasks_know_their_family(both: Compared) -> None:
    """``parent_id``, ``root_id`` and ``group``, each by whose id it is."""

    def submit(t: SimpleNamespace) -> Any:
        return chain(t.ids.s(), group(t.ids.s(), t.ids.s()), t.ids.s()).apply_async()

    def see(last: Any) -> Any:
        last.get(timeout=PATIENCE)
        members = last.parent
        names: dict[Any, str] = {None: "none", members.id: "group", last.id: "last"}
        names |= dict.fromkeys((member.id for member in members), "member")
        names[members.parent.id] = "first"
        family = [members.parent, *members.results, last]
        return [[names[other] for other in value_of(one)] for one in family]

    *family, last = both(submit, see)

    assert family == [
        ["first", "none", "first", "none"],
        ["member", "first", "first", "group"],
        ["member", "first", "first", "group"],
    ]
    # Whose child it is depends on Celery's release.
    assert last[0] == "last"


class Stamping(StampingVisitor):
    """Stamps every signature."""

    def on_signature(self, sig: Any, **headers: Any) -> dict[str, Any]:
        """Put a stamp on it."""
        return {"tenant": "blue", "stamped_headers": ["tenant"]}


def test_stamps_reach_every_task_of_a_canvas(both: Compared) -> None:
    """The members, the body, and what a task is replaced by."""

    def submit(t: SimpleNamespace) -> Any:
        canvas = chain(t.facts.s(), group(t.facts.si(), t.facts.si()), t.echo.s())
        canvas.stamp(Stamping())
        return canvas.apply_async()

    def see(result: Any) -> Any:
        return [
            (facts["stamps"], facts["stamped_headers"]) for facts in value_of(result)
        ]

    assert both(submit, see) == [({"tenant": "blue"}, ["tenant"])] * 2


def test_a_stamp_revokes_what_bears_it(both: Compared, key: str) -> None:
    """``revoke_by_stamped_headers``, before the start."""
    app = both.setup.app
    app.control.revoke_by_stamped_headers({"tenant": [key]}, reply=True, timeout=2)

    def submit(t: SimpleNamespace) -> Any:
        return t.echo.apply_async(
            (1,), headers={"stamped_headers": ["tenant"], "stamps": {"tenant": [key]}},
            stamped_headers=["tenant"], tenant=key,
        )  # fmt: skip

    assert both(submit, ending_of)[:2] == ("REVOKED", "TaskRevokedError")


def test_a_saved_group_is_restored(both: Compared) -> None:
    """``GroupResult.save`` and ``restore``."""

    def submit(t: SimpleNamespace) -> Any:
        result: Any = group(t.add.s(1, 1), t.add.s(2, 2)).apply_async()
        result.save()
        return result.id

    def see(group_id: str) -> Any:
        restored = GroupResult.restore(group_id, app=both.setup.app)
        assert restored is not None
        values = value_of(restored)
        return values, restored.successful(), restored.completed_count()

    assert both(submit, see) == ([2, 4], True, 2)


def test_results_of_several_calls_are_joined(both: Compared) -> None:
    """``ResultSet``: in the order of the calls."""

    def submit(t: SimpleNamespace) -> Any:
        return ResultSet([t.slow.delay(n, 0.1) for n in range(4)], app=both.setup.app)

    assert both(submit) == [0, 1, 2, 3]


def test_what_calls_functions_takes_no_slot(both: Compared, key: str) -> None:
    """``map``, ``starmap`` and ``chunks`` run while the task's only slot is taken."""
    strict = both.limited.strict
    calls = [(1,), (2,), (3,)]
    with held(both, strict, key):
        with pytest.raises(LimitReached):
            strict.delay()

        assert value_of(strict.map([1, 2, 3]).apply_async()) == ["done"] * 3
        assert value_of(strict.starmap(calls).apply_async()) == ["done"] * 3
        assert value_of(strict.chunks(iter(calls), 3).apply_async()) == [["done"] * 3]
        assert strict.control.stats().running == 1


@contextlib.contextmanager
def held(both: Compared, strict: Any, key: str) -> Iterator[None]:
    """Take the only slot of *strict* for the time of a block."""
    holder = strict.delay(until=key)
    wait_until(
        lambda: strict.control.stats().running, within=PATIENCE, that="it is taken"
    )
    try:
        yield
        assert not holder.ready()
    finally:
        both.setup.ledger.client.rpush(f"ledger:go:{key}", "go")
    assert value_of(holder) == "done"


# Members that nobody finishes

ENDED_BY: dict[str, tuple[type[Exception], Callable[[SimpleNamespace], Any]]] = {
    "refused": (LimitReached, lambda t: t.strict.s()),
    "not-started-in-time": (AcceptTimeout, lambda t: t.prompt.s().set(queue="nobody")),
    "not-ended-in-time": (FinishTimeout, lambda t: t.timely.s(seconds=20)),
    "cancelled": (TaskCancelled, lambda t: t.slow.si("x", 5).set(queue="nobody")),
    "lost": (TaskLost, lambda t: t.slow.si("x", 60).set(queue="doomed")),
}


@pytest.mark.parametrize("name", ENDED_BY)
def test_a_member_that_nobody_finishes_ends_its_chord_with_that_error(
    both: Compared, key: str, name: str
) -> None:
    """The chord's error names it, its errback is told, and the rest has run."""
    error, member = ENDED_BY[name]
    smoke = both.setup
    errback = smoke.app.tasks["tests.compat.tasks.errback"]
    leaver = None
    slot = contextlib.ExitStack()
    if name == "refused":
        slot.enter_context(held(both, both.limited.strict, key))
    if name == "lost":
        leaver = smoke.start_worker(
            "leaver", concurrency=1, tasks=tasks.MODULE, options=("-Q", "doomed")
        )

    body = both.limited.total.s().on_error(errback.s(name=key))
    members = [member(both.limited), both.limited.add.s(1, 1)]
    with slot:
        result: Any = chord(members, body).apply_async()
    first, second = result.parent.results
    if name == "cancelled":
        assert first.cancel("as asked for").was == "dispatched"
    if leaver:
        wait_until(
            lambda: smoke.ledger.starts(first.id), within=PATIENCE, that="it runs"
        )
        leaver.kill("SIGKILL")

    with pytest.raises(ChordError, match=error.__name__):
        result.get(timeout=PATIENCE, follow_parents=False)
    with pytest.raises(TaskRevokedError if error is TaskCancelled else error):
        first.get(timeout=PATIENCE)
    assert value_of(second) == 2
    assert both.notes(key) == ["total ChordError"]
