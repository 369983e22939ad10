--[[
Forget a run whose result is stored.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id           the task
ARGV[2]  token        of the run, or ""
ARGV[3]  worker       that ran it
ARGV[4]  attempt      that it ran
ARGV[5]  tombstone_ms how long it is remembered that this attempt has ended, if
                      a copy of its message may be left
ARGV[6]  remember     1: a copy of the message may be left with the broker
ARGV[7]  event        JSON, as events.py has it: how it has ended
ARGV[8]  keep         events that are kept for who comes late
ARGV[9]  ttl_ms       for how long
ARGV[10] owed         1: nobody can look the result up

Returns  1, or 0 if the run had been ended or settled by somebody else.
Emits    the end of the task.
]]
-- include: records, events

local id, token, worker, attempt = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local tombstone_ms, remember = tonumber(ARGV[5]), ARGV[6] == "1"
local event, owed = ARGV[7], ARGV[10] == "1"
local keep, ttl_ms = tonumber(ARGV[8]), tonumber(ARGV[9])

local task = redis.call("HMGET", task_of(id), "state", "token", "worker", "attempt",
  "copies")
local mine = token ~= "" and task[2] == token
local worked = token == "" and task[3] == worker and task[4] == attempt
if task[1] ~= "ended" or not (mine or worked) then return 0 end
redis.call("HDEL", worker_of(task[3]), id)
tell_end(id, event, keep, ttl_ms, owed)
bury(id, attempt, (remember or task[5]) and tombstone_ms or 0)
return 1
