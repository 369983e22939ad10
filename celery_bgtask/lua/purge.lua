--[[
End tasks that wait for a key, some in each call.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  key          quoted
ARGV[2]  verdict      how they end
ARGV[3]  dispatch_ms  lease of a task that is with the broker
ARGV[4]  grace_ms     until a granted task is published by somebody else

Returns  {purged, granted}: the ids of what was ended, none if none waits; granted
         are {id, attempt, clock, start_by, finish_by, envelope, body} to publish and
         confirm.
Emits    what becomes available.
]]
-- include: verdicts

local key, verdict = ARGV[1], ARGV[2]
local dispatch_ms, grace_ms = tonumber(ARGV[3]), tonumber(ARGV[4])

local now = server_ms()
local purged, granted = {}, {}
for _, id in ipairs(redis.call("ZRANGE", waiting_of(key), 0, BATCH - 1)) do
  -- Where a slot is free, the end of one lets another one start.
  if redis.call("HGET", task_of(id), "state") == "waiting" then
    judge(id, verdict, false, now, dispatch_ms, grace_ms, granted)
    purged[#purged + 1] = id
  end
end
return { purged, granted }
