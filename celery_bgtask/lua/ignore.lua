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
-- include: unwanted

local id, worker, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local dispatch_ms, grace_ms = tonumber(ARGV[4]), tonumber(ARGV[5])

local now = server_ms()
local granted = {}
local queue = redis.call("HGET", task_of(id), "offer")
if not queue or not redis.call("ZSCORE", offers_of(queue), id) then return granted end
note_ignored(id, worker, now, ttl_ms)
end_unwanted(id, true, now, dispatch_ms, grace_ms, granted)
return granted
