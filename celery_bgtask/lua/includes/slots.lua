-- The slots of a key, and how many it has.

-- include: names

-- In the overrides: a pause of all keys. No key is quoted like that.
local EVERY_KEY = "*"

-- Whether an operator has a say in this scope. Mostly not, and one call tells.
local steered
local function is_steered()
  if steered == nil then steered = redis.call("EXISTS", OVERRIDES, BLOCKED) > 0 end
  return steered
end

-- A block that has ended by time counts no more, swept or not.
local function is_blocked(key)
  local ends = is_steered() and redis.call("ZSCORE", BLOCKED, key)
  return ends and tonumber(ends) > server_ms()
end

-- None while the key is blocked or paused; else as set by an operator, or declared.
local function limit_of(key)
  local limit = redis.call("HGET", LIMITS, key)
  if is_steered() then
    local said = redis.call("HMGET", OVERRIDES, EVERY_KEY, key)
    if said[1] or is_blocked(key) then return 0 end
    limit = said[2] or limit
  end
  limit = tonumber(limit or 0)
  return limit < 0 and math.huge or limit
end

-- Nothing of *key* may start, not even what has a slot.
local function is_closed(key)
  return is_steered() and limit_of(key) == 0
end

local function has_room(key)
  return redis.call("ZCARD", slots_of(key)) < limit_of(key)
end

-- Takes or keeps a slot of *key* for a task on its way to a worker.
local function hold(id, key, now, ttl_ms)
  redis.call("ZADD", slots_of(key), now, id)
  redis.call("ZADD", LEASES, now + ttl_ms, id)
end

-- The same for a run: with a score below 0, so that runs can be counted.
local function hold_run(id, key, now, ttl_ms)
  redis.call("ZADD", slots_of(key), -now, id)
  redis.call("ZADD", LEASES, now + ttl_ms, id)
end

local function forget_idle(key)
  if redis.call("EXISTS", slots_of(key), waiting_of(key)) == 0 then
    redis.call("HDEL", LIMITS, key)
  end
end
