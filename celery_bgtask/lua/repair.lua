--[[
Put right what the store has of a key, and of a task: the task's record counts.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  key          in whose slots or queue the task was found, quoted, or "*" for
                      the one of its record
ARGV[2]  id           the task, or "" for the key alone
ARGV[3]  limit        slots per key, as declared; -1 for none
ARGV[4]  lease_ms     lease of a running task
ARGV[5]  dispatch_ms  lease of a task that is with the broker
ARGV[6]  grace_ms     until a granted task is published by somebody else
ARGV[7]  tombstone_ms how long a worker's list of runs is kept unrenewed

Returns  granted: {id, attempt, clock, start_by, finish_by, envelope, body} to
         publish and confirm.
Emits    what becomes available.
]]
-- include: verdicts

local found, id, limit = ARGV[1], ARGV[2], ARGV[3]
local lease_ms, dispatch_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local grace_ms, tombstone_ms = tonumber(ARGV[6]), tonumber(ARGV[7])

local now = server_ms()
local granted = {}
local name = task_of(id)
local task = redis.call("HMGET", name, "state", "key", "attempt", "worker", "token",
  "verdict", "body", "rank", "offer", "claimer", "drained")
local state, key, verdict = task[1], task[2], task[6]

local function leave(place)
  redis.call("ZREM", slots_of(place), id)
  unpark(id, place)
end

-- Its lease is the usual one, if it has none.
local function lease(ms)
  redis.call("ZADD", LEASES, "NX", now + ms, id)
end

local function hold_again()
  local is_run = state ~= "dispatched"
  redis.call("ZREM", waiting_of(key), id)
  redis.call("ZADD", slots_of(key), "NX", is_run and -now or now, id)
  lease(is_run and lease_ms or dispatch_ms)
  if is_run and task[4] and task[5] then
    local run = task[5] .. " " .. task[3] .. " " .. key
    redis.call("HSET", worker_of(task[4]), id, run)
    redis.call("PEXPIRE", worker_of(task[4]), tombstone_ms)
  end
end

-- What is offered, claimed by nobody and not with the broker must be on offer.
local function offer_again()
  local is_missing = task[9] and not (task[10] or task[11])
  if is_missing and not redis.call("ZSCORE", offers_of(task[9]), id) then
    dispatch(id, key, now, dispatch_ms, grace_ms, granted)
  end
end

local function wait_again()
  redis.call("ZREM", slots_of(key), id)
  redis.call("ZREM", LEASES, id)
  if not task[7] then
    judge(id, "lost", false, now, dispatch_ms, grace_ms, granted)
  elseif not redis.call("ZSCORE", waiting_of(key), id) then
    park(id, key, tonumber(task[8] or 0), parked_size(id), now)
  end
end

local function put_right()
  local holds = state == "dispatched" or state == "running" or state == "stopping"
  if holds then
    hold_again()
    if state == "dispatched" then offer_again() end
  elseif state == "waiting" then
    wait_again()
  else
    leave(key)
    if state == "ended" then lease(lease_ms) else redis.call("ZREM", LEASES, id) end
  end
  local is_away = state == "dispatched" or state == "lapsed" or state == "delayed"
  if not (is_away and task[7]) then redis.call("ZREM", OUTBOX, id) end
  if state == "ended" or redis.call("HEXISTS", name, "verdict") == 1 then
    redis.call("ZREM", DEADLINES, id)
  else
    watch(id)
  end
  if verdict then
    redis.call("ZADD", OWED, "NX", now, id)
  elseif redis.call("HEXISTS", name, "verdict") == 0 then
    redis.call("ZREM", OWED, id)
  end
end

local function serve(place)
  if redis.call("EXISTS", slots_of(place), waiting_of(place)) > 0 then
    redis.call("HSETNX", LIMITS, place, limit)
  end
  hand_on(place, now, dispatch_ms, grace_ms, granted)
end

if id ~= "" and state then
  put_right()
elseif id ~= "" then
  for _, index in ipairs({ LEASES, OUTBOX, DEADLINES, OWED }) do
    redis.call("ZREM", index, id)
  end
end
if found ~= "*" and found ~= key then
  leave(found)
  serve(found)
end
if key then serve(key) end
return granted
