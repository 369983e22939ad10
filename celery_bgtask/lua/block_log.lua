--[[
Read the latest blocks of a key, newest first.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  key  quoted

Returns  {now, facts...}.
]]
-- include: names

local key = ARGV[1]

local reply = { server_ms() }
for _, facts in ipairs(redis.call("LRANGE", block_log_of(key), 0, -1)) do
  reply[#reply + 1] = facts
end
return reply
