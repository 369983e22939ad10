--[[
Give a submitted task a slot, park it, or refuse it.

A task id that is waiting, dispatched or running is not taken twice: the second
submission changes nothing. From the task's own run, or with more retries than
that run, it is the next attempt, and release.lua starts it; a next attempt is
never refused. Repeating a call
whose reply was lost is such a second submission, with the same answer.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]   id           the task
ARGV[2]   key          its key, quoted
ARGV[3]   limit        slots per key; -1 for no limit
ARGV[4]   wait         1: park when full, 0: refuse
ARGV[5]   max_waiting  tasks that may wait per key
ARGV[6]   max_bytes    bytes that may wait in the scope
ARGV[7]   rank         0 to 255; lower starts first
ARGV[8]   retries      of the message
ARGV[9]   token        of the run that submits, or ""
ARGV[10]  delay_ms     until the ETA of the message, 0 if there is none
ARGV[11]  dispatch_ms  lease of a task that is with the broker
ARGV[12]  grace_ms     until a granted task is published by somebody else
ARGV[13]  tombstone_ms how long a task that lost its slot is remembered
ARGV[14]  nonce        of this call, to know its repetition
ARGV[15]  envelope     routing, headers and properties of the message
ARGV[16]  body         of the message, serialized; "" if it is not kept
ARGV[17]  accept_ms    in which a worker must start it, after its ETA; 0: any time
ARGV[18]  finish_ms    in which it must have ended, after its ETA; 0: any time
ARGV[19]  expires_ms   until it is revoked unless it has started; 0: never
ARGV[20]  max_lost     how often it runs again when its worker vanishes
ARGV[21]  keep         1: keep the message until the task has ended
ARGV[22]  keep_sent    1: keep it at least until the task starts
ARGV[23]  reply_to     channel on which the submitter hears of it, or ""
ARGV[24]  offer        queue whose workers it is offered to, quoted; "": the broker's
ARGV[25]  news         of it to workers that listen: JSON, made in Python

Returns  {status, attempt, held, waiting, limit, clock, start_by, finish_by,
         granted...}; status is
         "dispatched" (publish it), "offered", "parked", "refused", "crowded" (too many
         wait), "blocked" (so is the key), "known" (nothing to do) or "deferred"
         (the next attempt); limit is the one that has refused it, -1 for none;
         granted are {id, attempt, clock, start_by, finish_by, envelope, body} to
         publish and confirm, but of a blocked key {remaining_ms, facts}, less than
         0 for ever. Deadlines count from clock; 0 is none.
Emits    what becomes available.
Keeps    held <= limit, unless the limit was lowered meanwhile.
]]
-- include: hand_on, records, blocks

local id, key, limit = ARGV[1], ARGV[2], ARGV[3]
local first = tonumber(ARGV[8]) == 0 and ARGV[9] == ""
local wait = ARGV[4] == "1" or not first
local max_waiting, max_bytes = tonumber(ARGV[5]), tonumber(ARGV[6])
local rank, retries, token = tonumber(ARGV[7]), ARGV[8], ARGV[9]
local delay_ms = tonumber(ARGV[10])
local dispatch_ms, grace_ms = tonumber(ARGV[11]), tonumber(ARGV[12])
local tombstone_ms, nonce = tonumber(ARGV[13]), ARGV[14]
local envelope, body = ARGV[15], ARGV[16]
local accept_ms, finish_ms = tonumber(ARGV[17]), tonumber(ARGV[18])
local expires_ms, max_lost = tonumber(ARGV[19]), tonumber(ARGV[20])
local keep, keep_sent = ARGV[21] == "1", ARGV[22] == "1"
local reply_to, queue, news = ARGV[23], ARGV[24], ARGV[25]

local now = server_ms()
local granted = {}
local name = task_of(id)
local task = redis.call("HMGET", name, "state", "attempt", "retries", "token", "nonce")
local state, attempt = task[1], tonumber(task[2])
local timed = accept_ms > 0 or finish_ms > 0 or expires_ms > 0

