--[[
Tell who follows a task that it has ended by a verdict whose result is stored.

Whoever stores the result of a judged task calls this: a client that waits for it,
a worker that concludes it; and who ran a task that the store has forgotten. Only
the first is heard.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id      the task
ARGV[2]  event   JSON, as events.py has it
ARGV[3]  keep    events that are kept for who comes late
ARGV[4]  ttl_ms  for how long
ARGV[5]  owed    1: nobody can look the result up
ARGV[6]  reply   of the message, for a task that the store does not know

Returns  1, or 0 if it was told before or has not ended.
Emits    the end of the task.
]]
-- include: events

local id, event = ARGV[1], ARGV[2]
local keep, ttl_ms, owed = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5] == "1"
local reply = ARGV[6]

local name = task_of(id)
local state = redis.call("HGET", name, "state")
if state and state ~= "decided" and state ~= "stopping" then return 0 end
if state and redis.call("HSETNX", name, "told", 1) == 0 then return 0 end
tell_end(id, event, keep, ttl_ms, owed, reply)
return 1
