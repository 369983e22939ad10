-- Tasks that end though no worker has finished them.

-- include: hand_on

-- The task ends as *verdict* says, whatever becomes of its message. A body that
-- *runs* keeps its slot until it returns; a worker concludes what is owed.
local function judge(id, verdict, runs, now, dispatch_ms, grace_ms, granted)
  local name = task_of(id)
  local key = redis.call("HGET", name, "key")
  unpark(id, key)
  end_offer(id)
  redis.call("ZREM", DEADLINES, id)
  redis.call("ZREM", OUTBOX, id)
  redis.call("ZADD", OWED, now, id)
  redis.call("PERSIST", name)
  redis.call("HSET", name, "verdict", verdict)
  if runs then
    redis.call("HSET", name, "state", "stopping")
    return
  end
  redis.call("ZREM", slots_of(key), id)
  redis.call("ZREM", LEASES, id)
  redis.call("HSET", name, "state", "decided")
  hand_on(key, now, dispatch_ms, grace_ms, granted)
end

-- Judges the task if a deadline of it has passed; returns the verdict, if any.
local function decide(id, now, dispatch_ms, grace_ms, granted)
  local task = redis.call("HMGET", task_of(id), "state", "verdict", "clock", "start_by",
    "expires_at", "finish_by")
  local state, verdict = task[1], task[2]
  local clock, start_by = tonumber(task[3]), tonumber(task[4])
  local expires_at, finish_by = tonumber(task[5]), tonumber(task[6])
  if not state or state == "ended" or verdict then return verdict end
  if state ~= "running" and expires_at and expires_at <= now then
    verdict = "expired"
  elseif state ~= "running" and start_by and start_by <= now then
    local missing = state == "waiting" and "slot" or "worker"
    verdict = "unaccepted " .. missing .. " " .. start_by - clock
  elseif finish_by and finish_by <= now then
    verdict = "unfinished " .. finish_by - clock
  else
    watch(id)
    return false
  end
  judge(id, verdict, state == "running", now, dispatch_ms, grace_ms, granted)
  return verdict
end
