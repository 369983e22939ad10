--[[
Tell a run whether it is still valid.

After a loss of the store's memory nobody knows the run, and it goes on.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  id     the task
ARGV[2]  token  of the run

Returns  {valid, verdict}: 1 or 0, and how the task was ended, "" if nobody did.
]]
-- include: names

local id, token = ARGV[1], ARGV[2]

local task = redis.call("HMGET", task_of(id), "state", "token", "verdict")
if not task[1] then
  return { redis.call("EXISTS", tombstone_of(id)) == 1 and 0 or 1, "" }
end
local valid = task[1] == "running" and task[2] == token
return { valid and 1 or 0, task[2] == token and task[3] or "" }
