"""``celery bgtask``: each command does what it says, in words and as JSON."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest

from celery_bgtask import TaskCancelled
from tests.helpers import wait_until
from tests.smoke.cli_tasks import MODULE, go
from tests.smoke.command_line import CommandLine
from tests.smoke.nodes import SmokeSetup, WorkerSpec


#: What commands are called in what is shown.
PROGRAM = "celery -A tests.smoke.app bgtask"

EXPORT = ("--task", "export")


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """A sweep that comes soon."""
    return {"bgtask_lease": 6, "bgtask_sweep_interval": 0.25}


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """One whose bodies can be stopped."""
    return (WorkerSpec("prefork", 4, tasks=MODULE),)


@pytest.fixture
def export(smoke: SmokeSetup) -> Any:
    """The task with keys."""
    return smoke.app.tasks[f"{MODULE}.export"]


@pytest.fixture
def started(smoke: SmokeSetup, export: Any, key: str) -> Callable[[int], list[Any]]:
    """Submits tasks on the test's key, and returns when two of them run."""

    def start(count: int) -> list[Any]:
        results = [export.delay(key) for _ in range(count)]
        wait_until(
            lambda: export.control.stats(key).running == min(count, 2),
            within=15,
            that="two run",
        )
        return results

    return start


def finish(smoke: SmokeSetup, results: list[Any], key: str) -> None:
    """Let all end that are left."""
    go(smoke.ledger, key, len(results))
    for result in results:
        result.get(timeout=20, propagate=False)
    smoke.ledger.client.delete(f"ledger:go:{key}")


def row_of(lines: list[str], key: str) -> list[str]:
    """Return the cells of the line of *key* in a table."""
    (row,) = [line for line in lines if line.rstrip().endswith(shlex.quote(key))]
    return row.split()


