--[[
Tell who follows a task how far its run has come.

A run that was ended, or has lost its lease, reports nothing any more. After a loss
of the store's memory nobody knows the run, and it goes on.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id      the task
ARGV[2]  token   of the run
ARGV[3]  event   JSON, as events.py has it
ARGV[4]  keep    reports that are kept for who comes late
ARGV[5]  ttl_ms  for how long

Returns  {valid, verdict}: 1 or 0, and how the task was ended, "" if nobody did.
Emits    the report, with its number and the time.
]]
-- include: events

local id, token, event = ARGV[1], ARGV[2], ARGV[3]
local keep, ttl_ms = tonumber(ARGV[4]), tonumber(ARGV[5])

local name = task_of(id)
local task = redis.call("HMGET", name, "state", "token", "verdict", "reply", "seq")
if not task[1] then
  return { redis.call("EXISTS", tombstone_of(id)) == 1 and 0 or 1, "" }
end
if task[1] ~= "running" or task[2] ~= token then
  return { 0, task[2] == token and task[3] or "" }
end
local seq = (tonumber(task[5]) or 0) + 1
redis.call("HSET", name, "seq", seq)
log(id, publish(id, task[4], seq, event), keep, ttl_ms, true)
return { 1, "" }
