--[[
What is told of a task: to those who follow it, and to the process that submitted it.

KEYS[2] begins the names of channels: the hash tag and the number of the database,
of which publishing knows nothing. An event is JSON made in Python; here it gets
its number and the time: "<seq> <ms> <json>".
]]
-- include: names

local channels = KEYS[2]

local function publish(id, reply, seq, event)
  local text = string.format("%d %d %s", seq, server_ms(), event)
  redis.call("PUBLISH", channels .. ":events:" .. id, text)
  if reply and reply ~= "" then redis.call("PUBLISH", reply, text) end
  return text
end

-- Keeps the last *keep* events for who comes late; an empty log only if *owed*.
local function log(id, text, keep, ttl_ms, owed)
  local name = log_of(id)
  if redis.call(owed and "RPUSH" or "RPUSHX", name, text) > 0 then
    redis.call("LTRIM", name, -keep, -1)
    redis.call("PEXPIRE", name, ttl_ms)
  end
end

-- Tells that the task has ended. Where nobody can look up its result, *owed*, the
-- end is kept for who comes late. A task that the store has forgotten still has
-- the *reply* channel of its message.
local function tell_end(id, event, keep, ttl_ms, owed, reply)
  local task = redis.call("HMGET", task_of(id), "seq", "reply")
  local text = publish(id, task[2] or reply, (tonumber(task[1]) or 0) + 1, event)
  log(id, text, keep, ttl_ms, owed)
end
