-- ARGV: entry epoch recipients retry_ms ('' when it is done) error closing bounce (1 or 0), then the bounce
-- as `admit` reads it. 1, or 0 when the lease is stale.
local entry = ARGV[1]
if not held(entry, ARGV[2]) then return 0 end
redis.call('ZREM', P .. 'leased', entry)
local key, message = P .. 'e:' .. entry, message_of(entry)
if ARGV[4] == '' then
  redis.call('UNLINK', key)
  redis.call('ZREM', P .. 'all', entry)
  redis.call('HINCRBY', P .. 'ledger', ARGV[6], 1)
  emit(ARGV[6], entry)
  if redis.call('HINCRBY', P .. 'm:' .. message, 'open', -1) <= 0 then forget_message(message) end
else
  redis.call('HINCRBY', key, 'attempts', 1)
  redis.call('HSET', key, 'recipients', ARGV[3], 'error', ARGV[5], 'lost', 0)
  redis.call('HDEL', key, 'doubt', 'doubt_since')
  emit('deferred', entry, ARGV[5])
  rest(entry, now + tonumber(ARGV[4]))
end
if ARGV[7] == '1' then admit(8, false, 0) end
return 1
