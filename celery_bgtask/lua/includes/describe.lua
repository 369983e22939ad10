-- What there is to say of a key.

-- include: blocks

-- Since when the one waits that waits longest: in half a rank that is the first.
local function oldest(key)
  local half, low, since = RANK / 2, "-inf", false
  while true do
    local first = redis.call("ZRANGE", waiting_of(key), low, "+inf", "BYSCORE",
      "LIMIT", 0, 1, "WITHSCORES")
    if #first == 0 then return since end
    local at = tonumber(redis.call("HGET", task_of(first[1]), "since") or nil)
    if at and (not since or at < since) then since = at end
    low = (math.floor(first[2] / half) + 1) * half
  end
end

-- {key, running, held, waiting, declared, override, paused, block, ends, since}: false
-- where there is nothing; block are the facts of one that may have ended by time.
local function describe(key)
  local slots = slots_of(key)
  local said = redis.call("HMGET", OVERRIDES, EVERY_KEY, key)
  local waiting = redis.call("ZCARD", waiting_of(key))
  return { key, redis.call("ZCOUNT", slots, "-inf", "(0"), redis.call("ZCARD", slots),
    waiting, redis.call("HGET", LIMITS, key), said[2], said[1] and 1 or 0,
    redis.call("HGET", BLOCKS, key), redis.call("ZSCORE", BLOCKED, key),
    waiting > 0 and oldest(key) }
end

-- {id, state, worker, since, lease}, flat, of those that hold a slot of the key: when
-- their lease runs out, "" if they have none.
local function holders_of(key, most)
  local holders = {}
  local held = redis.call("ZRANGE", slots_of(key), 0, most - 1, "WITHSCORES")
  for i = 1, #held, 2 do
    local id, since = held[i], math.abs(held[i + 1])
    local task = redis.call("HMGET", task_of(id), "state", "worker")
    local lease = redis.call("ZSCORE", LEASES, id) or ""
    for _, value in ipairs({ id, task[1] or "", task[2] or "", since, lease }) do
      holders[#holders + 1] = value
    end
  end
  return holders
end
