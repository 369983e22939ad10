--[[
List keys that are blocked, some at a time.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  cursor  of the call before, 0 in the first
ARGV[2]  count   about how many

Returns  {cursor, now, {key, ends, facts}...}: the cursor of the next call, 0 after
         the last; a key may come twice.
]]
-- include: blocks

local cursor, count = ARGV[1], ARGV[2]

local now = server_ms()
local page = redis.call("ZSCAN", BLOCKED, cursor, "COUNT", count)
local reply = { page[1], now }
for i = 1, #page[2], 2 do
  local key, ends = page[2][i], page[2][i + 1]
  if tonumber(ends) > now then
    for _, value in ipairs({ key, ends, block_facts(key) }) do
      reply[#reply + 1] = value
    end
  end
end
return reply
