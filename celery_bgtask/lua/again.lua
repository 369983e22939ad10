--[[
Run a task again whose body has ended, but whose result nobody has stored.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id           the task
ARGV[2]  attempt      that was judged
ARGV[3]  limit        slots per key, for a key that is not in use; -1 for none
ARGV[4]  dispatch_ms  lease of a task that is with the broker
ARGV[5]  grace_ms     until a granted task is published by somebody else

Returns  granted: {id, attempt, clock, start_by, finish_by, envelope, body} to
         publish and confirm.
Emits    what becomes available.
]]
-- include: hand_on

local id, attempt, limit = ARGV[1], ARGV[2], ARGV[3]
local dispatch_ms, grace_ms = tonumber(ARGV[4]), tonumber(ARGV[5])

local now = server_ms()
local granted = {}
local name = task_of(id)
local task = redis.call("HMGET", name, "state", "attempt", "key", "rank")
local key = task[3]
local judged = task[1] == "decided" and task[2] == attempt
if judged and redis.call("ZREM", OWED, id) == 1 then
  redis.call("HDEL", name, "verdict", "token", "worker")
  redis.call("HINCRBY", name, "lost", 1)
  redis.call("HINCRBY", name, "attempt", 1)
  redis.call("HSETNX", LIMITS, key, limit)
  park(id, key, tonumber(task[4] or 0), parked_size(id), now)
  watch(id)
  hand_on(key, now, dispatch_ms, grace_ms, granted)
end
return granted
