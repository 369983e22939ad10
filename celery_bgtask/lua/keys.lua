--[[
Describe the keys of a scope, a page in each call.

A key is in up to three indexes: of those in use ("limits"), of those that have a
limit of their own ("overrides"), and of those that are blocked ("blocked").

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  index   one of these
ARGV[2]  cursor  of the call before, 0 in the first
ARGV[3]  count   about how many

Returns  {cursor, now, {key, running, held, waiting, declared, override, paused,
         block, ends, since}...}: the cursor of the next call, 0 after the last; the
         rest is as in stats.lua. A key may come twice.
]]
-- include: describe

local index, cursor, count = ARGV[1], ARGV[2], ARGV[3]

local page
if index == "blocked" then
  page = redis.call("ZSCAN", BLOCKED, cursor, "COUNT", count)
else
  local name = index == "limits" and LIMITS or OVERRIDES
  page = redis.call("HSCAN", name, cursor, "COUNT", count)
end
local reply = { page[1], server_ms() }
for i = 1, #page[2], 2 do
  local key = page[2][i]
  if key ~= EVERY_KEY then reply[#reply + 1] = describe(key) end
end
return reply
