--[[
Read all that tells why a task is not running.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  id       the task
ARGV[2]  holders  of its key's slots, how many at most

Returns  {now, tombstone, record, lease, outbox, place, key, holders, offer}: the
         attempt that has ended; {state, attempt, key, worker, verdict, started, since,
         start_by, finish_by, expires_at}; when the lease runs out; when it is
         published by somebody else; its place among those that wait, from 0; the key
         as in stats.lua; {id, state, worker, since, lease}, flat, of each holder;
         {queue, told, ignored, claimer} of an offer: live workers that take offers of
         the queue, and those among them that do not want it. Nil: there is nothing.
]]
-- include: describe, dispatch

local id, most = ARGV[1], tonumber(ARGV[2])

local now = server_ms()
local record = redis.call("HMGET", task_of(id), "state", "attempt", "key", "worker",
  "verdict", "started", "since", "start_by", "finish_by", "expires_at")
local tombstone, key = redis.call("GET", tombstone_of(id)), record[3]
if not key then return { now, tombstone, record } end

local function describe_offer()
  local task = redis.call("HMGET", task_of(id), "offer", "claimer")
  local queue, claimer = task[1], task[2]
  if record[1] ~= "dispatched" or not queue then return false end
  local is_open = redis.call("ZSCORE", offers_of(queue), id)
  if not claimer and not is_open then return false end  -- with the broker: drained
  local takers = redis.call("ZRANGE", takers_of(queue), now, "+inf", "BYSCORE")
  local ignored = 0
  for _, taker in ipairs(takers) do
    ignored = ignored + redis.call("SISMEMBER", ignored_of(id), taker)
  end
  return { queue, #takers, ignored, claimer }
end

return { now, tombstone, record, redis.call("ZSCORE", LEASES, id),
  redis.call("ZSCORE", OUTBOX, id), redis.call("ZRANK", waiting_of(key), id),
  describe(key), holders_of(key, most), describe_offer() }
