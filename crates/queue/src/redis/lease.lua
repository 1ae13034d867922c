-- ARGV: worker max lease_ms inline_limit max_lost, then the next hops to pass over.
local worker, left, inline_limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local ends = whole(now + tonumber(ARGV[3]))
local except, excepted = {}, 0
for at = 6, #ARGV do
  except[ARGV[at]] = true
  excepted = excepted + 1
end

-- Leases that have ended go back; a bounded number at a time, the next call takes the rest.
local ended = redis.call('ZRANGEBYSCORE', P .. 'leased', '-inf', whole(now), 'WITHSCORES', 'LIMIT', 0, 100)
for at = 1, #ended, 2 do
  local entry = ended[at]
  local key = P .. 'e:' .. entry
  redis.call('ZREM', P .. 'leased', entry)
  if redis.call('EXISTS', key) == 1 then
    local lost = redis.call('HINCRBY', key, 'lost', 1)
    if lost >= tonumber(ARGV[5]) then
      redis.call('HSETNX', key, 'held', lost .. ' leases in a row ended without a word')
    end
    rest(entry, tonumber(ended[at + 1]))
  end
end

local told = {}
-- Each round takes a fair share of every next hop that has something due, longest due first.
while left > 0 do
  local hops, progress = {}, false
  local due = redis.call('ZRANGEBYSCORE', P .. 'hops', '-inf', whole(now), 'LIMIT', 0, left + excepted)
  for _, hop in ipairs(due) do
    if not except[hop] and #hops < left then hops[#hops + 1] = hop end
  end
  local share = #hops > 0 and math.max(1, math.floor(left / #hops)) or 0
  for _, hop in ipairs(hops) do
    local count = math.min(share, left)
    local entries = redis.call('ZRANGEBYSCORE', P .. 'due:' .. hop, '-inf', whole(now), 'LIMIT', 0, count)
    for _, entry in ipairs(entries) do
      progress = true
      left = left - 1
      redis.call('ZREM', P .. 'due:' .. hop, entry)
      redis.call('HINCRBY', P .. 'e:' .. entry, 'epoch', 1)
      redis.call('HSET', P .. 'e:' .. entry, 'worker', worker)
      redis.call('ZADD', P .. 'leased', ends, entry)
      local row = tell(entry, 'leased', ends)
      if row then
        local body = P .. 'm:' .. message_of(entry)
        row[#row + 1] = redis.call('HSTRLEN', body, 'body') <= inline_limit and redis.call('HGET', body, 'body')
        told[#told + 1] = row
      end
    end
    if #entries > 0 then follow(hop) end
  end
  if not progress then break end
end
return { now, told }
