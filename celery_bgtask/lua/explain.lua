--[[
Read all that tells why a task is not running.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  id       the task
ARGV[2]  holders  of its key's slots, how many at most

Returns  {now, tombstone, record, lease, outbox, place, key, holders}: the attempt that
         has ended; {state, attempt, key, worker, verdict, started, since, start_by,
         finish_by, expires_at}; when the lease runs out; when it is published by
         somebody else; its place among those that wait, from 0; the key as in
         stats.lua; {id, state, worker, since, lease}, flat, of each holder. Nil where
         there is nothing.
]]
-- include: describe

local id, most = ARGV[1], tonumber(ARGV[2])

local now = server_ms()
local record = redis.call("HMGET", task_of(id), "state", "attempt", "key", "worker",
  "verdict", "started", "since", "start_by", "finish_by", "expires_at")
local tombstone, key = redis.call("GET", tombstone_of(id)), record[3]
if not key then return { now, tombstone, record } end

return { now, tombstone, record, redis.call("ZSCORE", LEASES, id),
  redis.call("ZSCORE", OUTBOX, id), redis.call("ZRANK", waiting_of(key), id),
  describe(key), holders_of(key, most) }
