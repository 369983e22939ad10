-- Many keys, a page in each call.

-- include: hand_on

-- Grants what waits for the keys of one page, of each while *may* says so. A full
-- batch ends the call, and the next one begins with the same page. Returns the
-- cursor of the next call, "" after the last.
local function grant_page(cursor, may, now, dispatch_ms, grace_ms, granted)
  local page = redis.call("HSCAN", LIMITS, cursor, "COUNT", BATCH)
  local bytes = 0
  for i = 1, #page[2], 2 do
    local key = page[2][i]
    while may(key) do
      if #granted >= GRANT * BATCH or bytes >= BATCH_BYTES then return cursor end
      local id, size = grant_first(key, now, dispatch_ms, grace_ms, granted)
      if not id then break end
      bytes = bytes + size
    end
  end
  return page[1] ~= "0" and page[1] or ""
end
