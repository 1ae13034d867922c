-- Entries, leased ones among them, and for how long the first has been due.
local first = redis.call('ZRANGE', P .. 'hops', 0, 0, 'WITHSCORES')
return { redis.call('ZCARD', P .. 'all'), redis.call('ZCARD', P .. 'leased'),
  first[2] and math.max(0, now - tonumber(first[2])) or 0 }
