--[[
Forget a task that could not be published, or was revoked before its start.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id           the task
ARGV[2]  attempt      that was granted
ARGV[3]  dispatch_ms  lease of a task that is with the broker
ARGV[4]  grace_ms     until a granted task is published by somebody else
ARGV[5]  tombstone_ms how long it is remembered that earlier attempts have ended
ARGV[6]  event        JSON, as events.py has it: how it has ended; "": nobody has
                      heard of it
ARGV[7]  keep         events that are kept for who comes late
ARGV[8]  ttl_ms       for how long
ARGV[9]  owed         1: nobody can look the result up

Returns  granted: {id, attempt, clock, start_by, finish_by, envelope, body} to publish
         and confirm.
Emits    the end of the task.
]]
-- include: hand_on, records, events

local id, attempt = ARGV[1], ARGV[2]
local dispatch_ms, grace_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local tombstone_ms, event = tonumber(ARGV[5]), ARGV[6]
local keep, ttl_ms, owed = tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9] == "1"

local granted = {}
local task = redis.call("HMGET", task_of(id), "state", "attempt", "key", "copies")
local started = task[1] == "running" or task[1] == "stopping" or task[1] == "ended"
if task[1] and not started and task[1] ~= "decided" and task[2] == attempt then
  unpark(id, task[3])
  end_offer(id)
  redis.call("ZREM", slots_of(task[3]), id)
  if event ~= "" then tell_end(id, event, keep, ttl_ms, owed) end
  bury(id, attempt - 1, task[4] and tombstone_ms or 0)
  hand_on(task[3], server_ms(), dispatch_ms, grace_ms, granted)
end
return granted
