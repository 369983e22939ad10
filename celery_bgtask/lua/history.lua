--[[
Tell what is known of tasks that somebody begins to follow.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[...]  id  of each task

Returns  {state, due_ms, events} of each: "" if the store does not know it, and of
         what has left a tombstone "decided"; the time until its next deadline,
         0 if it has none; what the log of its reports has, oldest first.
]]
-- include: events

local now = server_ms()
local known = {}
for i = 1, #ARGV do
  local id = ARGV[i]
  local state = redis.call("HGET", task_of(id), "state")
  local due = tonumber(redis.call("ZSCORE", DEADLINES, id) or 0)
  local ended = redis.call("EXISTS", tombstone_of(id)) == 1 and "decided" or ""
  known[#known + 1] = state or ended
  known[#known + 1] = due > 0 and math.max(due - now, 1) or 0
  known[#known + 1] = redis.call("LRANGE", log_of(id), 0, -1)
end
return known
