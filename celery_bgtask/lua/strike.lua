--[[
Count a strike against a key; block it if there are too many in a short time.

A call that is made twice, with one nonce, counts once.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  key          quoted
ARGV[2]  nonce        of this call
ARGV[3]  threshold    strikes that a key may have
ARGV[4]  interval_ms  in so long
ARGV[5]  facts        of the block, for those who are refused
ARGV[6]  block_ms     how long
ARGV[7]  log_keep     entries to keep in the key's log, 0 for no log
ARGV[8]  log_ms       how long the log is kept

Returns  "blocked" (by this call), "already" or "counted".
]]
-- include: blocks

local key, nonce = ARGV[1], ARGV[2]
local threshold, interval_ms = tonumber(ARGV[3]), tonumber(ARGV[4])
local facts, block_ms = ARGV[5], tonumber(ARGV[6])
local log_keep, log_ms = tonumber(ARGV[7]), tonumber(ARGV[8])

if is_blocked(key) then return "already" end
local now = server_ms()
local strikes = strikes_of(key)
redis.call("ZREMRANGEBYSCORE", strikes, "-inf", now - interval_ms)
redis.call("ZADD", strikes, "NX", now, nonce)
redis.call("PEXPIRE", strikes, interval_ms)
if redis.call("ZCARD", strikes) <= threshold then return "counted" end
block(key, now, block_ms, facts, log_keep, log_ms)
return "blocked"
