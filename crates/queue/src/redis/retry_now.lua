-- ARGV: message. How many of its waiting entries are due now.
local total = tonumber(redis.call('HGET', P .. 'm:' .. ARGV[1], 'total') or '0')
local moved = 0
for number = 0, total - 1 do
  local entry = ARGV[1] .. '.' .. number
  local hop = redis.call('HGET', P .. 'e:' .. entry, 'hop')
  if hop and unqueue(entry, hop) then
    enqueue(entry, hop, now)
    moved = moved + 1
  end
end
return moved
