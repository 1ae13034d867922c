-- ARGV: reader limit most_readers. The events behind what the reader has passed, the last of them, and 1 when
-- some were dropped; false when there are too many readers.
local passed = redis.call('HGET', P .. 'readers', ARGV[1])
if not passed then
  if redis.call('HLEN', P .. 'readers') >= tonumber(ARGV[3]) then return false end
  local last = redis.call('XREVRANGE', P .. 'events', '+', '-', 'COUNT', 1)
  passed = last[1] and last[1][1] or '0-0'
  redis.call('HSET', P .. 'readers', ARGV[1], passed)
end
local rows = redis.call('XRANGE', P .. 'events', '(' .. passed, '+', 'COUNT', ARGV[2])
local events, last = {}, passed
for _, row in ipairs(rows) do
  last = row[1]
  events[#events + 1] = { row[1], row[2][2], row[2][4], row[2][6] }
end
local dropped = 0
if #rows > 0 then
  local info = redis.call('XINFO', 'STREAM', P .. 'events')
  for at = 1, #info, 2 do
    if info[at] == 'max-deleted-entry-id' then
      local function after(a, b)
        local at_a, n_a = string.match(a, '(%d+)-(%d+)')
        local at_b, n_b = string.match(b, '(%d+)-(%d+)')
        if at_a ~= at_b then return tonumber(at_a) > tonumber(at_b) end
        return tonumber(n_a) > tonumber(n_b)
      end
      if after(info[at + 1], passed) then dropped = 1 end
    end
  end
end
return { events, last, dropped }
