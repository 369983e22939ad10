--[[
Force a slot free, whoever holds it.

A run is void from now on, and the task ends by a verdict. A task that is with
the broker stays valid: it starts where it arrives and finds room. An offer goes
to the end of the queue, and is made again in its turn.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  key          quoted
ARGV[2]  id           the task
ARGV[3]  verdict      how a run ends
ARGV[4]  dispatch_ms  lease of a task that is with the broker
ARGV[5]  grace_ms     until a granted task is published by somebody else
ARGV[6]  tombstone_ms how long a task that lost its slot is remembered

Returns  {was, granted...}: the state of the task that held a slot, "unknown" if
         there is no such task, "" if it held none; granted are {id, attempt, clock,
         start_by, finish_by, envelope, body} to publish and confirm.
Emits    what becomes available.
]]
-- include: records, verdicts

local key, id, verdict = ARGV[1], ARGV[2], ARGV[3]
local dispatch_ms, grace_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local tombstone_ms = tonumber(ARGV[6])

local now = server_ms()
local granted = {}
local function answer(was)
  local reply = { was }
  for _, value in ipairs(granted) do reply[#reply + 1] = value end
  return reply
end

if redis.call("ZREM", slots_of(key), id) == 0 then return answer("") end
local task = redis.call("HMGET", task_of(id), "state", "key", "attempt", "offer",
  "drained", "rank")
local state = task[2] == key and task[1] or "unknown"
if state == "dispatched" and task[4] and not task[5] then
  end_offer(id)
  redis.call("ZREM", LEASES, id)
  redis.call("HDEL", task_of(id), "claimer")
  park(id, key, tonumber(task[6] or 0), parked_size(id), now)
elseif state == "dispatched" then
  lapse(id, key, "lapsed", tombstone_ms)
elseif state == "running" then
  judge(id, verdict, false, now, dispatch_ms, grace_ms, granted)
elseif state == "stopping" then
  redis.call("ZREM", LEASES, id)
  redis.call("HSET", task_of(id), "state", "decided")
  if not redis.call("ZSCORE", OWED, id) then bury(id, task[3], tombstone_ms) end
elseif not task[1] then
  redis.call("ZREM", LEASES, id)
end
hand_on(key, now, dispatch_ms, grace_ms, granted)
return answer(state)