def test_keys_show_and_top_say_what_runs_and_waits(
    smoke: SmokeSetup, cli: CommandLine, key: str, started: Any
) -> None:
    """The same numbers everywhere; the task's column where there are several."""
    results = started(5)

    listed = cli("keys", *EXPORT)
    assert listed.lines[0].split() == [
        *("SLOTS", "RUNNING", "WAITING", "OLDEST", "STATE", "KEY")
    ]
    slots, running, waiting, oldest, state, _ = row_of(listed.lines, key)
    assert (slots, running, waiting, state) == ("2/2", "2", "3", "full")
    assert oldest.endswith("s")
    assert listed.lines[-1] == "1 key: 2 running, 0 dispatched, 3 waiting"

    everywhere = cli("keys")
    assert "TASK" in everywhere.lines[0]
    assert row_of(everywhere.lines, key)[-2] == "export"

    watched = cli("top", "--count", "2", "--every", "0.1")
    assert row_of(watched.lines[: len(watched.lines) // 2], key)[:3] == [
        "2/2",
        "2",
        "3",
    ]
    assert len([line for line in watched.lines if line.endswith("3 waiting")]) == 2

    shown = cli("show", key, *EXPORT)
    assert shown.lines[0].endswith(": full: the next starts when one ends")
    assert "2 taken: 2 running, 0 dispatched" in shown.out
    for holder in results[:2]:
        (line,) = [one for one in shown.lines if holder.id in one]
        assert re.search(r" running on \S+@\S+ for \d+s, lease for \d+s$", line), line

    (as_listed,) = cli("keys", "--json").json
    (as_shown,) = cli("show", key, "--json").json
    (picture,) = cli("top", "--count", "1", "--json").json
    holders = as_shown.pop("holders")
    assert {holder["task_id"] for holder in holders} == {r.id for r in results[:2]}
    assert all(holder["lease_until"] > time.time() for holder in holders)
    assert as_listed == as_shown == picture["busiest"][0]
    assert (as_shown["key"], as_shown["scope"]) == (key, f"{MODULE}.export")
    assert (as_shown["held"], as_shown["capacity"], as_shown["limit"]) == (2, 0, 2)
    assert (picture["running"], picture["waiting"], picture["keys"]) == (2, 3, 1)
    assert time.time() - as_shown["waiting_since"] < 120
    finish(smoke, results, key)
    assert cli("keys").out.startswith("No key is in use")
    assert cli("keys", "--json").out == ""


def test_explain_says_who_holds_the_slots_and_what_to_do(
    smoke: SmokeSetup, cli: CommandLine, key: str, started: Any
) -> None:
    """By id alone, in whatever task it is."""
    first, second, third, fourth = results = started(4)
    running = {first.id, second.id}

    words = cli("explain", fourth.id)
    assert "waiting (behind-others)" in words.out
    assert "position       2 of 2 that wait" in words.out
    for task_id in running:
        assert f"{task_id} running on prefork0" in words.out
    assert words.out.endswith(
        f"for more slots: `{PROGRAM} limit --task export {key} N`\n"
    )

    (facts,) = cli("explain", third.id, "--json").json
    assert (facts["reason"], facts["position"], facts["key"]) == ("key-full", 1, key)
    assert {holder["task_id"] for holder in facts["holders"]} == running
    assert "state          running\n" in cli("explain", first.id).out

    finish(smoke, results, key)
    assert "has ended" in cli("explain", first.id).out


def test_limit_moves_at_once_and_is_reset(
    smoke: SmokeSetup, cli: CommandLine, key: str, export: Any, started: Any
) -> None:
    """Raising starts what waits; 0 holds it; none is no limit; reset is declared."""
    results = started(4)
    stats = export.control.stats

    raised = cli("limit", key, "3", *EXPORT)
    assert "3, set by hand; the task declares 2" in raised.lines[0]
    wait_until(lambda: stats(key).running == 3, within=10, that="a third runs")
    assert row_of(cli("keys", *EXPORT).lines, key)[0] == "3/3*"

    (stopped,) = cli("limit", key, "0", *EXPORT, "--json").json
    assert (stopped["limit"], stopped["override"], stopped["held"]) == (0, 0, 3)
    assert row_of(cli("keys", *EXPORT).lines, key)[4:6] == ["limit", "0"]
    go(smoke.ledger, key)
    wait_until(lambda: stats(key).held == 2, within=10, that="one has ended")
    assert stats(key).waiting == 1
    assert "limit-zero" in cli("explain", results[3].id).out

    assert "no limit, set by hand" in cli("limit", key, "none", *EXPORT).out
    wait_until(lambda: not stats(key).waiting, within=10, that="none waits")
    assert (
        cli("limit", key, "reset", *EXPORT).lines[0].endswith("2, as the task declares")
    )
    assert stats(key).override is None
    finish(smoke, results, key)


def test_pause_and_resume_hold_for_all_tasks_that_share_keys(
    smoke: SmokeSetup, cli: CommandLine, key: str
) -> None:
    """Named by any of them; the words say which these are."""
    mail, text = (smoke.app.tasks[f"{MODULE}.{name}"] for name in ("mail", "text"))

    words = cli("pause", "--task", "mail")
    assert f"messages (shared by {MODULE}.mail, {MODULE}.text) is paused" in words.out
    results = [mail.delay(key), text.delay(key)]
    assert mail.control.stats(key).waiting == 2
    assert row_of(cli("keys", "--task", "messages").lines, key)[4] == "paused"
    assert "(paused)" in cli("explain", results[0].id).out

    assert cli("resume", "--task", "messages", "--json").json == [
        {"scope": "messages", "paused": False, "changed": True}
    ]
    wait_until(lambda: text.control.stats(key).running == 2, within=15, that="both run")
    finish(smoke, results, key)


def test_pause_and_resume_of_all(smoke: SmokeSetup, cli: CommandLine) -> None:
    """One line of JSON for each scope."""
    scopes = ["messages", f"{MODULE}.export", f"{MODULE}.report"]

    assert cli("pause", "--all", "--json").json == [
        {"scope": scope, "paused": True, "changed": True} for scope in scopes
    ]
    assert cli("pause", "--all").out.count("was paused already") == 3
    assert len(cli("resume", "--all").lines) == 3
    assert cli("resume", "--all").out.count("was not paused.") == 3


def test_a_blocked_key_is_listed_and_goes_on_when_it_is_unblocked(
    smoke: SmokeSetup, cli: CommandLine, key: str, export: Any, started: Any
) -> None:
    """With its reason, and the command that ends it."""
    results = started(3)

    words = cli("block", key, *EXPORT, "--for", "2h", "--reason", "it fails\nalways")
    assert (
        f"`celery -A tests.smoke.app bgtask unblock --task export {key}`" in words.out
    )
    left, _, _, named, *reason = row_of_block(cli("blocked").lines, key)
    assert (left, named, reason) == ("1h59m", key, ["it", r"fails\nalways"])
    (block,) = cli("blocked", *EXPORT, "--json").json
    assert (block["key"], block["reason"]) == (key, "it fails\nalways")
    assert 7000 < block["remaining"] <= 7200
    assert r"it fails\nalways" in cli("show", key, *EXPORT).out

    assert "blocked already" not in words.out
    assert "It was blocked already" in cli("block", key, *EXPORT).out
    (again,) = cli("block", key, *EXPORT, "--json").json
    assert (again["blocked"], again["changed"]) == (True, False)
    assert again["until"] is None
    assert row_of_block(cli("blocked").lines, key)[0] == "-"

    assert cli("unblock", key, *EXPORT, "--json").json == [
        {"scope": f"{MODULE}.export", "key": key, "was_blocked": True}
    ]
    assert "was not blocked" in cli("unblock", key, *EXPORT).out
    assert cli("blocked").out == "No key is blocked.\n"
    finish(smoke, results, key)
    assert all(result.state == "SUCCESS" for result in results)


def row_of_block(lines: list[str], key: str) -> list[str]:
    """Return the cells of the line of *key* among the blocked."""
    (row,) = [line for line in lines if f" {key} " in line]
    return row.split()


def test_cancel_ends_what_waits_and_stops_what_runs_if_told(
    smoke: SmokeSetup, cli: CommandLine, key: str, started: Any
) -> None:
    """Several at once; a body is stopped only with --terminate and --yes."""
    first, second, third, fourth = results = started(4)

    words = cli("cancel", third.id, fourth.id, "--reason", "not needed")
    assert words.lines == [
        f"{waiting.id}: cancelled; it was waiting and will not start"
        for waiting in (third, fourth)
    ]
    with pytest.raises(TaskCancelled, match="not needed"):
        third.get(timeout=5)
    assert "goes on; --terminate stops it" in cli("cancel", first.id).out

    refused = cli("cancel", first.id, "--terminate", code=2)
    assert "say --yes" in refused.err
    assert first.state != "REVOKED"
    (done,) = cli("cancel", first.id, "--terminate", "--yes", "--json").json
    assert (done["was"], done["stopped"]) == ("running", True)
    assert first.state == "REVOKED"
    finish(smoke, results, key)
    assert second.state == "SUCCESS"


def test_release_frees_the_slot_of_one_task(
    smoke: SmokeSetup, cli: CommandLine, key: str, export: Any, started: Any
) -> None:
    """The next starts; the one that held it is REVOKED."""
    first, second, third = started(3)

    assert "say --yes" in cli("release", key, first.id, *EXPORT, code=2).err
    assert export.control.stats(key).waiting == 1
    words = cli("release", key, first.id, *EXPORT, "--yes")
    assert words.out == f"{first.id}: its slot on key {key} is free\n"
    wait_until(lambda: smoke.ledger.starts(third.id), within=15, that="the next runs")
    assert first.state == "REVOKED"

    slots = f"{{{smoke.prefix}:{MODULE}.export}}:slots:ghostly"
    smoke.store.zadd(slots, {"ghost": time.time() * 1000})
    assert "is free" in cli("release", "ghostly", "ghost", *EXPORT, "--yes").out
    assert not smoke.store.exists(slots)

    other = cli("release", "another", second.id, *EXPORT, "--yes", "--json", code=1)
    assert other.json[0]["released"] is False
    finish(smoke, [second, third, first], key)


def test_check_and_redispatch_after_the_queue_was_lost(
    smoke: SmokeSetup, cli: CommandLine, key: str, export: Any
) -> None:
    """What check says can be typed as it stands, and puts the message back."""
    queue = f"{key}-nobody"
    lost = export.apply_async((key,), queue=queue)
    smoke.store.delete(queue)

    # Not before the message has had its time to arrive.
    wait_until(lambda: cli("check", code=None).code, within=40, that="check sees it")
    (finding,) = cli("check", "--json", code=1).json
    assert (finding["problem"], finding["subject"]) == ("message-lost", lost.id)
    assert finding["remedy"] == f"{PROGRAM} redispatch {lost.id}"
    assert finding["remedy"] in cli("check", code=1).out

    said = cli(*finding["remedy"].removeprefix(f"{PROGRAM} ").split())
    assert said.out == f"{lost.id}: published again\n"
    assert smoke.store.llen(queue) == 1
    cli("check")
    (done,) = cli("redispatch", lost.id, "--json").json
    assert (done["task_id"], done["published"], done["error"]) == (lost.id, True, None)
    lost.cancel()
    smoke.store.delete(queue)


def test_purge_ends_what_waits_and_nothing_else(
    smoke: SmokeSetup, cli: CommandLine, key: str, export: Any, started: Any
) -> None:
    """Only if it was agreed to."""
    first, second, *others = started(5)

    refused = cli("purge", key, *EXPORT, code=2)
    assert "End 3 waiting tasks" in refused.err
    assert "say --yes" in refused.err
    assert export.control.stats(key).waiting == 3

    assert cli("purge", key, *EXPORT, "--yes", "--json").json == [
        {"scope": f"{MODULE}.export", "purged": 3}
    ]
    assert [other.state for other in others] == ["REVOKED"] * 3
    assert cli("purge", key, *EXPORT).out.startswith("nothing waits")
    finish(smoke, [first, second], key)
    assert second.state == "SUCCESS"


def test_drain_publishes_all_that_waits(
    smoke: SmokeSetup, cli: CommandLine, key: str, export: Any, started: Any
) -> None:
    """Whatever the limits; only if it was agreed to."""
    results = started(4)

    assert "say --yes" in cli("drain", "--all", code=2).err
    assert export.control.stats(key).waiting == 2
    drained = cli("drain", "--all", "--yes", "--json").json
    assert {line["scope"]: line["drained"] for line in drained} == {
        f"{MODULE}.export": 2,
        f"{MODULE}.report": 0,
        "messages": 0,
    }
    assert cli("drain", *EXPORT, "--yes").out.startswith("nothing waits")
    finish(smoke, results, key)


def test_check_repair_and_sweep_of_a_healthy_system(
    smoke: SmokeSetup, cli: CommandLine, key: str, started: Any
) -> None:
    """They find nothing, with tasks running and waiting."""
    results = started(3)

    assert cli("check").out.startswith("nothing is wrong with messages, ")
    assert cli("check", "--json").out == ""
    assert cli("repair").out == "nothing is to be mended\n"
    assert cli("repair", "--json").out == ""
    assert {"scopes", "lost", "ended", "published"} == set(
        cli("sweep", "--json").json[0]
    )
    assert cli("sweep").out
    finish(smoke, results, key)


def test_check_names_the_damage_and_the_command_that_mends_it(
    smoke: SmokeSetup, cli: CommandLine, key: str
) -> None:
    """Exit code 1, and the remedy can be typed as it stands."""
    tag = f"{{{smoke.prefix}:messages}}:"
    smoke.store.zadd(f"{tag}leases", {"nobody": time.time() * 1000 + 60_000})

    words = cli("check", "--task", "messages", code=1)
    (finding,) = cli("check", "--json", code=1).json
    assert finding["remedy"] in words.out
    assert finding["remedy"].startswith("celery ")
    arguments = shlex.split(finding["remedy"])
    cli(*arguments[arguments.index("bgtask") + 1 :])
    cli("check")


def test_a_task_without_keys_has_one_without_a_name(
    smoke: SmokeSetup, cli: CommandLine
) -> None:
    """It is shown, and typed, as an empty word."""
    report = smoke.app.tasks[f"{MODULE}.report"]
    results = [report.delay(), report.delay()]
    wait_until(lambda: report.control.stats().running == 1, within=15, that="one runs")

    assert cli("keys", "--task", "report").lines[1].split()[-1] == "''"
    assert cli("show", "", "--json").json[0]["waiting"] == 1
    assert "2, set by hand" in cli("limit", "", "2", "--task", "report").out
    wait_until(lambda: report.control.stats().running == 2, within=15, that="both run")
    cli("limit", "", "reset", "--task", "report")
    finish(smoke, results, "report")
