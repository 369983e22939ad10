-- Granted tasks, published by whoever called or by a sweep.

-- include: names

-- Adds {id, attempt, clock, start_by, finish_by, envelope, body} of a granted task
-- to *granted* and its id to the outbox, to be published if the caller dies.
local GRANT = 7
local function post(id, now, grace_ms, granted)
  local task = redis.call("HMGET", task_of(id), "attempt", "clock", "start_by",
    "finish_by", "envelope", "body")
  redis.call("ZADD", OUTBOX, now + grace_ms, id)
  local clock, start_by, finish_by = task[2] or 0, task[3] or 0, task[4] or 0
  local grant = { id, task[1], clock, start_by, finish_by, task[5], task[6] }
  for _, value in ipairs(grant) do granted[#granted + 1] = value end
end
