--[[
Publish what waits, whatever the limits, some keys in each call.

What is drained starts when a worker gets it, though the key be full, blocked
or paused: it may be a worker that knows of no limits.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  cursor       of the call before, 0 in the first
ARGV[2]  dispatch_ms  lease of a task that is with the broker
ARGV[3]  grace_ms     until a granted task is published by somebody else

Returns  {cursor, granted...}: the cursor of the next call, "" after the last;
         granted are {id, attempt, clock, start_by, finish_by, envelope, body} to
         publish and confirm.
Emits    what becomes available.
]]
-- include: pages

local cursor = ARGV[1]
local dispatch_ms, grace_ms = tonumber(ARGV[2]), tonumber(ARGV[3])

local function always() return true end

offer_nothing()
local granted = {}
local reply = { grant_page(cursor, always, server_ms(), dispatch_ms, grace_ms,
  granted) }
for i = 1, #granted, GRANT do
  redis.call("HSET", task_of(granted[i]), "drained", 1)
end
for _, value in ipairs(granted) do reply[#reply + 1] = value end
return reply
