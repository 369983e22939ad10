-- What workers say to a broadcast: kept for as long as somebody may read it.

-- include: events

local function call_of(id) return scope .. ":broadcast:" .. id end

local function say(id, event, keep, ttl_ms)
  local seq = redis.call("HINCRBY", call_of(id), ":seq", 1)
  redis.call("PEXPIRE", call_of(id), ttl_ms)
  log(id, publish(id, "", seq, event), keep, ttl_ms, true)
end
