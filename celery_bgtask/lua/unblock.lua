--[[
End the block of a key: what waits goes on.

At most a batch in one call: call again until nothing more is granted.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  key          quoted
ARGV[2]  dispatch_ms  lease of a task that is with the broker
ARGV[3]  grace_ms     until a granted task is published by somebody else

Returns  {was, granted...}: 1 if the key was blocked, else 0; granted are {id,
         attempt, clock, start_by, finish_by, envelope, body} to publish and confirm.
Emits    what becomes available.
]]
-- include: hand_on, blocks

local key = ARGV[1]
local dispatch_ms, grace_ms = tonumber(ARGV[2]), tonumber(ARGV[3])

local was = is_blocked(key) and 1 or 0
forget_block(key)
local granted = {}
hand_on(key, server_ms(), dispatch_ms, grace_ms, granted)
local reply = { was }
for _, value in ipairs(granted) do reply[#reply + 1] = value end
return reply
