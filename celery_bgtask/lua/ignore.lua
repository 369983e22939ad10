--[[
Note that a worker does not want an offer; if no live one does, the task ends.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id           the task
ARGV[2]  worker       that ignores it
ARGV[3]  ttl_ms       how long that is remembered
ARGV[4]  dispatch_ms  lease of a task that is on its way to a worker
ARGV[5]  grace_ms     until a granted task is published by somebody else

Returns  granted: {id, attempt, clock, start_by, finish_by, envelope, body} to
         publish and confirm.
Emits    that what has got the slot is available.
]]
-- include: verdicts

local id, worker, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local dispatch_ms, grace_ms = tonumber(ARGV[4]), tonumber(ARGV[5])

local now = server_ms()
local granted = {}
local task = redis.call("HMGET", task_of(id), "offer", "clock", "start_by", "key")
local queue = task[1]
if not queue or not redis.call("ZSCORE", offers_of(queue), id) then return granted end
redis.call("SADD", ignored_of(id), worker)
redis.call("PEXPIRE", ignored_of(id), ttl_ms)
local takers = redis.call("ZRANGE", takers_of(queue), now, "+inf", "BYSCORE")
for _, taker in ipairs(takers) do
  if redis.call("SISMEMBER", ignored_of(id), taker) == 0 then return granted end
end
local timeout_ms = (tonumber(task[3]) or now) - (tonumber(task[2]) or now)
local verdict = "unaccepted worker " .. timeout_ms
judge(id, verdict, false, now, dispatch_ms, grace_ms, granted)
return granted
