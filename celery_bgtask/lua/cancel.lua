--[[
End a task because somebody wants it to end.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id           the task
ARGV[2]  reason       for the one who waits for it
ARGV[3]  terminate    1: a run is ended too: its token is void from now on
ARGV[4]  dispatch_ms  lease of a task that is with the broker
ARGV[5]  grace_ms     until a granted task is published by somebody else
ARGV[6]  tombstone_ms how long it is remembered that it must not start

Returns  {was, worker, granted...}: the state it was in, "" if the store did not
         know it, and the worker that runs it, "" if none does; only a run without
         *terminate*, an ended and a judged task go on as they were; granted are
         {id, attempt, clock, start_by, finish_by, envelope, body} to publish and
         confirm.
Emits    what becomes available.
]]
-- include: verdicts

local id, reason, terminate = ARGV[1], ARGV[2], ARGV[3] == "1"
local dispatch_ms, grace_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local tombstone_ms = tonumber(ARGV[6])

local granted = {}
local task = redis.call("HMGET", task_of(id), "state", "worker")
local state = task[1]
if not state and redis.call("EXISTS", tombstone_of(id)) == 1 then
  return { "decided", "" }
end
if not state then
  redis.call("SET", tombstone_of(id), ANY_ATTEMPT, "PX", tombstone_ms)
elseif state == "running" and not terminate then
  return { state, task[2] or "" }
elseif state ~= "ended" and state ~= "decided" and state ~= "stopping" then
  judge(id, "cancelled " .. reason, state == "running", server_ms(), dispatch_ms,
    grace_ms, granted)
end
local reply = { state or "", task[2] or "" }
for _, value in ipairs(granted) do reply[#reply + 1] = value end
return reply
