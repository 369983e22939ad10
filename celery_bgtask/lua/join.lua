--[[
Let a worker take part in a broadcast: in time, and once.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id        the broadcast
ARGV[2]  worker    its node name
ARGV[3]  until_ms  by when it must have joined: server time
ARGV[4]  event     JSON, as events.py has it
ARGV[5]  keep      events that are kept for who comes late
ARGV[6]  ttl_ms    for how long

Returns  1, or 0 if it comes too late or has joined before: it must not run.
Emits    that the worker has joined.
]]
-- include: broadcasts

local id, worker, until_ms, event = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local keep, ttl_ms = tonumber(ARGV[5]), tonumber(ARGV[6])

if server_ms() > until_ms then return 0 end
if redis.call("HSETNX", call_of(id), worker, 1) == 0 then return 0 end
say(id, event, keep, ttl_ms)
return 1
