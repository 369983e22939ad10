"""Each rule of the verifier finds what it is there for, and takes no cause for none."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from tests.chaos.evidence import Call, Evidence
from tests.chaos.faults import Fault
from tests.chaos.verifier import violations
from tests.chaos.world import DISPATCH_LEASE, LEASE
from tests.smoke.ledger import Run


class Written(Evidence):
    """Evidence that a test writes down; a run is id, start, end and more."""

    def __init__(self, *runs: Run, faults: tuple[Fault, ...] = ()) -> None:
        # Without super(): it would read a ledger.
        self.runs = sorted(runs, key=lambda run: run.started)
        self.faults = list(faults)
        self.calls: dict[str, Call] = {}
        self.final: dict[str, tuple[str, str]] = {}
        self.stored = defaultdict(list)
        self._silences = {}
        self.events = []
        steps: list[tuple[float, int, dict[str, str]]] = []
        for number, run in enumerate(self.runs):
            name = f"run{number}"
            steps.append((run.started, 1, {"event": "start", "run": name}))
            steps.append((run.ended or 1e9, 0, {"event": "end", "run": name}))
        self.events = [
            (at, facts) for at, _, facts in sorted(steps, key=lambda s: s[:2])
        ]
        for run in self.runs:
            self.call(run.task_id, key=run.key)

    def call(
        self,
        task_id: str,
        outcome: str = "submitted",
        final: tuple[str, str] = ("SUCCESS", ""),
        *,
        key: str = "two/k",
        at: float = 0.0,
    ) -> Call:
        """Write down what came of a call."""
        kind = key.partition("/")[0]
        self.calls[task_id] = Call(task_id, kind, key, at, outcome)
        self.final[task_id] = final
        return self.calls[task_id]

    @property
    def broken(self) -> set[str]:
        """The rules that are broken."""
        return {violation.rule for violation in violations(self)}


def ran(task_id: str, start: float, end: float, **facts: Any) -> Run:
    """A body that came to its end."""
    facts = {"key": "two/k", "attempt": 0, "worker": "w1-left@x", "pid": 1, **facts}
    return Run(task_id, started=start, ended=end, seen=end, marks=["done"], **facts)


def test_what_went_well_breaks_no_rule() -> None:
    """Two at a time, of two slots, one after the other."""
    assert not Written(ran("a", 0, 1), ran("b", 0, 1), ran("c", 1, 2)).broken


@pytest.mark.parametrize(
    ("outcome", "final", "rule"),
    [
        ("submitted", ("PENDING", ""), "no outcome"),
        ("submitted", ("RETRY", ""), "no outcome"),
        ("submitted", ("REVOKED", "TaskCancelled"), "untrue outcome"),
        ("submitted", ("FAILURE", "TaskLost"), "untrue outcome"),
        ("submitted", ("FAILURE", "ConnectionError"), "untrue outcome"),
        ("submitted", ("FAILURE", "KeyError"), "untrue outcome"),
        ("refused", ("SUCCESS", ""), "refused"),
    ],
)
def test_an_outcome_that_is_not_what_happened_is_found(
    outcome: str, final: tuple[str, str], rule: str
) -> None:
    """None, a second thought, or one without a cause."""
    seen = Written(ran("a", 0, 1))
    seen.call("a", outcome, final)

    assert rule in seen.broken


def test_a_success_of_which_no_body_came_to_its_end_is_found() -> None:
    """What is stored was not done."""
    seen = Written()
    seen.call("a")

    assert seen.broken == {"untrue outcome"}


def test_two_outcomes_are_found() -> None:
    """Though the last one looks well."""
    seen = Written(ran("a", 0, 1))
    seen.stored["a"] = [(1.0, "FAILURE"), (2.0, "SUCCESS")]

    assert seen.broken == {"two outcomes"}


def test_a_start_after_a_cancellation_is_found() -> None:
    """If it was said that the task had not started."""
    seen = Written(ran("a", 2, 3))
    seen.calls["a"].cancelled.append((1.0, "waiting"))

    assert seen.broken == {"cancelled"}


def test_one_too_many_is_found() -> None:
    """Three of two slots."""
    assert Written(ran("a", 0, 2), ran("b", 0, 2), ran("c", 1, 2)).broken == {
        "over limit"
    }


@pytest.mark.parametrize(
    ("seconds", "excused"), [(LEASE / 3, False), (2 * LEASE, True)]
)
def test_a_lost_lease_excuses_and_a_short_halt_does_not(
    seconds: float, excused: bool
) -> None:
    """While its worker is away, and for a moment after."""
    fault = Fault("stop_worker", "w1-left@x", 1.0, 1.0 + seconds)
    late = 1.0 + seconds - 0.1
    seen = Written(
        ran("a", 0, late + 1),
        ran("b", late, late + 1, worker="w2-right@x"),
        ran("c", late, late + 1, worker="w2-right@x"),
        faults=(fault,),
    )

    assert seen.broken == (set() if excused else {"over limit"})


def test_a_store_that_is_away_excuses_nobody() -> None:
    """Nor does a body excuse itself that does not end when it could know."""
    away = Fault("kill_store", "", 1.0, 1.0 + 3 * LEASE)
    halted = Fault("hang_worker", "w1-left@x", 1.0, 2 * LEASE)
    runs = [ran("a", 0, 90), ran("b", 3 * LEASE, 90, worker="w2-right@x")]
    runs += [ran("c", 3 * LEASE, 90, worker="w2-right@x")]

    assert Written(*runs, faults=(away,)).broken == {"over limit"}
    assert Written(*runs, faults=(halted,)).broken == {"over limit"}


def test_a_second_run_without_a_cause_is_found() -> None:
    """One after a kill has one."""
    killed = Fault("kill_child", "w1-left@x", 1.0, 1.0, pid=1)
    other = Fault("kill_child", "w1-left@x", 1.0, 1.0, pid=2)
    runs = (ran("a", 0, 1), ran("a", 3, 4))

    assert Written(*runs).broken == {"duplicate"}
    assert Written(*runs, faults=(other,)).broken == {"duplicate"}
    assert not Written(*runs, faults=(killed,)).broken


def test_a_retry_that_could_not_be_published_runs_again() -> None:
    """If the store was away when its body ended; one that was done does not."""
    away = Fault("kill_store", "", 0.5, 2.0)
    runs = (ran("a", 0, 1), ran("a", 9, 10))

    assert Written(*runs, faults=(away,)).broken == {"duplicate"}
    runs[0].marks.clear()
    assert not Written(*runs, faults=(away,)).broken


def test_a_task_beside_itself_is_found() -> None:
    """Though the key has room."""
    runs = (ran("a", 0, 3), ran("a", 1, 2, worker="w2-right@x"))

    assert "beside itself" in Written(*runs).broken


def test_a_wrong_order_is_found() -> None:
    """But where the first one's message did not come for a dispatch lease."""
    idle = DISPATCH_LEASE + 1
    for gap, rule in ((1.0, {"order"}), (idle, set())):
        seen = Written(
            ran("b", gap, gap + 1, key="line/p"),
            ran("a", gap + 1, gap + 2, key="line/p"),
        )
        seen.calls = {name: seen.calls[name] for name in ("a", "b")}

        assert seen.broken == rule
