--[[
End a task whose deadline has passed, unless it has started or ended in time.

Who waits for a task calls this when it is due; sweeps do the same. One side
wins: after a verdict the task does not start, after a start it is not late.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id           the task
ARGV[2]  dispatch_ms  lease of a task that is with the broker
ARGV[3]  grace_ms     until a granted task is published by somebody else

Returns  {verdict, due_ms, granted...}: "" if there is none; the time until the
         next deadline, 0 if there is none; granted are {id, attempt, clock, start_by,
         finish_by, envelope, body} to publish and confirm.
Emits    what becomes available.
]]
-- include: verdicts

local id = ARGV[1]
local dispatch_ms, grace_ms = tonumber(ARGV[2]), tonumber(ARGV[3])

local now = server_ms()
local granted = {}
local verdict = decide(id, now, dispatch_ms, grace_ms, granted)
local due = tonumber(redis.call("ZSCORE", DEADLINES, id) or 0)
local reply = { verdict or "", due > 0 and math.max(due - now, 1) or 0 }
for _, value in ipairs(granted) do reply[#reply + 1] = value end
return reply
