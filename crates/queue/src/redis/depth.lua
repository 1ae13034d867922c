-- Entries in all, leased, held; for how long the first has been due; and the account:
-- accepted delivered bounced expired removed.
local first = redis.call('ZRANGE', P .. 'first', 0, 0, 'WITHSCORES')
local account = redis.call('HMGET', P .. 'ledger', 'accepted', 'delivered', 'bounced', 'expired', 'removed')
for at = 1, 5 do account[at] = tonumber(account[at] or '0') end
return { redis.call('ZCARD', P .. 'all'), redis.call('ZCARD', P .. 'leased'), redis.call('ZCARD', P .. 'held'),
  first[2] and math.max(0, now - tonumber(first[2])) or 0, account }
