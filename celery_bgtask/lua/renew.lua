--[[
Renew the leases of the tasks that a worker runs.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  worker       whose runs they are
ARGV[2]  lease_ms     lease of a running task
ARGV[3]  tombstone_ms how long the worker's list of runs is kept unrenewed
ARGV[...]  id         of each task that the worker still knows of; the lease of
                      another one is left to run out

Returns  {id, key, attempt, worker} of each run that was ended without the
         worker: it has lost them.
Keeps    a lease that is lost stays lost.
]]
-- include: names

local worker, lease_ms, tombstone_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local now = server_ms()
local runs = worker_of(worker)
local lost = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local run = redis.call("HGET", runs, id)
  local token, attempt, key = string.match(run or "", "^(%w+) (%d+) (.*)$")
  local task = redis.call("HMGET", task_of(id), "token", "state")
  if token and task[1] == token and task[2] ~= "decided" then
    redis.call("ZADD", LEASES, "XX", now + lease_ms, id)
  elseif token then
    redis.call("HDEL", runs, id)
    for _, value in ipairs({ id, key, attempt, worker }) do lost[#lost + 1] = value end
  end
end
redis.call("PEXPIRE", runs, tombstone_ms)
return lost
