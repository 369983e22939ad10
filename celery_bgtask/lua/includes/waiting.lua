-- Tasks that wait for a slot, with their messages.

-- include: names

local function parked_size(id)
  local name = task_of(id)
  return redis.call("HSTRLEN", name, "envelope") + redis.call("HSTRLEN", name, "body")
end

-- A count that cannot drift for ever: with nothing parked it is no key.
local function forget_parked(bytes)
  if redis.call("DECRBY", WAITING_BYTES, bytes) <= 0 then
    redis.call("DEL", WAITING_BYTES)
  end
end

-- *in_front* is for a task that has had a slot and gives it up.
local function park(id, key, rank, bytes, now, in_front)
  local waiting = waiting_of(key)
  local low = rank * RANK + (in_front and 0 or RANK / 2)
  local last = redis.call("ZREVRANGEBYSCORE", waiting, low + RANK / 2 - 1, low,
    "WITHSCORES", "LIMIT", 0, 1)
  redis.call("ZADD", waiting, (tonumber(last[2]) or low) + 1, id)
  redis.call("HSET", task_of(id), "state", "waiting", "rank", rank, "since", now)
  redis.call("INCRBY", WAITING_BYTES, bytes)
end

local function unpark(id, key)
  if redis.call("ZREM", waiting_of(key), id) == 1 then
    forget_parked(parked_size(id))
  end
end
