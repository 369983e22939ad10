"""Lines of the package that are wrong, and the test that must fail for each.

The Lua that the model drives is in ``tests/property``; here is the Python, and Lua
of which the model knows nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


__all__ = ["DEFECTS", "EQUIVALENT", "Defect"]


@dataclass(frozen=True)
class Defect:
    """One place that is wrong.

    Attributes:
        name: What goes wrong.
        file: In the package.
        line: As it is; stands once in the file.
        wrong: As it is with the defect.
        test: That must fail; of an equivalent one: why none can.
    """

    name: str
    file: str
    line: str
    wrong: str
    test: str


SUBMISSION = "tests/integration/test_submission.py::"
OUTBOX = "tests/integration/test_outbox.py::"
RUN = "tests/unit/test_run.py::"
AGENT = "tests/integration/test_agent.py::"
LISTENER = "tests/integration/test_listener.py::"
FAULTS = "tests/integration/test_following_faults.py::"
LINK = "tests/integration/test_link.py::"
OFFERS = "tests/smoke/test_offers.py::"
KILLS = "tests/smoke/test_kills.py::"

DEFECTS = (
    # Admission
    Defect(
        "a broker that refuses keeps the slot",
        "admission.py",
        "            self._withdraw(scripts, answer.attempt)\n            raise",
        "            raise",
        SUBMISSION + "test_a_broker_that_refuses_gives_the_slot_back",
    ),
    Defect(
        "a payload may have any size",
        "packing.py",
        "    if len(raw) > max_size:",
        "    if len(raw) < 0:",
        SUBMISSION + "test_the_payload_is_measured_as_serialized",
    ),
    Defect(
        "a submission leaves what it has promoted to a sweep",
        "admission.py",
        "outbox.publish(self.task.app, scripts, answer.granted, by=self.producer)",
        "pass",
        SUBMISSION + "test_a_higher_limit_promotes_what_waits",
    ),
    Defect(
        "a task is parked without its message",
        "admission.py",
        '"message": message if self._may_be_stored(terms, limit) else NOTHING',
        '"message": NOTHING',
        SUBMISSION + "test_a_parked_message_is_published_as_it_was",
    ),
    Defect(
        "an ETA takes a slot at once",
        "admission.py",
        "return max(0.0, float((when - datetime.now(timezone.utc)).total_seconds()))",
        "return 0.0",
        SUBMISSION + "test_an_eta_takes_no_slot",
    ),
    Defect(
        "a full key refuses with nothing said",
        "admission.py",
        'if answer.status in {"refused", "crowded"}:',
        'if answer.status in {"refused"}:',
        SUBMISSION + "test_too_many_may_not_wait",
    ),
    Defect(
        "keys forget the defaults of a call",
        "taskkey.py",
        "        bound.apply_defaults()\n",
        "",
        "tests/unit/test_taskkey.py::test_the_key_is_an_argument_as_bound",
    ),
    Defect(
        "braces in a key split the hash tag",
        "keys.py",
        'PLAIN = "/:@+=,;!$&()|~"',
        'PLAIN = "/:@+=,;!$&()|~{}"',
        "tests/unit/test_keys.py",
    ),
    # Outbox
    Defect(
        "what was published is never confirmed",
        "outbox.py",
        "            scripts.confirm(sent)",
        "            pass",
        OUTBOX + "test_a_published_and_confirmed_task_is_not_published_again",
    ),
    Defect(
        "what could not be sent is confirmed",
        "outbox.py",
        "        else:\n            sent.append(task)",
        "        sent.append(task)",
        OUTBOX + "test_a_broker_that_is_away_leaves_it_to_a_sweep",
    ),
    Defect(
        "a sweep does not publish what it was given",
        "worker/sweeper.py",
        "    if swept.granted:\n",
        "    if not swept:\n",
        OUTBOX + "test_who_dies_before_publishing_is_replaced_by_a_sweep",
    ),
    # Acceptance
    Defect(
        "a copy runs though the store said no",
        "running/acceptance.py",
        '        if status != "started":\n            logger',
        '        if status == "late":\n            logger',
        OUTBOX + "test_who_dies_before_confirming_makes_a_copy_that_does_not_run",
    ),
    Defect(
        "a store that is away ends the task instead of putting it back",
        "running/acceptance.py",
        "            return ignored(self._put_back(arrival, args, kwargs, exc))",
        '            return ignored("the store is away")',
        "tests/smoke/test_store_down.py",
    ),
    # Run
    Defect(
        "a stale run stores its result",
        "running/run.py",
        "        if not self.release():\n            raise self._stale()\n        ret",
        "        self.release()\n        ret",
        RUN + "test_a_stale_run_stores_nothing",
    ),
    Defect(
        "an early ack is requeued",
        "running/run.py",
        "if not isinstance(exc, Reject) or not self.task.acks_late:",
        "if not isinstance(exc, Reject):",
        RUN + "test_requeueing_an_early_ack_is_an_end",
    ),
    Defect(
        "an interruption while releasing is swallowed",
        "running/run.py",
        "        if interruption is not None:\n            raise interruption\n",
        "",
        RUN + "test_an_interruption_while_releasing_comes_afterwards",
    ),
    Defect(
        "releasing gives up at once",
        "running/run.py",
        "if time.monotonic() > give_up:\n                    logger.error(",
        "if time.monotonic():\n                    logger.error(",
        RUN + "test_releasing_waits_for_a_store_that_is_away",
    ),
    Defect(
        "an exit keeps the slot",
        "running/run.py",
        "            if exc.code == KILLED and self.worker:",
        "            if self.worker:",
        RUN + "test_an_exit_gives_the_slot_on",
    ),
    Defect(
        "a hook that raises keeps the slot",
        "running/run.py",
        "        if self.stage not in OVER:  # the body was never reached\n"
        "            self.release()\n",
        "",
        RUN + "test_a_hook_that_raises_before_the_body_gives_the_slot_on",
    ),
    Defect(
        "a body that runs is entered again by whatever it calls",
        "running/run.py",
        "            self.stage is Stage.ACCEPTED\n            and",
        "            True\n            and",
        RUN + "test_a_users_call_may_call_super",
    ),
    # Agent and endings
    Defect(
        "nobody renews",
        "worker/agent.py",
        "self._extension.scripts(scope).renew(self.worker_id, ids)",
        "()",
        AGENT + "test_a_lease_is_renewed_as_long_as_the_body_runs",
    ),
    Defect(
        "a lost lease is not told",
        "worker/agent.py",
        "                tell_lost(tasks[lost.task_id], lost.task_id, lost.key)",
        "                pass",
        AGENT + "test_a_lease_that_is_lost_is_told_and_its_result_is_dropped",
    ),
    Defect(
        "the agent stops before its last run",
        "worker/agent.py",
        "return not self._endings and not active_tasks(self._extension.app)",
        "return True",
        "tests/smoke/test_death.py::test_a_warm_shutdown_keeps_the_leases_to_the_end",
    ),
    Defect(
        "a killed body gives its slot on while it cleans up",
        "worker/endings.py",
        "            if ending.pid is not None and not is_gone(ending.pid):",
        "            if ending.pid == 0:",
        KILLS + "test_a_terminated_body_keeps_its_slot_until_it_is_gone",
    ),
    Defect(
        "a killed process keeps its slot",
        "worker/endings.py",
        'released = scripts.release(task_id, token="", **run)',
        'released = scripts.release(task_id, token="", requeue=True, **run)',
        KILLS + "test_a_killed_pool_process_frees_the_slot",
    ),
    Defect(
        "who dies before the start keeps the slot",
        "worker/endings.py",
        "            if released.status == STALE:",
        "            if released.status == 0:",
        "tests/smoke/test_windows.py::"
        "test_a_process_that_dies_around_its_body_gives_the_slot_on",
    ),
    Defect(
        "errbacks of a verdict are not called",
        "conclusion.py",
        "        call_errbacks=state == states.FAILURE,",
        "        call_errbacks=False,",
        "tests/smoke/test_accept_timeout.py::"
        "test_errbacks_chords_and_chains_are_concluded_once_by_a_worker",
    ),
    # Who follows
    Defect(
        "live events hide what the log has",
        "results/listener.py",
        "                    if follower.caught_up:",
        "                    if follower:",
        LISTENER + "test_who_comes_while_reports_are_made_misses_none",
    ),
    Defect(
        "an event is told twice",
        "results/follower.py",
        "        if number > self._seen or self._over:",
        "        if number or self._over:",
        LISTENER + "test_a_lost_connection_loses_nothing",
    ),
    Defect(
        "a callback that exits ends the listener",
        "results/follower.py",
        "except BaseException:  # also sys.exit(): the thread is everybody's",
        "except Exception:",
        FAULTS + "test_a_callback_that_raises_anything_harms_nobody",
    ),
    Defect(
        "what cannot be read ends the listener",
        "results/listener.py",
        "except Exception:  # noqa: BLE001 - another version's, or somebody else's\n",
        "except KeyError:\n",
        FAULTS + "test_what_cannot_be_read_is_left_out",
    ),
    Defect(
        "a channel stays subscribed",
        "results/subscriptions.py",
        '            self._send("UNSUBSCRIBE", channel)',
        "            pass",
        LISTENER + "test_two_followers_of_a_task_come_and_go",
    ),
    Defect(
        "after a loss only what is new is heard",
        "results/listener.py",
        "            self._fresh = list(self._all())",
        "            self._fresh = list(self._fresh)",
        LISTENER + "test_a_lost_connection_loses_nothing",
    ),
    # Progress
    Defect(
        "a report that was held back is lost at the end",
        "running/progress.py",
        "            try:\n                self._send()\n"
        "            except StoreUnavailable:\n                raise\n",
        "            try:\n                pass\n"
        "            except StoreUnavailable:\n                raise\n",
        "tests/unit/test_progress.py::test_the_last_report_goes_out_before_the_end",
    ),
    Defect(
        "a tight loop reports without a bound",
        "running/progress.py",
        "        if self._tokens < 1:",
        "        if self._tokens < -1e9:",
        "tests/unit/test_progress.py::test_a_tight_loop_is_bounded",
    ),
    Defect(
        "PROGRESS replaces a final state",
        "running/mirror.py",
        "        if final:\n            return\n",
        "",
        "tests/integration/test_mirror.py::test_a_final_state_stays",
    ),
    Defect(
        "a stale run reports",
        "lua/report.lua",
        'if task[1] ~= "running" or task[2] ~= token then',
        'if task[1] ~= "running" then',
        "tests/property/test_reports.py",
    ),
    Defect(
        "an end is told twice",
        "lua/conclude.lua",
        'if redis.call("HSETNX", task_of(id), "told", 1) == 1 then',
        'if redis.call("HSET", task_of(id), "told", 1) then',
        "tests/property/test_reports.py",
    ),
    # Offers
    Defect(
        "IGNORE is not heard",
        "worker/availability.py",
        "return all(answer is not IGNORE for _, answer in answers)",
        "return True",
        OFFERS + "test_a_worker_that_ignores_an_offer_never_runs_it",
    ),
    Defect(
        "a worker claims more than it can start",
        "worker/availability.py",
        "        elif self._intake.free <= 0:",
        "        elif self._intake.free <= -99:",
        OFFERS + "test_a_worker_takes_no_more_than_it_can_start",
    ),
    Defect(
        "the broker delivers as if no place were taken",
        "worker/intake.py",
        "        self._lower_prefetch(consumer, message)\n",
        "",
        OFFERS + "test_prefetch_is_lower_while_offers_run",
    ),
    # The way to the store
    Defect(
        "scripts that were flushed are not sent again",
        "store.py",
        "            except NoScriptError:\n                self._loaded.clear()\n",
        "            except NoScriptError:\n",
        LINK + "test_scripts_that_were_flushed_are_sent_again",
    ),
    Defect(
        "a child writes to its parent's connection",
        "store.py",
        "    for link in list(_links):\n        link.reset()",
        "    for link in list(_links):\n        link.db",
        LINK + "test_a_forked_child_has_a_connection_of_its_own",
    ),
)

#: No test can tell these from the right line, and why.
EQUIVALENT = (
    Defect(
        "a hand-off does not ask for room before it asks who waits",
        "lua/free.lua",
        "hand_on(key, now, dispatch_ms, grace_ms, granted)\nreturn answer(state)",
        "promote(key, now, dispatch_ms, grace_ms, granted)\n"
        "forget_idle(key)\nreturn answer(state)",
        "hand_on is promote and forget_idle",
    ),
    Defect(
        "the run of a task is that of any task it calls",
        "running/run.py",
        "            and not request.called_directly",
        "",
        "what is called directly has a request of its own, without an id: the line "
        "before sees that, too",
    ),
    Defect(
        "a wake of the event loop is not told apart from the next one",
        "worker/intake.py",
        'os.write(self._pipe[1], b"\\0")',
        'os.write(self._pipe[1], b"\\1")',
        "what is in the pipe is never looked at",
    ),
    Defect(
        "leases are renewed more often",
        "worker/agent.py",
        "RENEWALS_PER_LEASE = 3",
        "RENEWALS_PER_LEASE = 4",
        "a lease is renewed in time either way: only the margin differs",
    ),
)
