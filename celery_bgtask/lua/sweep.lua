--[[
Free what dead workers and lost messages held; end blocks; find what was not
published.

One sweep at a time: a call while another one's interval lasts does nothing.
After a silence (no sweep for a third of a lease: the store was away, or every
worker) all leases get one lease more, for nobody could renew them.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  worker       that sweeps
ARGV[2]  interval_ms  until the next sweep
ARGV[3]  lease_ms     lease of a running task
ARGV[4]  dispatch_ms  lease of a task that is with the broker
ARGV[5]  grace_ms     until a granted task is published by somebody else
ARGV[6]  tombstone_ms how long a task that lost its slot is remembered

Returns  {swept, lost, granted, owed}: 1 or 0; lost is {id, key, attempt, worker}
         of each run that was ended because its lease ran out; granted are {id,
         attempt, clock, start_by, finish_by, envelope, body} to publish and confirm;
         owed is {id, attempt, verdict, key, envelope, body} of each task that
         ended by a verdict and is to be concluded.
Emits    what becomes available.
Keeps    a task whose lease is renewed is never taken for lost.
]]
-- include: attempts, records, unwanted, blocks

local worker, interval_ms = ARGV[1], tonumber(ARGV[2])
local lease_ms, dispatch_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local grace_ms, tombstone_ms = tonumber(ARGV[5]), tonumber(ARGV[6])

local lost, granted, owed = {}, {}, {}
if not redis.call("SET", scope .. ":sweeping", worker, "NX", "PX", interval_ms) then
  return { 0, lost, granted, owed }
end
local now = server_ms()
local SWEPT = scope .. ":swept"
local last = tonumber(redis.call("GET", SWEPT) or 0)
redis.call("SET", SWEPT, now, "PX", tombstone_ms)

local function due_in(index)
  return redis.call("ZRANGE", index, "-inf", now, "BYSCORE", "LIMIT", 0, BATCH)
end

-- Tells whether the task may run again, from its stored message.
local function can_rerun(id)
  local task = redis.call("HMGET", task_of(id), "body", "lost", "max_lost")
  return task[1] and tonumber(task[2] or 0) < tonumber(task[3] or 0)
end

-- In the slot that it has.
local function rerun(id, key)
  local name = task_of(id)
  redis.call("HDEL", name, "token", "worker")
  redis.call("HINCRBY", name, "lost", 1)
  redis.call("HINCRBY", name, "attempt", 1)
  redis.call("HSET", name, "state", "dispatched")
  watch(id)
  dispatch(id, key, now, dispatch_ms, grace_ms, granted)
end

local function lose(id, key, attempt, by)
  if succeed(id, key, now, dispatch_ms, grace_ms, tombstone_ms, granted) then
    redis.call("HDEL", task_of(id), "past")  -- who had the run has lost it
    return
  end
  for _, value in ipairs({ id, key, attempt, by }) do lost[#lost + 1] = value end
  if can_rerun(id) then
    rerun(id, key)
  else
    judge(id, "lost", false, now, dispatch_ms, grace_ms, granted)
  end
end

-- The body has ended, and nobody has said that its result is stored: who
-- concludes looks it up.
local function doubt(id)
  local verdict = can_rerun(id) and "unsettled again" or "unsettled"
  judge(id, verdict, false, now, dispatch_ms, grace_ms, granted)
end

-- What nobody has claimed stays on offer; what was claimed and not started is again.
local function renew_offer(id, key, queue)
  if redis.call("ZSCORE", offers_of(queue), id) then
    redis.call("ZADD", LEASES, now + dispatch_ms, id)
  else
    dispatch(id, key, now, dispatch_ms, grace_ms, granted)
  end
end

local function reap(id)
  local task = redis.call("HMGET", task_of(id), "state", "key", "attempt", "worker",
    "offer")
  local state, key = task[1], task[2]
  if state == "dispatched" and task[5] then
    renew_offer(id, key, task[5])
  elseif state == "dispatched" then
    lapse(id, key, "lapsed", tombstone_ms)
  elseif state == "running" then
    lose(id, key, task[3], task[4])
  elseif state == "ended" then
    doubt(id)
  elseif state == "stopping" then
    redis.call("ZREM", slots_of(key), id)
    redis.call("ZREM", LEASES, id)
    redis.call("HSET", task_of(id), "state", "decided")
    if not redis.call("ZSCORE", OWED, id) then bury(id, task[3], tombstone_ms) end
  else
    redis.call("ZREM", LEASES, id)
  end
  if key then hand_on(key, now, dispatch_ms, grace_ms, granted) end
end

if now - last > lease_ms / 3 then
  local soon = redis.call("ZRANGE", LEASES, "-inf", now + lease_ms, "BYSCORE")
  for _, id in ipairs(soon) do
    redis.call("ZADD", LEASES, "XX", now + lease_ms, id)
  end
else
  for _, id in ipairs(due_in(LEASES)) do
    if #granted < GRANT * BATCH then reap(id) end
  end
  -- Not after a silence either: some workers may not have said that they live.
  end_all_unwanted(now, now, dispatch_ms, grace_ms, granted)
end

for _, id in ipairs(due_in(DEADLINES)) do
  if #granted < GRANT * BATCH then
    redis.call("ZREM", DEADLINES, id)
    decide(id, now, dispatch_ms, grace_ms, granted)
  end
end

-- A key with more than one call may grant stays for the next one.
for _, key in ipairs(due_in(BLOCKED)) do
  if #granted < GRANT * BATCH then
    hand_on(key, now, dispatch_ms, grace_ms, granted)
    local goes_on = has_room(key) and redis.call("EXISTS", waiting_of(key)) == 1
    if not goes_on then forget_block(key) end
  end
end

-- Claimed for a lease: who concludes may die, too.
for _, id in ipairs(due_in(OWED)) do
  local task = redis.call("HMGET", task_of(id), "attempt", "verdict", "key",
    "envelope", "body")
  if task[2] then
    redis.call("ZADD", OWED, now + lease_ms, id)
    local row = { id, task[1], task[2], task[3], task[4] or "", task[5] or "" }
    for _, value in ipairs(row) do owed[#owed + 1] = value end
  else
    redis.call("ZREM", OWED, id)
  end
end

-- A task published twice may arrive after its end: settle.lua must know.
for _, id in ipairs(due_in(OUTBOX)) do
  if redis.call("HEXISTS", task_of(id), "body") == 1 then
    redis.call("HSET", task_of(id), "copies", 1)
    post(id, now, grace_ms, granted)
  else
    redis.call("ZREM", OUTBOX, id)
  end
end
return { 1, lost, granted, owed }
