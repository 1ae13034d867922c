-- ARGV: shards_wanted margin_ms. KEYS[1] is the first shard. The layout: by turns, since when an id's time is
-- spread over how many shards.
local key = P .. 'layout'
local rows = redis.call('ZRANGE', key, 0, -1)
local wanted = tonumber(ARGV[1])
local last = #rows > 0 and tonumber(string.match(rows[#rows], '%d+$'))
if not last or last < wanted then
  local since = last and wall + tonumber(ARGV[2]) or 0
  local row = whole(since) .. ':' .. wanted
  redis.call('ZADD', key, whole(since), row)
  rows[#rows + 1] = row
end
return { wall, rows }
