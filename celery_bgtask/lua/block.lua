--[[
Block a key: nothing new is taken for it, and nothing of it starts.

A key that is blocked gets the new facts and time.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  key       quoted
ARGV[2]  facts     of the block, for those who are refused
ARGV[3]  block_ms  how long, less than 0 for ever
ARGV[4]  log_keep  entries to keep in the key's log, 0 for no log
ARGV[5]  log_ms    how long the log is kept

Returns  1, or 0 if it was blocked before.
]]
-- include: blocks

local key, facts, block_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local log_keep, log_ms = tonumber(ARGV[4]), tonumber(ARGV[5])

local was = is_blocked(key)
block(key, server_ms(), block_ms, facts, log_keep, log_ms)
return was and 0 or 1
