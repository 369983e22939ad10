-- Offers that some workers have ignored: without one that has not, they end.

-- include: verdicts

-- Milliseconds between two looks at an offer whose last taker may have died.
local LOOK_MS = 500

-- A worker has ignored it: from now on it is looked after.
local function note_ignored(id, worker, now, ttl_ms)
  redis.call("SADD", ignored_of(id), worker)
  redis.call("PEXPIRE", ignored_of(id), ttl_ms)
  redis.call("ZADD", UNWANTED, now + LOOK_MS, id)
end

-- Ends the offer if *some* worker lives that could take it and none of them wants
-- to. Without a worker it waits for one.
local function end_unwanted(id, some, now, dispatch_ms, grace_ms, granted)
  local task = redis.call("HMGET", task_of(id), "offer", "clock", "start_by")
  local queue = task[1]
  if not queue or not redis.call("ZSCORE", offers_of(queue), id) then return end
  local takers = redis.call("ZRANGE", takers_of(queue), now, "+inf", "BYSCORE")
  for _, taker in ipairs(takers) do
    some = true
    if redis.call("SISMEMBER", ignored_of(id), taker) == 0 then return end
  end
  if not some then return end
  local timeout_ms = (tonumber(task[3]) or now) - (tonumber(task[2]) or now)
  local verdict = "unaccepted worker " .. timeout_ms
  judge(id, verdict, false, now, dispatch_ms, grace_ms, granted)
end

-- Looks at what has been ignored up to *due*, the longest time ago first.
local function end_all_unwanted(due, now, dispatch_ms, grace_ms, granted)
  local ids = redis.call("ZRANGE", UNWANTED, "-inf", due, "BYSCORE", "LIMIT", 0, BATCH)
  for _, id in ipairs(ids) do
    if #granted >= GRANT * BATCH then return end
    local offered = redis.call("HEXISTS", task_of(id), "offer") == 1
    if offered and redis.call("EXISTS", ignored_of(id)) == 1 then
      redis.call("ZADD", UNWANTED, now + LOOK_MS, id)
      end_unwanted(id, false, now, dispatch_ms, grace_ms, granted)
    else
      redis.call("ZREM", UNWANTED, id)
      redis.call("DEL", ignored_of(id))
    end
  end
end
