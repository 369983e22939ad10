--[[
Note that a worker has gone. Offers that all others have ignored end.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  worker       its node name
ARGV[2]  taker        its id, as that of which it has taken offers
ARGV[3]  dispatch_ms  lease of a task that is on its way to a worker
ARGV[4]  grace_ms     until a granted task is published by somebody else
ARGV[...]  queue      from which it has taken offers, quoted

Returns  granted: {id, attempt, clock, start_by, finish_by, envelope, body} to
         publish and confirm.
Emits    what becomes available.
]]
-- include: unwanted

local worker, taker = ARGV[1], ARGV[2]
local dispatch_ms, grace_ms = tonumber(ARGV[3]), tonumber(ARGV[4])

local now = server_ms()
local granted = {}
redis.call("ZREM", WORKERS, worker)
for i = 5, #ARGV do redis.call("ZREM", takers_of(ARGV[i]), taker) end
if #ARGV >= 5 then
  end_all_unwanted("+inf", now, dispatch_ms, grace_ms, granted)
end
return granted
