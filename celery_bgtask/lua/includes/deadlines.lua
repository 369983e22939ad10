-- When a task ends though nobody ends it.

-- include: names

-- Notes when the task is to end though nobody ends it.
local function watch(id)
  local task = redis.call("HMGET", task_of(id), "state", "finish_by", "start_by",
    "expires_at")
  local due = tonumber(task[2]) or math.huge
  if task[1] ~= "running" then
    due = math.min(due, tonumber(task[3]) or math.huge, tonumber(task[4]) or math.huge)
  end
  if due < math.huge then
    redis.call("ZADD", DEADLINES, due, id)
  else
    redis.call("ZREM", DEADLINES, id)
  end
end
