--[[
Count what runs and waits of some keys.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[...]  key  quoted, each

Returns  {now, {key, running, held, waiting, declared, override, paused, block, ends,
         since}...}: bodies that execute, slots that are taken, parked tasks, slots as
         declared (-1 for none, nil while the key is not in use), slots as set by an
         operator, 1 in a pause of all keys, facts of its block and when it ends, and
         since when the one waits that waits longest.
]]
-- include: describe

local reply = { server_ms() }
for i = 1, #ARGV do reply[#reply + 1] = describe(ARGV[i]) end
return reply
