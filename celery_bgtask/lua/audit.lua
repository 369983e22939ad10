--[[
Read all that the store has of some tasks, to be compared.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[...]  key, id  of each task, in pairs: the key in whose slots or queue it was
                    found, or "*" for the one of its record

Returns  {now, {id, found, state, key, attempt, worker, token, verdict, start_by,
         finish_by, expires_at, size, slot, place, lease, outbox, deadline, owed, run,
         envelope, offer}...}: bytes of its message; scores in the slots and the queue
         of the key; scores in the indexes; its entry in the list of its worker; the
         envelope of what is with the broker; "open", "claimed" or "missing" of an
         offer. Nil where there is nothing.
]]
-- include: waiting, dispatch

local function offer_state(id, state)
  local task = redis.call("HMGET", task_of(id), "offer", "claimer", "drained")
  if state ~= "dispatched" or not task[1] then return false end
  if redis.call("ZSCORE", offers_of(task[1]), id) then return "open" end
  if task[3] then return false end  -- it went to the broker
  return task[2] and "claimed" or "missing"
end

local function read(found, id)
  local name = task_of(id)
  local row = redis.call("HMGET", name, "state", "key", "attempt", "worker", "token",
    "verdict", "start_by", "finish_by", "expires_at")
  local key = found ~= "*" and found or row[2]
  local state, worker = row[1], row[4]
  local away = state == "dispatched" or state == "lapsed"
  local rest = { parked_size(id), key and redis.call("ZSCORE", slots_of(key), id),
    key and redis.call("ZSCORE", waiting_of(key), id),
    redis.call("ZSCORE", LEASES, id), redis.call("ZSCORE", OUTBOX, id),
    redis.call("ZSCORE", DEADLINES, id), redis.call("ZSCORE", OWED, id),
    worker and redis.call("HGET", worker_of(worker), id),
    away and redis.call("HGET", name, "envelope"), offer_state(id, state) }
  table.insert(row, 1, found)
  table.insert(row, 1, id)
  for i = 1, 10 do row[11 + i] = rest[i] or false end
  return row
end

local reply = { server_ms() }
for i = 1, #ARGV, 2 do reply[#reply + 1] = read(ARGV[i], ARGV[i + 1]) end
return reply
