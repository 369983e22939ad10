--[[
Publish a task again that is with the broker, or was and lost its slot there; announce
an offer again, to all.

The attempt stays the same: whichever message arrives first starts it. A task
that has lost its slot gets the next one that is free.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id           the task
ARGV[2]  limit        slots per key, for a key that is not in use; -1 for none
ARGV[3]  dispatch_ms  lease of a task that is with the broker
ARGV[4]  grace_ms     until a granted task is published by somebody else

Returns  {was, granted...}: "dispatched", "lapsed" or "delayed" if it was done,
         another state if there is nothing to do, "unknown", or "empty" if there is no
         message to publish; granted are {id, attempt, clock, start_by, finish_by,
         envelope, body} to publish and confirm.
Emits    what becomes available.
]]
-- include: hand_on

local id, limit = ARGV[1], ARGV[2]
local dispatch_ms, grace_ms = tonumber(ARGV[3]), tonumber(ARGV[4])

local now = server_ms()
local name = task_of(id)
local task = redis.call("HMGET", name, "state", "key", "body", "offer", "claimer")
local state, key = task[1], task[2]
if not state then return { "unknown" } end
local away = state == "dispatched" or state == "lapsed" or state == "delayed"
if not away then return { state } end
if not task[3] then return { "empty" } end

local granted = {}
if task[4] and state == "dispatched" then
  -- What is claimed is about to start, or its claim runs out.
  if not task[5] then
    renew_round(id, now)
    dispatch(id, key, now, dispatch_ms, grace_ms, granted)
  end
  return { state, unpack(granted) }
end
redis.call("HSET", name, "copies", 1)
if state == "lapsed" then
  redis.call("PERSIST", name)
  redis.call("ZREM", OUTBOX, id)
  redis.call("HSETNX", LIMITS, key, limit)
  park(id, key, 0, parked_size(id), now, true)
  watch(id)
  hand_on(key, now, dispatch_ms, grace_ms, granted)
else
  if state == "dispatched" then hold(id, key, now, dispatch_ms) end
  -- A retry with a delay goes through the broker, though it be offered afterwards.
  post(id, now, grace_ms, granted)
end
local reply = { state }
for _, value in ipairs(granted) do reply[#reply + 1] = value end
return reply
