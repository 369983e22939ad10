--[[
Note that granted tasks are with the broker.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]    keep_sent    1: keep the messages of dispatched tasks until they start
ARGV[...]  id, attempt  of each task that was published, in pairs

Returns  how many of them had not been confirmed or started before.
]]
-- include: names

local keep_sent = ARGV[1] == "1"

local confirmed = 0
for i = 2, #ARGV, 2 do
  local name = task_of(ARGV[i])
  local task = redis.call("HMGET", name, "attempt", "keep", "state")
  if task[1] == ARGV[i + 1] and redis.call("ZREM", OUTBOX, ARGV[i]) == 1 then
    local kept = task[2] or (keep_sent and task[3] == "dispatched")
    if not kept then redis.call("HDEL", name, "envelope", "body") end
    confirmed = confirmed + 1
  end
end
return confirmed
