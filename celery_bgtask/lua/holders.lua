--[[
Read who holds the slots of a key.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  key   quoted
ARGV[2]  most  how many at most

Returns  {now, {id, state, worker, since, lease}...}, flat: when the lease runs out,
         "" if there is none.
]]
-- include: describe

local key, most = ARGV[1], tonumber(ARGV[2])

local reply = { server_ms() }
for _, value in ipairs(holders_of(key, most)) do reply[#reply + 1] = value end
return reply
