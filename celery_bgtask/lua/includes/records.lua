-- The end of a task's record.

-- include: slots, waiting, dispatch

-- Nothing is known of the task any more; with *tombstone_ms* above 0, only
-- that this attempt has ended.
local function bury(id, attempt, tombstone_ms)
  redis.call("ZREM", LEASES, id)
  redis.call("ZREM", OUTBOX, id)
  redis.call("ZREM", DEADLINES, id)
  redis.call("ZREM", OWED, id)
  redis.call("DEL", task_of(id))
  if tombstone_ms > 0 then
    redis.call("SET", tombstone_of(id), attempt, "PX", tombstone_ms)
  end
end

-- A newer attempt replaces whatever the store knew of the task.
local function discard(id)
  local task = redis.call("HMGET", task_of(id), "key", "worker")
  if task[1] then
    unpark(id, task[1])
    end_offer(id)
    redis.call("ZREM", slots_of(task[1]), id)
    forget_idle(task[1])
  end
  if task[2] then redis.call("HDEL", worker_of(task[2]), id) end
  bury(id, 0, 0)
end
