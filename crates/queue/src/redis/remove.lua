-- ARGV: message. How many entries it had; they are gone, leased or not.
local total = tonumber(redis.call('HGET', P .. 'm:' .. ARGV[1], 'total') or '0')
local removed = 0
for number = 0, total - 1 do
  local entry = ARGV[1] .. '.' .. number
  local hop = redis.call('HGET', P .. 'e:' .. entry, 'hop')
  if hop then
    unqueue(entry, hop)
    redis.call('ZREM', P .. 'leased', entry)
    redis.call('ZREM', P .. 'all', entry)
    redis.call('UNLINK', P .. 'e:' .. entry)
    removed = removed + 1
  end
end
forget_message(ARGV[1])
return removed
