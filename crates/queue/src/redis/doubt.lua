-- ARGV: entry epoch peer. 1, or 0 when the lease is stale.
if not held(ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', P .. 'e:' .. ARGV[1], 'doubt', ARGV[3], 'doubt_since', whole(now))
emit('in_doubt', ARGV[1], ARGV[3])
return 1
