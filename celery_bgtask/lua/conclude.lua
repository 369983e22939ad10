--[[
Note that all that a verdict entails has been done.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id           the task
ARGV[2]  attempt      that was judged
ARGV[3]  tombstone_ms how long it is remembered that this attempt has ended
ARGV[4]  event        JSON, as events.py has it: how it has ended
ARGV[5]  keep         events that are kept for who comes late
ARGV[6]  ttl_ms       for how long
ARGV[7]  owed         1: nobody can look the result up

Returns  1, or 0 if it had been noted before.
Emits    the end of the task, unless it was told before.
]]
-- include: records, events

local id, attempt, tombstone_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local event, owed = ARGV[4], ARGV[7] == "1"
local keep, ttl_ms = tonumber(ARGV[5]), tonumber(ARGV[6])

local task = redis.call("HMGET", task_of(id), "state", "attempt")
if task[2] ~= attempt or redis.call("ZREM", OWED, id) == 0 then return 0 end
if redis.call("HSETNX", task_of(id), "told", 1) == 1 then
  tell_end(id, event, keep, ttl_ms, owed)
end
if task[1] == "decided" then bury(id, attempt, tombstone_ms) end
return 1
