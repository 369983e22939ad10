--[[
End a pause: what waits goes on, some keys in each call.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  cursor       of the call before, 0 in the first
ARGV[2]  dispatch_ms  lease of a task that is with the broker
ARGV[3]  grace_ms     until a granted task is published by somebody else

Returns  {was, cursor, granted...}: 1 if there was a pause, else 0; the cursor of
         the next call, "" after the last; granted are {id, attempt, clock,
         start_by, finish_by, envelope, body} to publish and confirm.
Emits    what becomes available.
]]
-- include: pages

local cursor = ARGV[1]
local dispatch_ms, grace_ms = tonumber(ARGV[2]), tonumber(ARGV[3])

local was = redis.call("HDEL", OVERRIDES, EVERY_KEY)
local granted = {}
local reply = { was, grant_page(cursor, has_room, server_ms(), dispatch_ms,
  grace_ms, granted) }
for _, value in ipairs(granted) do reply[#reply + 1] = value end
return reply
