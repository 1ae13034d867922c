-- ARGV: entry epoch lease_ms. 1, or 0 when the lease is stale.
if not held(ARGV[1], ARGV[2]) then return 0 end
redis.call('ZADD', P .. 'leased', whole(now + tonumber(ARGV[3])), ARGV[1])
return 1
