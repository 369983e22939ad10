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

-- *news* was made at submission: task, queue and metadata; *handed*, by hand_over.
local function tell_available(id, key, news, round, handed)
  local head = string.format("%d %d %s %s %s ", #id, #news, id, key, round)
  redis.call("PUBLISH", channels .. ":available", head .. news .. (handed or ""))
end

-- Bytes of a message that is told to the only worker; a larger one is claimed.
local HANDED = 65536

-- Where one worker alone takes the offers of a queue, nobody races with it: it gets
-- the message along, and starts the task without a claim. Until then the task stays
-- on offer, should that worker die or another one come.
local function hand_over(id, key, queue, now)
  local takers = redis.call("ZRANGE", takers_of(queue), now, "+inf", "BYSCORE",
    "LIMIT", 0, 2)
  if #takers ~= 1 or is_closed(key) then return "" end
  if redis.call("SISMEMBER", ignored_of(id), takers[1]) == 1 then return "" end
  local task = redis.call("HMGET", task_of(id), "attempt", "clock", "start_by",
    "finish_by", "envelope", "body")
  if #task[5] + #task[6] > HANDED then return "" end
  return string.format(" %s %s %s %s %s %d ", takers[1], task[1], task[2] or 0,
    task[3] or 0, task[4] or 0, #task[5]) .. task[5] .. task[6]
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
  local handed
  if task[1] and not to_broker then
    redis.call("HDEL", name, "claimer")
    offer(id, task[1], tonumber(task[2] or 0))
    handed = hand_over(id, key, task[1], now)
  else
    post(id, now, grace_ms, granted)
  end
  if task[3] then
    tell_available(id, key, task[3], round_of(task[4], task[5]), handed)
  end
end
