std = "lua51"
max_line_length = 88
read_globals = { "redis", "cjson", "cmsgpack", "KEYS", "ARGV" }

-- The loader puts what a script includes in front of it, so what is local there
-- is known in it. Read off the files, the list cannot drift.
local shared = {}
for path in io.popen("ls celery_bgtask/lua/includes/*.lua"):lines() do
  for line in io.lines(path) do
    local names = line:match("^local function ([%w_]+)") or line:match("^local ([%w_, ]+)")
    for name in (names or ""):gmatch("[%w_]+") do
      table.insert(shared, name)
    end
  end
end
files["celery_bgtask/lua"] = { read_globals = shared }
-- Defined there for others.
files["celery_bgtask/lua/includes"] = { ignore = { "211" } }
