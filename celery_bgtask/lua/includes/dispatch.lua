--[[
A task that has a slot is made available: its message goes to the broker, or it is
offered to the workers that consume its queue. Both are told to those who listen.

An offered task is dispatched as any other, and stands in its queue's offers until
a worker claims or starts it.
]]
-- include: slots, outbox, events

local to_broker = false

-- From now on, in this call, what is offered goes to the broker, too.
local function offer_nothing() to_broker = true end

local function offers_of(queue) return scope .. ":offers:" .. queue end
local function ignored_of(id) return scope .. ":ignored:" .. id end

-- Which time it is that the task is available: receivers are asked once each time.
local function round_of(attempt, again)
  return again and attempt .. "-" .. again or attempt
end

-- *news* was made at submission: task, queue and metadata.
local function tell_available(id, key, news, round)
  local text = string.format("%d %s %s %s %s", #id, id, key, round, news)
  redis.call("PUBLISH", channels .. ":available", text)
end

local function offer(id, queue, rank)
  local offers = offers_of(queue)
  local low = rank * RANK
  local last = redis.call("ZREVRANGEBYSCORE", offers, low + RANK - 1, low,
    "WITHSCORES", "LIMIT", 0, 1)
  redis.call("ZADD", offers, "NX", (tonumber(last[2]) or low) + 1, id)
end

-- Who has ignored it may be asked again.
local function forget_ignored(id)
  if redis.call("DEL", ignored_of(id)) == 1 then redis.call("ZREM", UNWANTED, id) end
end

-- Nobody may claim it any more.
local function end_offer(id)
  local queue = redis.call("HGET", task_of(id), "offer")
  if queue then
    redis.call("ZREM", offers_of(queue), id)
    forget_ignored(id)
  end
end

-- The same attempt is available anew, to all.
local function renew_round(id, now)
  redis.call("HSET", task_of(id), "again", now)
  forget_ignored(id)
end

local function dispatch(id, key, now, dispatch_ms, grace_ms, granted)
  local name = task_of(id)
  local task = redis.call("HMGET", name, "offer", "rank", "news", "attempt", "again")
  redis.call("HSET", name, "state", "dispatched")
  hold(id, key, now, dispatch_ms)
  if task[1] and not to_broker then
    redis.call("HDEL", name, "claimer")
    offer(id, task[1], tonumber(task[2] or 0))
  else
    post(id, now, grace_ms, granted)
  end
  if task[3] then tell_available(id, key, task[3], round_of(task[4], task[5])) end
end
