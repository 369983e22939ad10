--[[
Decide whether a task whose message has arrived starts now.

Any copy of a message may start its attempt; only the first does, and its token
names the run from then on. Called again with the token of the run, it answers
"started" again. What is with the broker while its key is blocked, paused or
without slots gives up its slot and waits in front of the others.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]   id           the task
ARGV[2]   attempt      that the message is for
ARGV[3]   key          its key, quoted
ARGV[4]   limit        slots per key, for a key that is not in use; -1 for none
ARGV[5]   token        of the run, if it starts
ARGV[6]   worker       that would run it
ARGV[7]   fresh        1: a task that the store does not know is a new one
ARGV[8]   rank         0 to 255; lower starts first
ARGV[9]   retries      of the message
ARGV[10]  lease_ms     lease of a running task
ARGV[11]  tombstone_ms how long a worker's list of runs is kept unrenewed
ARGV[12]  clock        of the message: its deadlines count from then, ms
ARGV[13]  start_by     of the message: must have started by then, ms; 0: any time
ARGV[14]  finish_by    of the message: must have ended by then, ms; 0: any time
ARGV[15]  max_lost     how often it runs again when its worker vanishes
ARGV[16]  keep         1: the store must have the message while the task runs
ARGV[17]  envelope     of the message, or "" in the first call
ARGV[18]  body         of the message, or "" in the first call
ARGV[19]  dispatch_ms  lease of a task that is with the broker
ARGV[20]  grace_ms     until a granted task is published by somebody else
ARGV[21]  reply        of the message: channel on which the submitter hears of it

Returns  {status, attempt}; status is "started", "parked" or
         "ended" (the caller drops this copy), "stored" (a copy of a run: dropped
         when that ends with a result; or the attempt after it), "late" (it
         must not start any more, and nobody has said so), "cancelled" (nor must
         this, and nobody has concluded it), "unknown" (call again
         with fresh) or "wanted" (call again with envelope and body).
Emits    what becomes available.
Keeps    one run per task; held <= limit, unless the limit was lowered.
]]
-- include: hand_on, records

local id, attempt, key, limit = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local token, worker, fresh = ARGV[5], ARGV[6], ARGV[7] == "1"
local rank, retries = tonumber(ARGV[8]), ARGV[9]
local lease_ms, tombstone_ms = tonumber(ARGV[10]), tonumber(ARGV[11])
local clock = ARGV[12]
local start_by, finish_by = tonumber(ARGV[13]), tonumber(ARGV[14])
local max_lost, keep = tonumber(ARGV[15]), ARGV[16] == "1"
local envelope, body = ARGV[17], ARGV[18]
local dispatch_ms, grace_ms, reply = tonumber(ARGV[19]), tonumber(ARGV[20]), ARGV[21]

local now = server_ms()
local name = task_of(id)
local task = redis.call("HMGET", name, "state", "attempt", "key", "token", "body",
  "drained", "offer", "keep", "reply")
local state, known = task[1], tonumber(task[2])
local due  -- the next deadline that is noted of it

local function answer(status)
  return { status, attempt }
end

-- *fields* are what is new beside what the message says.
local function record(fields)
  redis.call("PERSIST", name)
  local function put(field, value)
    fields[#fields + 1] = field
    fields[#fields + 1] = value
  end
  put("key", key)
  put("attempt", attempt)
  put("retries", retries)
  if not task[9] then put("reply", reply) end
  if keep then
    put("keep", 1)
    put("max_lost", max_lost)
  end
  if envelope ~= "" then
    put("envelope", envelope)
    put("body", body)
  end
  redis.call("HSET", name, unpack(fields))
  if finish_by > 0 then
    redis.call("HSETNX", name, "clock", clock)
    redis.call("HSETNX", name, "finish_by", finish_by)
  end
  redis.call("ZREM", OUTBOX, id)
end

local function start()
  local kept = task[5] or envelope ~= ""
  if keep and not kept then return answer("wanted") end
  if state == "waiting" then unpark(id, key) end
  if task[7] then end_offer(id) end
  record({ "state", "running", "token", token, "worker", worker, "started", now })
  local over = { "nonce", "rank", "since", "drained", "start_by", "past", "claimer" }
  if not (keep or task[8]) then
    over[#over + 1] = "envelope"
    over[#over + 1] = "body"
  end
  redis.call("HDEL", name, unpack(over))
  hold_run(id, key, now, lease_ms)
  if due or finish_by > 0 then watch(id) end
  redis.call("HSET", worker_of(worker), id, token .. " " .. attempt .. " " .. key)
  redis.call("PEXPIRE", worker_of(worker), tombstone_ms)
  return answer("started")
end

local function wait()
  if envelope == "" and not task[5] then return answer("wanted") end
  record({})
  if state == "dispatched" then
    end_offer(id)
    redis.call("ZREM", slots_of(key), id)
    redis.call("ZREM", LEASES, id)
  end
  park(id, key, rank, parked_size(id), now, state == "dispatched")
  watch(id)
  return answer("parked")
end

-- The broker has no other copy then: if the run is requeued, this one starts.
local function store_copy()
  if envelope == "" and not task[5] then return answer("wanted") end
  if not task[5] then redis.call("HSET", name, "envelope", envelope, "body", body) end
  redis.call("HSET", name, "copies", 1)
  return answer("stored")
end

local function store_next()
  if envelope == "" then return answer("wanted") end
  redis.call("HSET", name, "next_key", key, "next_limit", limit, "next_rank", rank,
    "next_retries", retries, "next_delay_ms", 0, "next_envelope", envelope,
    "next_body", body)
  return answer("stored")
end

local function is_late()
  return (start_by > 0 and start_by <= now) or (finish_by > 0 and finish_by <= now)
end

if not state then
  local ended = tonumber(redis.call("GET", tombstone_of(id)) or 0)
  if ended == ANY_ATTEMPT then return answer("cancelled") end
  if attempt <= ended then return answer("ended") end
  if not fresh then return answer("unknown") end
  if is_late() then return answer("late") end
elseif attempt < known or state == "decided" or state == "stopping" then
  return answer("ended")
elseif state == "running" and attempt > known then
  return store_next()
elseif state == "running" then
  if task[4] == token then return answer("started") end
  return store_copy()
elseif state == "ended" and attempt == known then
  redis.call("HSET", name, "copies", 1)
  return answer("ended")
elseif attempt > known then
  discard(id)
  state, task[5], task[7], task[8], task[9] = nil, nil, nil, nil, nil
  -- Nobody takes what this hands on: it is in the outbox, for the next sweep.
  if task[3] ~= key then hand_on(task[3], now, dispatch_ms, grace_ms, {}) end
else
  key = task[3]
  due = redis.call("ZSCORE", DEADLINES, id)
  if due and tonumber(due) <= now then return answer("late") end
end

redis.call("HSETNX", LIMITS, key, limit)
local steps_back = state == "dispatched" and is_closed(key) and not task[6]
if steps_back then return wait() end
if state == "dispatched" or has_room(key) then return start() end
if state == "waiting" then return answer("parked") end
return wait()
