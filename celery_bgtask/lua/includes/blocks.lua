-- Keys that are refused.

-- include: slots

-- How long the block of a key lasts yet, less than 0 for ever.
local function block_left(key, now)
  local left = tonumber(redis.call("ZSCORE", BLOCKED, key)) - now
  return left < math.huge and left or -1
end

-- What was said when it began: the time, and JSON that only Python reads.
local function block_facts(key)
  return redis.call("HGET", BLOCKS, key) or ""
end

-- Blocks a key from *now* on for that long, less than 0 for ever.
local function block(key, now, block_ms, facts, log_keep, log_ms)
  local ends = block_ms < 0 and "+inf" or string.format("%.0f", now + block_ms)
  facts = string.format("%.0f %s %s", now, ends, facts)
  redis.call("ZADD", BLOCKED, ends, key)
  redis.call("HSET", BLOCKS, key, facts)
  redis.call("DEL", strikes_of(key))
  if log_keep > 0 then
    local log = block_log_of(key)
    redis.call("LPUSH", log, facts)
    redis.call("LTRIM", log, 0, log_keep - 1)
    redis.call("PEXPIRE", log, log_ms)
  end
end

local function forget_block(key)
  redis.call("HDEL", BLOCKS, key)
  return redis.call("ZREM", BLOCKED, key) == 1
end
