--[[
Set the limit of a key, or go back to the declared one; start what may start.

At most a batch in one call: call again until nothing more is granted.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  key          quoted
ARGV[2]  limit        slots; -1 for no limit, "" for the declared one
ARGV[3]  dispatch_ms  lease of a task that is with the broker
ARGV[4]  grace_ms     until a granted task is published by somebody else

Returns  granted: {id, attempt, clock, start_by, finish_by, envelope, body} to
         publish and confirm.
Emits    what becomes available.
Keeps    what runs goes on, whatever the limit.
]]
-- include: hand_on

local key, limit = ARGV[1], ARGV[2]
local dispatch_ms, grace_ms = tonumber(ARGV[3]), tonumber(ARGV[4])

if limit == "" then
  redis.call("HDEL", OVERRIDES, key)
else
  redis.call("HSET", OVERRIDES, key, limit)
end
local granted = {}
hand_on(key, server_ms(), dispatch_ms, grace_ms, granted)
return granted
