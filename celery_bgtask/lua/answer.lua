--[[
Tell that a worker has ended its run of a broadcast.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id      the broadcast
ARGV[2]  event   JSON, as events.py has it
ARGV[3]  keep    events that are kept for who comes late
ARGV[4]  ttl_ms  for how long

Returns  1.
Emits    how the worker's run has ended.
]]
-- include: broadcasts

local id, event = ARGV[1], ARGV[2]
local keep, ttl_ms = tonumber(ARGV[3]), tonumber(ARGV[4])

say(id, event, keep, ttl_ms)
return 1
