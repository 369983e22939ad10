--[[
Note that a worker lives that knows the tasks of the scope.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  worker  its node name; "" only asks
ARGV[2]  ttl_ms  until it counts as gone
ARGV[3]  taker   its id, as that of which it takes offers
ARGV[...]  queue  from which it takes them, quoted

Returns  {now_ms, worker...}: the server's time, and all that live.
]]
-- include: names

local worker, ttl_ms, taker = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local now = server_ms()
local function note(list, name)
  redis.call("ZREMRANGEBYSCORE", list, "-inf", now)
  if name == "" then return end
  redis.call("ZADD", list, now + ttl_ms, name)
  local last = redis.call("ZRANGE", list, -1, -1, "WITHSCORES")
  redis.call("PEXPIREAT", list, last[2])
end

note(WORKERS, worker)
for i = 4, #ARGV do note(takers_of(ARGV[i]), taker) end
return { now, unpack(redis.call("ZRANGE", WORKERS, 0, -1)) }
