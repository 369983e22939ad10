--[[
Read what is on offer to a worker, the oldest first; take out what is gone.

KEYS[1]  scope     tag  the hash tag of the scope
KEYS[2]  channels  tag  begins the names of channels

ARGV[1]  worker  that asks: what it has ignored is left out
ARGV[2]  most    offers of each queue
ARGV[...]  queue  that it consumes, quoted

Returns  {id, key, round, news} of each, flat: round tells times apart that the task is
         available; the news are made at submission.
]]
-- include: dispatch

local worker, most = ARGV[1], tonumber(ARGV[2])

local found = {}
for i = 3, #ARGV do
  local at, count = 0, 0
  -- Not for ever: who has ignored a thousand offers looks again later.
  while count < most and at < 10 * BATCH do
    local ids = redis.call("ZRANGE", offers_of(ARGV[i]), at, at + BATCH - 1)
    if #ids == 0 then break end
    at = at + #ids
    for _, id in ipairs(ids) do
      if count < most and redis.call("SISMEMBER", ignored_of(id), worker) == 0 then
        local task = redis.call("HMGET", task_of(id), "key", "news", "attempt", "again")
        if task[1] then
          local round = round_of(task[3] or 1, task[4])
          local row = { id, task[1], tostring(round), task[2] or "" }
          for _, value in ipairs(row) do found[#found + 1] = value end
        else
          redis.call("ZREM", offers_of(ARGV[i]), id)
        end
        count = count + 1
      end
    end
  end
end
return found
