--[[
Correct the count of the bytes that wait.

KEYS[1]  scope  tag  the hash tag of the scope

ARGV[1]  drift  by so much it is too high, or too low if less than 0

Returns  the count as it is now.
]]
-- include: waiting

local drift = tonumber(ARGV[1])

if drift ~= 0 then forget_parked(drift) end
return tonumber(redis.call("GET", WAITING_BYTES) or 0)
