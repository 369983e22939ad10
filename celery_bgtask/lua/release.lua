--[[
End a run: its slot goes to the key's next waiting task.

The run is known by its token, or, where the process that had the token is
gone, by its worker and attempt. Ending it again changes nothing. If the next
attempt was submitted meanwhile, it takes over.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id           the task
ARGV[2]  token        of the run, or ""
ARGV[3]  worker       that runs it
ARGV[4]  attempt      that it runs
ARGV[5]  requeue      1: the same attempt comes again, the slot is kept
ARGV[6]  dispatch_ms  lease of a task that is with the broker
ARGV[7]  grace_ms     until a granted task is published by somebody else
ARGV[8]  tombstone_ms how long a task that lost its slot is remembered

Returns  {status, granted...}; status is "released", "stale" (the run had been
         ended: store nothing, start nothing) or "unknown" (the store has lost
         its memory); granted are {id, attempt, clock, start_by, finish_by, envelope,
         body} to publish and confirm, the task's own next attempt among them.
Emits    what becomes available.
Keeps    one release per token.
]]
-- include: attempts, records

local id, token, worker, attempt = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local requeue = ARGV[5] == "1"
local dispatch_ms, grace_ms = tonumber(ARGV[6]), tonumber(ARGV[7])
local tombstone_ms = tonumber(ARGV[8])

local now = server_ms()
local name = task_of(id)
local task = redis.call("HMGET", name, "state", "token", "worker", "attempt", "key",
  "copies", "body", "past", "offer", "next_key")
local state, key = task[1], task[5]

if not state then
  local buried = redis.call("EXISTS", tombstone_of(id)) == 1
  return { buried and "stale" or "unknown" }
end
local granted = {}
local function answer(status)
  local reply = { status }
  for _, value in ipairs(granted) do reply[#reply + 1] = value end
  return reply
end

if token ~= "" and task[8] == token then  -- a reply was lost
  if redis.call("ZSCORE", OUTBOX, id) then post(id, now, grace_ms, granted) end
  return answer("released")
end
local mine = token ~= "" and task[2] == token
local worked = token == "" and task[3] == worker and task[4] == attempt
if not (mine or worked) then return { "stale" } end
if state == "ended" then return { "released" } end
if state ~= "running" and state ~= "stopping" then return { "stale" } end

if state == "stopping" then
  redis.call("HDEL", worker_of(task[3]), id)
  redis.call("ZREM", slots_of(key), id)
  redis.call("ZREM", LEASES, id)
  redis.call("HSET", name, "state", "decided")
  if not redis.call("ZSCORE", OWED, id) then bury(id, attempt, tombstone_ms) end
elseif requeue then
  redis.call("HDEL", worker_of(task[3]), id)
  end_token(name)
  redis.call("HSET", name, "state", "dispatched")
  watch(id)
  if task[9] or (task[6] and task[7]) then
    renew_round(id, now)
    dispatch(id, key, now, dispatch_ms, grace_ms, granted)
  else
    hold(id, key, now, dispatch_ms)
  end
elseif task[10]
  and succeed(id, key, now, dispatch_ms, grace_ms, tombstone_ms, granted) then
  redis.call("HDEL", worker_of(task[3]), id)
else
  redis.call("ZREM", slots_of(key), id)
  redis.call("ZREM", DEADLINES, id)
  redis.call("HSET", name, "state", "ended")
end
hand_on(key, now, dispatch_ms, grace_ms, granted)
return answer(state == "stopping" and "stale" or "released")
