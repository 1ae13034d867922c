-- ARGV: entry epoch. 1, or 0 when the lease is stale.
local entry = ARGV[1]
if not held(entry, ARGV[2]) then return 0 end
redis.call('ZREM', P .. 'leased', entry)
redis.call('HDEL', P .. 'e:' .. entry, 'worker')
enqueue(entry, redis.call('HGET', P .. 'e:' .. entry, 'hop'), now)
return 1
