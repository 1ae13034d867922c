-- ARGV: worker max lease_ms inline_limit max_lost, then the next hops to pass over.
local worker, left, inline_limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local ends = whole(now + tonumber(ARGV[3]))
-- Tenants looked at in one call; and for how long what is suspended is not looked at again.
local LOOKS, SUSPENDED_FOR = 256, 1000
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

local function take(entry)
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

-- Takes at most `share` entries of a lane; says how many.
local function serve_lane(tenant, hop, share)
  local scope = 'h:' .. hop
  if redis.call('HEXISTS', P .. 'suspended', scope) == 1 then
    follow(tenant, hop, clock + SUSPENDED_FOR)
    return 0
  end
  local tokens = bucket(scope, redis.call('HGET', P .. 'policy', scope))
  if tokens.tokens < 1 then
    follow(tenant, hop, clock + tokens.wait)
    return 0
  end
  local lane = P .. 'due:' .. tenant .. '|' .. hop
  local entries = redis.call('ZRANGEBYSCORE', lane, '-inf', whole(now), 'LIMIT', 0, math.min(share, tokens.tokens))
  for _, entry in ipairs(entries) do
    redis.call('ZREM', lane, entry)
    take(entry)
  end
  if #entries > 0 then
    tokens.spend(#entries)
    follow(tenant, hop, clock)
  end
  return #entries
end

-- A tenant that got nothing is not looked at again before `turn`.
local function pass_over(tenant, turn)
  redis.call('ZADD', P .. 'tenants', string.format('%.3f', turn), tenant)
end

-- Takes at most `share` entries of a tenant, of all its next hops in turn; says how many.
local function serve(tenant, share, policy)
  local scope = 't:' .. tenant
  if redis.call('HEXISTS', P .. 'suspended', scope) == 1 then
    pass_over(tenant, clock + SUSPENDED_FOR)
    return 0
  end
  local tokens = bucket(scope, policy)
  if tokens.tokens < 1 then
    pass_over(tenant, clock + tokens.wait)
    return 0
  end
  share = math.min(share, tokens.tokens)
  local lanes = {}
  local due = redis.call('ZRANGEBYSCORE', P .. 'hops:' .. tenant, '-inf', moment, 'LIMIT', 0, share + excepted)
  for _, hop in ipairs(due) do
    if not except[hop] and #lanes < share then lanes[#lanes + 1] = hop end
  end
  local taken = 0
  for at, hop in ipairs(lanes) do
    local each = math.ceil((share - taken) / (#lanes - at + 1))
    taken = taken + serve_lane(tenant, hop, each)
  end
  if taken > 0 then
    tokens.spend(taken)
  else
    local first = redis.call('ZRANGE', P .. 'hops:' .. tenant, 0, 0, 'WITHSCORES')
    if first[1] then pass_over(tenant, math.max(clock, tonumber(first[2]))) end
  end
  return taken
end

-- The first round is for those not served since their turn came, by weight; the others give what is left.
local looked, before = 0, '(' .. moment
while left > 0 and looked < LOOKS do
  local tenants = redis.call('ZRANGEBYSCORE', P .. 'tenants', '-inf', before, 'LIMIT', 0,
    before == moment and LOOKS - looked or math.min(left, LOOKS - looked))
  local progress, weights, open = false, 0, {}
  for at, tenant in ipairs(tenants) do
    local policy = redis.call('HGET', P .. 'policy', 't:' .. tenant)
    open[at] = { tenant, policy, tonumber(string.match(policy or '', '^%d+')) or 1 }
    weights = weights + open[at][3]
  end
  for _, one in ipairs(open) do
    local share = math.min(left, math.max(1, math.floor(left * one[3] / weights)))
    weights = weights - one[3]
    looked = looked + 1
    if share > 0 then
      local taken = serve(one[1], share, one[2])
      left = left - taken
      progress = progress or taken > 0
    end
  end
  if #tenants == 0 or not progress then
    if before == moment then break end
    if #tenants == 0 then before = moment end
  end
end
return { now, told }