local function answer(status, number)
  local times = {}
  if state or timed then
    times = redis.call("HMGET", name, "clock", "start_by", "finish_by")
  end
  local reply = { status, number, redis.call("ZCARD", slots_of(key)),
    redis.call("ZCARD", waiting_of(key)), tonumber(limit),
    tonumber(times[1]) or 0, tonumber(times[2]) or 0, tonumber(times[3]) or 0 }
  for _, value in ipairs(granted) do reply[#reply + 1] = value end
  return reply
end

-- Slots of messages that never arrived; of runs only a sweep can tell.
local function free_lapsed()
  local due = redis.call("ZRANGE", LEASES, "-inf", now, "BYSCORE", "LIMIT", 0, BATCH)
  for _, lapsed in ipairs(due) do
    local found = redis.call("HMGET", task_of(lapsed), "state", "key", "offer")
    if found[1] == "dispatched" and not found[3] then
      lapse(lapsed, found[2], "lapsed", tombstone_ms)
      promote(found[2], now, dispatch_ms, grace_ms, granted)
      if found[2] ~= key then forget_idle(found[2]) end
    end
  end
end

if state and task[5] == nonce then
  if state == "waiting" then return answer("parked", attempt) end
  local to_publish = queue == "" or state == "delayed"
  return answer(to_publish and "dispatched" or "offered", attempt)
end
if state == "running"
  and (task[4] == token or tonumber(retries) > tonumber(task[3])) then
  redis.call("HSET", name, "next_key", key, "next_limit", limit, "next_rank", rank,
    "next_retries", retries, "next_delay_ms", delay_ms, "next_envelope", envelope,
    "next_body", body)
  return answer("deferred", attempt + 1)
end
if state and state ~= "lapsed" and state ~= "ended" then
  return answer("known", attempt)
end
if first and is_blocked(key) then
  granted = { block_left(key, now), block_facts(key) }
  return answer("blocked", attempt or 0)
end

-- Copies of the messages of earlier attempts may come as late as they like.
local buried = tonumber(redis.call("GET", tombstone_of(id)) or 0)
local had_copies = buried > 0 or state == "ended" or state == "lapsed"
attempt = math.max(attempt or 0, buried < ANY_ATTEMPT and buried or 0) + 1

local function record(new_state)
  if state then
    discard(id)
    redis.call("DEL", tombstone_of(id))
  else
    -- An earlier task of this id may have left its reports.
    redis.call("DEL", tombstone_of(id), log_of(id))
  end
  local fields = { "key", key, "attempt", attempt, "retries", retries, "nonce", nonce,
    "state", new_state, "reply", reply_to, "news", news }
  local function put(field, value)
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end
  if queue ~= "" then
    put("offer", queue)
    put("rank", rank)
  end
  if had_copies then put("copies", 1) end
  local clock = now + delay_ms
  if timed then put("clock", clock) end
  if accept_ms > 0 then put("start_by", clock + accept_ms) end
  if finish_ms > 0 then put("finish_by", clock + finish_ms) end
  if expires_ms > 0 then put("expires_at", now + expires_ms) end
  if max_lost > 0 then put("max_lost", max_lost) end
  if keep then put("keep", 1) end
  local kept = keep or new_state == "waiting"
  if kept or (keep_sent and new_state == "dispatched") then
    put("envelope", envelope)
    put("body", body)
  end
  redis.call("HSET", name, unpack(fields))
  if timed then watch(id) end
end

if delay_ms > 0 then
  record("delayed")
  if not timed then redis.call("PEXPIRE", name, delay_ms + tombstone_ms) end
  return answer("dispatched", attempt)
end
redis.call("HSET", LIMITS, key, limit)
local waits = redis.call("EXISTS", waiting_of(key)) == 1
if waits then promote(key, now, dispatch_ms, grace_ms, granted) end
local full = not has_room(key)
if full then
  free_lapsed()
  full = not has_room(key)
end
-- What waits goes first, also where a call grants no more than a batch of it.
full = full or (waits and redis.call("EXISTS", waiting_of(key)) == 1)
if full then
  local crowded = redis.call("ZCARD", waiting_of(key)) >= max_waiting
    or tonumber(redis.call("GET", WAITING_BYTES) or 0) + #envelope + #body > max_bytes
  if not wait or crowded then
    limit = limit_of(key)
    if limit == math.huge then limit = -1 end
    forget_idle(key)
    return answer(wait and "crowded" or "refused", attempt)
  end
end

record(full and "waiting" or "dispatched")
if state then redis.call("HSET", LIMITS, key, limit) end  -- discarded with the old one
if full then
  park(id, key, rank, #envelope + #body, now)
  return answer("parked", attempt)
end
if queue ~= "" then
  dispatch(id, key, now, dispatch_ms, grace_ms, granted)
  return answer("offered", attempt)
end
hold(id, key, now, dispatch_ms)
tell_available(id, key, news, attempt)
return answer("dispatched", attempt)
