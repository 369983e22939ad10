-- A run is over and the task is not: its next attempt takes over.

-- include: hand_on

-- The run is over, and a call that ends it again is known by its token.
local function end_token(name)
  redis.call("HSET", name, "past", redis.call("HGET", name, "token") or "")
  redis.call("HDEL", name, "token", "worker")
end

-- The next attempt takes over from a run that has ended, with its slot if the
-- key is the same and it starts at once. Returns false if there is none.
local function succeed(id, key, now, dispatch_ms, grace_ms, tombstone_ms, granted)
  local name = task_of(id)
  local task = redis.call("HMGET", name, "next_key", "next_limit", "next_rank",
    "next_retries", "next_delay_ms", "next_envelope", "next_body", "attempt")
  local next_key = task[1]
  if not next_key then return false end
  redis.call("HDEL", name, "worker", "next_key", "next_limit", "next_rank",
    "next_retries", "next_delay_ms", "next_envelope", "next_body")
  redis.call("HSET", name, "key", next_key, "attempt", task[8] + 1,
    "retries", task[4], "envelope", task[6], "body", task[7])
  redis.call("HDEL", name, "start_by")
  end_token(name)
  local delay_ms = tonumber(task[5])
  if delay_ms > 0 then
    lapse(id, key, "delayed", delay_ms + tombstone_ms)
    post(id, now, grace_ms, granted)
  elseif next_key == key then
    redis.call("HSET", name, "state", "dispatched", "rank", task[3])
    watch(id)
    if redis.call("HGET", name, "offer") then
      -- Whoever sees an offer starts it, and what the run before has yet to store
      -- would replace its end. Who ended that run offers it then; or a sweep does.
      redis.call("HSET", name, "claimer", redis.call("HGET", name, "past"))
      hold(id, key, now, grace_ms)
    else
      dispatch(id, key, now, dispatch_ms, grace_ms, granted)
    end
  else
    redis.call("ZREM", slots_of(key), id)
    redis.call("ZREM", LEASES, id)
    redis.call("HSETNX", LIMITS, next_key, task[2])
    park(id, next_key, tonumber(task[3]), #task[6] + #task[7], now)
    watch(id)
    hand_on(next_key, now, dispatch_ms, grace_ms, granted)
  end
  return true
end
