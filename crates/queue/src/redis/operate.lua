-- ARGV: message number ('' for all entries) verb why by. How many entries the verb concerned.
local message, number, verb, why, count = ARGV[1], ARGV[2], ARGV[3], ARGV[4], 0
local verbs = {
  retry = function(entry, tenant, hop)
    if not unqueue(entry, tenant, hop) then return false end
    enqueue(entry, tenant, hop, now)
    return 'retried'
  end,
  hold = function(entry, tenant, hop)
    redis.call('HSET', P .. 'e:' .. entry, 'held', why)
    if unqueue(entry, tenant, hop) then redis.call('ZADD', P .. 'held', whole(now), entry) end
    return 'held'
  end,
  release = function(entry, tenant, hop)
    if redis.call('HDEL', P .. 'e:' .. entry, 'held') == 0 then return false end
    redis.call('HDEL', P .. 'e:' .. entry, 'lost')
    if redis.call('ZREM', P .. 'held', entry) == 1 then enqueue(entry, tenant, hop, now) end
    return 'released'
  end,
  bounce = function(entry, tenant, hop)
    redis.call('HDEL', P .. 'e:' .. entry, 'held', 'lost')
    redis.call('HSET', P .. 'e:' .. entry, 'doomed', why)
    if redis.call('ZREM', P .. 'held', entry) == 1 or unqueue(entry, tenant, hop) then
      enqueue(entry, tenant, hop, now)
    end
    return 'doomed'
  end,
  remove = function(entry, tenant, hop)
    unqueue(entry, tenant, hop)
    redis.call('ZREM', P .. 'leased', entry)
    redis.call('ZREM', P .. 'held', entry)
    redis.call('ZREM', P .. 'all', entry)
    redis.call('UNLINK', P .. 'e:' .. entry)
    redis.call('HINCRBY', P .. 'ledger', 'removed', 1)
    redis.call('HINCRBY', P .. 'm:' .. message, 'open', -1)
    return 'removed'
  end,
}
-- What is left where a record vanished: an audit names it, and it can be removed.
local known = redis.call('EXISTS', P .. 'm:' .. message) == 1
if verb == 'remove' then
  for _, entry in ipairs(redis.call('ZRANGEBYLEX', P .. 'all', '[' .. message .. '.', '(' .. message .. '/')) do
    local e = redis.call('HMGET', P .. 'e:' .. entry, 'tenant', 'hop')
    if (number == '' or entry == message .. '.' .. number) and not (known and e[2]) then
      unqueue(entry, e[1] or '', e[2] or '')
      redis.call('ZREM', P .. 'leased', entry)
      redis.call('ZREM', P .. 'held', entry)
      redis.call('ZREM', P .. 'all', entry)
      redis.call('UNLINK', P .. 'e:' .. entry)
      redis.call('HINCRBY', P .. 'ledger', 'removed', 1)
      if known then redis.call('HINCRBY', P .. 'm:' .. message, 'open', -1) end
      count = count + 1
      emit('removed', entry, why)
    end
  end
end
each_entry(message, function(entry, tenant, hop)
  if number ~= '' and entry ~= message .. '.' .. number then return end
  local event = verbs[verb](entry, tenant, hop)
  if event then
    count = count + 1
    emit(event, entry, why)
  end
end)
if verb == 'remove' and count > 0 and tonumber(redis.call('HGET', P .. 'm:' .. message, 'open') or '0') <= 0 then
  forget_message(message)
end
if count > 0 and ARGV[5] ~= '' then
  local target = number == '' and message or message .. '.' .. number
  redis.call('XADD', P .. 'verbs', 'MAXLEN', '~', 10000, '*', 'by', ARGV[5], 'verb', verb, 'target', target,
    'why', why, 'entries', count)
end
return count
