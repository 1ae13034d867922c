-- ARGV: entry epoch. 1, or 0 when the lease is stale.
local entry = ARGV[1]
if not held(entry, ARGV[2]) then return 0 end
redis.call('ZREM', P .. 'leased', entry)
rest(entry, now)
return 1
