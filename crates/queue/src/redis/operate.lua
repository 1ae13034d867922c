-- ARGV: message verb why. How many of its entries the verb concerned.
local verb, why, count = ARGV[2], ARGV[3], 0
local verbs = {
  retry = function(entry, hop)
    if not unqueue(entry, hop) then return false end
    enqueue(entry, hop, now)
    return true
  end,
  hold = function(entry, hop)
    redis.call('HSET', P .. 'e:' .. entry, 'held', why)
    if unqueue(entry, hop) then redis.call('ZADD', P .. 'held', whole(now), entry) end
    return true
  end,
  release = function(entry, hop)
    if redis.call('HDEL', P .. 'e:' .. entry, 'held') == 0 then return false end
    redis.call('HDEL', P .. 'e:' .. entry, 'lost')
    if redis.call('ZREM', P .. 'held', entry) == 1 then enqueue(entry, hop, now) end
    return true
  end,
  bounce = function(entry, hop)
    redis.call('HDEL', P .. 'e:' .. entry, 'held', 'lost')
    redis.call('HSET', P .. 'e:' .. entry, 'doomed', why)
    if redis.call('ZREM', P .. 'held', entry) == 1 or unqueue(entry, hop) then enqueue(entry, hop, now) end
    return true
  end,
  remove = function(entry, hop)
    unqueue(entry, hop)
    redis.call('ZREM', P .. 'leased', entry)
    redis.call('ZREM', P .. 'held', entry)
    redis.call('ZREM', P .. 'all', entry)
    redis.call('UNLINK', P .. 'e:' .. entry)
    redis.call('HINCRBY', P .. 'ledger', 'removed', 1)
    return true
  end,
}
each_entry(ARGV[1], function(entry, hop)
  if verbs[verb](entry, hop) then count = count + 1 end
end)
if verb == 'remove' then forget_message(ARGV[1]) end
return count
