-- A slot that is free again goes to the task that waits longest.

-- include: slots, waiting, dispatch, deadlines

-- Gives a slot of *key*, free or not, to the first that waits for it. Returns its
-- id and the bytes of its message, nothing if none waits.
local function grant_first(key, now, dispatch_ms, grace_ms, granted)
  local first = redis.call("ZPOPMIN", waiting_of(key))
  if #first == 0 then return nil end
  local id = first[1]
  local size = parked_size(id)
  if size == 0 then return id, 0 end  -- its record is gone
  forget_parked(size)
  redis.call("HDEL", task_of(id), "nonce", "since", "drained")
  dispatch(id, key, now, dispatch_ms, grace_ms, granted)
  return id, size
end

-- Gives the free slots of *key* to what waits for it, at least one of them: then
-- the key has a holder, whose release goes on where this call has stopped.
local function promote(key, now, dispatch_ms, grace_ms, granted)
  local bytes, enough = 0, #granted + GRANT * BATCH
  while has_room(key) and #granted < enough and bytes < BATCH_BYTES do
    local id, size = grant_first(key, now, dispatch_ms, grace_ms, granted)
    if not id then break end
    bytes = bytes + size
  end
end

-- A slot of *key* is free again.
local function hand_on(key, now, dispatch_ms, grace_ms, granted)
  promote(key, now, dispatch_ms, grace_ms, granted)
  forget_idle(key)
end

-- The dispatch lease has run out: the slot is free, the task stays valid. Its
-- record has a lifetime from now on, unless a deadline ends it: a message that comes
-- later than that brings all that the record has, and one that is lost never comes.
local function lapse(id, key, state, tombstone_ms)
  redis.call("ZREM", slots_of(key), id)
  redis.call("ZREM", LEASES, id)
  redis.call("HSET", task_of(id), "state", state)
  watch(id)
  if not redis.call("ZSCORE", DEADLINES, id) then
    redis.call("PEXPIRE", task_of(id), tombstone_ms)
  end
end
