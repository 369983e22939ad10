--[[
Let the lease of a run that was killed run out now, not later.

The next sweep ends it as that of any worker that has vanished.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  id       the task
ARGV[2]  worker   that ran it
ARGV[3]  attempt  that it ran

Returns  1, or 0 if the run has ended.
]]
-- include: names

local id, worker, attempt = ARGV[1], ARGV[2], ARGV[3]

local task = redis.call("HMGET", task_of(id), "state", "worker", "attempt")
if task[1] ~= "running" or task[2] ~= worker or task[3] ~= attempt then return 0 end
redis.call("ZADD", LEASES, "XX", 0, id)
redis.call("HDEL", worker_of(worker), id)
return 1
