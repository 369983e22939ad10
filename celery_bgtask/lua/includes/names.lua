--[[
Names of everything in the store, and its clock.

KEYS[1] is the hash tag of a scope, "{prefix:scope}". Every name is built from
it here, as keys.py lists them, so that all of a scope lives in one cluster
slot. A script that hands slots on cannot know beforehand which tasks it will
meet, so their names cannot be declared one by one.
]]
local scope = KEYS[1]
local LEASES = scope .. ":leases"
local OUTBOX = scope .. ":outbox"
local LIMITS = scope .. ":limits"
local DEADLINES = scope .. ":deadlines"
local OWED = scope .. ":owed"
local WAITING_BYTES = scope .. ":waiting-bytes"
local WORKERS = scope .. ":workers"
local OVERRIDES = scope .. ":overrides"
local UNWANTED = scope .. ":unwanted"
local BLOCKED = scope .. ":blocked"
local BLOCKS = scope .. ":blocks"

-- A script call stays short: what is left over is handed on by the next one.
local BATCH = 100
local BATCH_BYTES = 8388608

-- Scores of waiting tasks are rank * 2^42 + place: a rank is a priority, a
-- place is first come, first served. Who has had a slot goes to the first half of
-- a rank, before all that come to the second.
local RANK = 4398046511104

-- In a tombstone: no attempt of the task may start, for it was cancelled while
-- the store did not know it.
local ANY_ATTEMPT = 1000000

local function task_of(id) return scope .. ":task:" .. id end
local function slots_of(key) return scope .. ":slots:" .. key end
local function waiting_of(key) return scope .. ":waiting:" .. key end
local function worker_of(worker) return scope .. ":worker:" .. worker end
local function takers_of(queue) return scope .. ":takers:" .. queue end
local function tombstone_of(id) return scope .. ":tombstone:" .. id end
local function strikes_of(key) return scope .. ":strikes:" .. key end
local function block_log_of(key) return scope .. ":block-log:" .. key end
local function log_of(id) return scope .. ":progress:" .. id end

local function server_ms()
  local time = redis.call("TIME")
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
