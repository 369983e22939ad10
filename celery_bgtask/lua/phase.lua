--[[
Tell where a task is.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  id  the task

Returns  {state, key, due_ms}: both texts "" if the store does not know it; "offered"
         is dispatched without the broker; of what has left a tombstone the state is
         "decided", and no more is known; the time until its next deadline, 0 if it
         has none.
]]
-- include: names

local id = ARGV[1]

local task = redis.call("HMGET", task_of(id), "state", "key", "offer")
local due = tonumber(redis.call("ZSCORE", DEADLINES, id) or 0)
local ended = redis.call("EXISTS", tombstone_of(id)) == 1 and "decided" or ""
local left = due > 0 and math.max(due - server_ms(), 1) or 0
local offered = task[1] == "dispatched" and task[3]
return { offered and "offered" or task[1] or ended, task[2] or "", left }
