"""Lines of the Lua that are wrong, and the checks of the machine that find them."""

from __future__ import annotations

from dataclasses import dataclass

from tests.property.machine import ScriptsMachine
from tests.property.steering import SteeredMachine


__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    """One line that is wrong.

    Attributes:
        name: What the script does wrong.
        file: The script.
        line: As it is; stands once in the file.
        wrong: As it is in the mutant.
        found_by: The checks that may find it.
        machine: That finds it.
        rare: Whether it takes thousands of steps to meet it; with
            ``BGTASK_TEST_SLOW=1``, as in ``make mutants``, only.
    """

    name: str
    file: str
    line: str
    wrong: str
    found_by: str
    machine: type[ScriptsMachine] = ScriptsMachine
    rare: bool = False


MUTANTS = (
    Mutant(
        "release ignores the token",
        "release",
        'local mine = token ~= "" and task[2] == token',
        'local mine = token ~= ""',
        "I3",
    ),
    Mutant(
        "release keeps the slot",
        "release",
        'redis.call("HSET", name, "state", "ended")',
        'redis.call("HSET", name, "state", "ended")'
        ' redis.call("ZADD", slots_of(key), "INCR", now, id)',
        "I1|I3|I4",
    ),
    Mutant(
        "release hands nothing on",
        "release",
        "hand_on(key, now, dispatch_ms, grace_ms, granted)\nreturn answer",
        "forget_idle(key)\nreturn answer",
        "I6",
    ),
    Mutant(
        "settle forgets that copies are left",
        "settle",
        "bury(id, attempt, (remember or task[5]) and tombstone_ms or 0)",
        "bury(id, attempt, 0)",
        "I3|I17",
    ),
    Mutant(
        "promote does not look for room",
        "includes/hand_on",
        "while has_room(key) and",
        "while",
        "I1",
    ),
    Mutant(
        "promote takes the last instead of the first",
        "includes/hand_on",
        '"ZPOPMIN"',
        '"ZPOPMAX"',
        "FIFO",
    ),
    Mutant(
        "a run cannot be told from what is on its way",
        "includes/slots",
        'redis.call("ZADD", slots_of(key), -now, id)',
        'redis.call("ZADD", slots_of(key), now, id)',
        "counts",
    ),
    Mutant(
        "who comes last is put first",
        "includes/waiting",
        "(tonumber(last[2]) or low) + 1, id)",
        "low, id)",
        "FIFO",
    ),
    Mutant(
        "a rank is ignored",
        "includes/waiting",
        "(tonumber(last[2]) or low) + 1, id)",
        'redis.call("ZCARD", waiting) + 1, id)',
        "FIFO",
    ),
    Mutant(
        "parked bytes are not counted",
        "includes/waiting",
        'redis.call("INCRBY", WAITING_BYTES, bytes)',
        "bytes = bytes + 0",
        "bytes",
    ),
    Mutant(
        "what leaves the queue is still counted",
        "includes/waiting",
        "forget_parked(parked_size(id))",
        "parked_size(id)",
        "bytes",
    ),
    Mutant(
        "a limit is never forgotten",
        "includes/slots",
        'redis.call("HDEL", LIMITS, key)',
        "return",
        "I17",
    ),
    Mutant(
        "a lapsed task keeps its slot",
        "includes/hand_on",
        'redis.call("ZREM", slots_of(key), id)\n  redis.call("ZREM", LEASES, id)\n'
        '  redis.call("HSET", task_of(id), "state", state)',
        'redis.call("ZREM", LEASES, id)\n'
        '  redis.call("HSET", task_of(id), "state", state)',
        "I4",
    ),
    Mutant(
        "a lapsed task is remembered for ever",
        "includes/hand_on",
        'redis.call("PEXPIRE", task_of(id), tombstone_ms)',
        "return",
        "I17",
    ),
    Mutant(
        "an id that is known takes a second slot",
        "submit",
        'if state and state ~= "lapsed" and state ~= "ended" then',
        "if false then",
        "I2|I3|I5|I11|counts",
    ),
    Mutant(
        "a repeated submission is another one",
        "submit",
        "if state and task[5] == nonce then",
        "if false then",
        "repeat|I11",
    ),
    Mutant(
        "a raised limit promotes nobody",
        "submit",
        "if waits then promote(",
        "if false then promote(",
        "I6",
    ),
    Mutant(
        "two copies start",
        "accept",
        'if task[4] == token then return answer("started") end',
        'if task[4] then return answer("started") end',
        "I2|I3",
    ),
    Mutant(
        "a tombstone is not looked at",
        "accept",
        'if attempt <= ended then return answer("ended") end',
        "",
        "I3|I5|no-op",
    ),
    Mutant(
        "an arrival does not look for room",
        "accept",
        'if state == "dispatched" or has_room(key) then return start() end',
        "if true then return start() end",
        "I1",
    ),
    Mutant(
        "a start may expire",
        "accept",
        'redis.call("PERSIST", name)',
        "",
        "I5",
    ),
    Mutant(
        "a start comes after its deadline",
        "accept",
        'if due and tonumber(due) <= now then return answer("late") end',
        "",
        "I13",
        rare=True,
    ),
    Mutant(
        "withdraw ignores the attempt",
        "withdraw",
        "and task[2] == attempt then",
        "then",
        "no-op|I5",
    ),
    Mutant(
        "withdraw hands nothing on",
        "withdraw",
        "hand_on(task[3], server_ms(), dispatch_ms, grace_ms, granted)",
        "forget_idle(task[3])",
        "I6",
        rare=True,
    ),
    Mutant(
        "renew does not tell what is lost",
        "renew",
        'redis.call("HDEL", runs, id)',
        "token = nil",
        "lost",
        rare=True,
    ),
    Mutant(
        "sweep takes silence for death",
        "sweep",
        "if now - last > lease_ms / 3 then",
        "if false then",
        "silence",
    ),
    Mutant(
        "two sweep at a time",
        "sweep",
        '":sweeping", worker, "NX", "PX", interval_ms) then',
        '":sweeping", worker, "PX", interval_ms) then',
        "sweep",
    ),
    Mutant(
        "sweep hands nothing on",
        "sweep",
        "if key then hand_on(key, now, dispatch_ms, grace_ms, granted) end",
        "if key then forget_idle(key) end",
        "I6",
    ),
    Mutant(
        "sweep publishes nothing",
        "sweep",
        "post(id, now, grace_ms, granted)\n  else",
        'redis.call("ZADD", OUTBOX, now + grace_ms, id)\n  else',
        "outbox",
    ),
    Mutant(
        "a verdict is owed to nobody",
        "includes/verdicts",
        'redis.call("ZADD", OWED, now, id)',
        "",
        "owed|I13",
    ),
    Mutant(
        "a verdict comes before its time",
        "includes/verdicts",
        "start_by and start_by <= now then",
        "start_by then",
        "I13|no-op",
        rare=True,
    ),
    Mutant(
        "a blocked key takes submissions",
        "submit",
        "if first and is_blocked(key) then",
        "if false then",
        "block",
        SteeredMachine,
    ),
    Mutant(
        "a block outlives its time",
        "includes/slots",
        "return ends and tonumber(ends) > server_ms()",
        "return ends",
        "block|I6|counts|strike",
        SteeredMachine,
    ),
    Mutant(
        "sweeps leave blocks that have ended",
        "sweep",
        "if not goes_on then forget_block(key) end",
        "",
        "block",
        SteeredMachine,
    ),
    Mutant(
        "a sweep starts nothing when a block ends",
        "sweep",
        "if #granted < GRANT * BATCH then\n"
        "    hand_on(key, now, dispatch_ms, grace_ms, granted)\n"
        "    local goes_on = has_room(key) and"
        ' redis.call("EXISTS", waiting_of(key)) == 1',
        "if #granted < GRANT * BATCH then\n    local goes_on = false",
        "I6",
        SteeredMachine,
    ),
    Mutant(
        "what is said of a limit is not heard",
        "includes/slots",
        "limit = said[2] or limit",
        "",
        "I1|I6|counts|closed",
        SteeredMachine,
    ),
    Mutant(
        "a pause is not heard",
        "includes/slots",
        "if said[1] or is_blocked(key) then return 0 end",
        "if is_blocked(key) then return 0 end",
        "I1|I6|counts|closed",
        SteeredMachine,
    ),
    Mutant(
        "what arrives starts, though its key has no slots",
        "accept",
        'local steps_back = state == "dispatched" and is_closed(key) and not task[6]',
        "local steps_back = false",
        "closed",
        SteeredMachine,
        rare=True,
    ),
    Mutant(
        "who gives up a slot waits behind the others",
        "accept",
        'park(id, key, rank, parked_size(id), now, state == "dispatched")',
        "park(id, key, rank, parked_size(id), now)",
        "front",
        SteeredMachine,
        rare=True,
    ),
    Mutant(
        "who waits in a closed key keeps its slot",
        "accept",
        'end_offer(id)\n    redis.call("ZREM", slots_of(key), id)',
        "end_offer(id)",
        "I4|damage",
        SteeredMachine,
        rare=True,
    ),
    Mutant(
        "a raised limit starts nobody",
        "set_limit",
        "hand_on(key, server_ms(), dispatch_ms, grace_ms, granted)",
        "forget_idle(key)",
        "I6",
        SteeredMachine,
        rare=True,
    ),
    Mutant(
        "an unblocked key starts nobody",
        "unblock",
        "hand_on(key, server_ms(), dispatch_ms, grace_ms, granted)",
        "forget_idle(key)",
        "I6",
        SteeredMachine,
    ),
    Mutant(
        "a pause that ends starts nobody",
        "resume",
        "grant_page(cursor, has_room,",
        "grant_page(cursor, function() return false end,",
        "I6",
        SteeredMachine,
        rare=True,
    ),
    Mutant(
        "one strike too many",
        "strike",
        'if redis.call("ZCARD", strikes) <= threshold then',
        'if redis.call("ZCARD", strikes) <= threshold + 1 then',
        "strike",
        SteeredMachine,
    ),
    Mutant(
        "old strikes count",
        "strike",
        'redis.call("ZREMRANGEBYSCORE", strikes, "-inf", now - interval_ms)',
        "",
        "strike",
        SteeredMachine,
    ),
    Mutant(
        "what is with the broker cannot be published again",
        "confirm",
        'local kept = task[2] or (keep_sent and task[3] == "dispatched")',
        "local kept = task[2]",
        "sent",
        SteeredMachine,
    ),
    Mutant(
        "what was published again leaves no tombstone",
        "redispatch",
        'redis.call("HSET", name, "copies", 1)',
        "",
        "again",
        SteeredMachine,
    ),
    Mutant(
        "what was drained is parked again",
        "accept",
        'local steps_back = state == "dispatched" and is_closed(key) and not task[6]',
        'local steps_back = state == "dispatched" and is_closed(key)',
        "drain",
        SteeredMachine,
        rare=True,
    ),
    Mutant(
        "a run whose slot was forced free goes on",
        "free",
        "judge(id, verdict, false, now, dispatch_ms, grace_ms, granted)",
        "judge(id, verdict, true, now, dispatch_ms, grace_ms, granted)",
        "I4|damage|free",
        SteeredMachine,
    ),
    Mutant(
        "a repair gives every task a slot",
        "repair",
        "  if holds then\n    hold_again()",
        '  if holds or state == "waiting" then\n    hold_again()',
        "no-op|damage|I1",
        SteeredMachine,
    ),
    Mutant(
        "a purge ends only the first",
        "purge",
        'ipairs(redis.call("ZRANGE", waiting_of(key), 0, BATCH - 1)) do',
        "ipairs({}) do",
        "purge",
        SteeredMachine,
    ),
)
