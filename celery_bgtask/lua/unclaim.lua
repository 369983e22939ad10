--[[
Offer a task again whose claimer cannot start it, or whose last run is over.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id           the task
ARGV[2]  worker       that has claimed it, or the token of that run
ARGV[3]  dispatch_ms  lease of a task that is on its way to a worker
ARGV[4]  grace_ms     until a granted task is published by somebody else
ARGV[5]  ignored_ms   above 0: this worker does not want it, for so long

Returns  granted: {id, attempt, clock, start_by, finish_by, envelope, body} to
         publish and confirm. Nothing is done if the claim has lapsed, or the task
         has started or ended.
Emits    that the task is available.
]]
-- include: unwanted

local id, worker = ARGV[1], ARGV[2]
local dispatch_ms, grace_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local ignored_ms = tonumber(ARGV[5])

local now = server_ms()
local granted = {}
local task = redis.call("HMGET", task_of(id), "state", "claimer", "key")
if task[1] ~= "dispatched" or task[2] ~= worker then return granted end
if ignored_ms > 0 then note_ignored(id, worker, now, ignored_ms) end
dispatch(id, task[3], now, dispatch_ms, grace_ms, granted)
if ignored_ms > 0 then
  end_unwanted(id, true, now, dispatch_ms, grace_ms, granted)
end
return granted
