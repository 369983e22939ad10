--[[
Pause a scope: nothing more starts, of any key.

KEYS[1]  scope  tag  the hash tag of the scope

Returns  1, or 0 if it was paused before.
]]
-- include: slots

return redis.call("HSETNX", OVERRIDES, EVERY_KEY, 0)
