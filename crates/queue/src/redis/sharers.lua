-- ARGV: next_hop worker lasts_ms. How many workers there are, and how many of them come before this one.
local key = P .. 'sharers:' .. ARGV[1]
redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
redis.call('ZADD', key, whole(now + tonumber(ARGV[3])), ARGV[2])
redis.call('PEXPIRE', key, 2 * tonumber(ARGV[3]))
local workers, before = redis.call('ZRANGE', key, 0, -1), 0
for _, worker in ipairs(workers) do
  if worker < ARGV[2] then before = before + 1 end
end
return { #workers, before }
