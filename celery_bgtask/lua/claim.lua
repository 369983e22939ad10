--[[
Take an offer: the first worker that asks gets it.

It must start the task before its lease runs out; else it is offered again.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id        the task
ARGV[2]  worker    that claims it
ARGV[3]  claim_ms  in which it must start the task

Returns  {id, attempt, clock, start_by, finish_by, envelope, body}, or nothing: it is
         not on offer any more, this worker has ignored it, or its key is blocked.
Keeps    one claim per offer.
]]
-- include: dispatch

local id, worker, claim_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

local name = task_of(id)
local task = redis.call("HMGET", name, "offer", "attempt", "clock", "start_by",
  "finish_by", "envelope", "body", "key")
local queue = task[1]
if not queue or is_closed(task[8]) then return {} end
if redis.call("SISMEMBER", ignored_of(id), worker) == 1 then return {} end
if redis.call("ZREM", offers_of(queue), id) == 0 then return {} end
redis.call("HSET", name, "claimer", worker)
redis.call("ZADD", LEASES, server_ms() + claim_ms, id)
return { id, task[2], task[3] or 0, task[4] or 0, task[5] or 0, task[6], task[7] }
