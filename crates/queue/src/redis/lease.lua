-- ARGV: worker max lease_ms inline_limit max_lost, how many source pools to pass over and those, then the next hops
-- to pass over.
local worker, left, inline_limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local ends = whole(now + tonumber(ARGV[3]))
-- Tenants looked at in one call; and for how long what is suspended, or for a pool to be passed over among the mail of
-- nobody, is not looked at again.
local LOOKS, SUSPENDED_FOR, PASSED_FOR = 256, 1000, 250
local except, excepted, except_pools = {}, 0, {}
for at = 7, 6 + tonumber(ARGV[6]) do except_pools[ARGV[at]] = true end
for at = 7 + tonumber(ARGV[6]), #ARGV do
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

-- For how long nothing of a scope may start; 0 when something may.
local function closed_for(scope)
  local limit = limit_of(scope)
  if limit.barred then return SUSPENDED_FOR end
  return limit.tokens < 1 and limit.wait or 0
end

-- Takes at most `share` entries of a lane; says how many. `pool` is that of mail of nobody: others' has been looked at.
local function serve_lane(tenant, hop, share, pool)
  local scope, closed = 'h:' .. hop, 0
  if pool then
    closed = except_pools[pool] and PASSED_FOR or closed_for('p:' .. pool)
    share = math.min(share, limit_of('p:' .. pool).tokens)
  end
  closed = math.max(closed, closed_for(scope))
  if closed > 0 then
    follow(tenant, hop, clock + closed)
    return 0
  end
  local tokens = limit_of(scope)
  local lane = P .. 'due:' .. tenant .. '|' .. hop
  local entries = redis.call('ZRANGEBYSCORE', lane, '-inf', whole(now), 'LIMIT', 0, math.min(share, tokens.tokens))
  for _, entry in ipairs(entries) do
    redis.call('ZREM', lane, entry)
    take(entry)
  end
  if #entries > 0 then
    spend(tokens, #entries)
    if pool then spend(limit_of('p:' .. pool), #entries) end
    follow(tenant, hop, clock)
  end
  return #entries
end

-- A tenant that got nothing is not looked at again before `turn`.
local function pass_over(tenant, turn)
  redis.call('ZADD', P .. 'tenants', string.format('%.3f', turn), tenant)
end

-- Takes at most `share` entries of a tenant, of all its next hops in turn; says how many.
local function serve(tenant, share)
  local pool = tenant ~= '' and pool_of(tenant, '')
  local ours, theirs = limit_of('t:' .. tenant), pool and limit_of('p:' .. pool)
  local closed = math.max(closed_for('t:' .. tenant), pool and closed_for('p:' .. pool) or 0)
  if closed > 0 or (pool and except_pools[pool]) then
    pass_over(tenant, clock + closed)
    return 0
  end
  share = math.min(share, ours.tokens, theirs and theirs.tokens or math.huge)
  local lanes = {}
  local due = redis.call('ZRANGEBYSCORE', P .. 'hops:' .. tenant, '-inf', moment, 'LIMIT', 0, share + excepted)
  for _, hop in ipairs(due) do
    if not except[hop] and #lanes < share then lanes[#lanes + 1] = hop end
  end
  local taken = 0
  for at, hop in ipairs(lanes) do
    local each = math.ceil((share - taken) / (#lanes - at + 1))
    taken = taken + serve_lane(tenant, hop, each, tenant == '' and pool_of(tenant, hop))
  end
  if taken > 0 then
    spend(ours, taken)
    if theirs then spend(theirs, taken) end
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
    open[at] = { tenant, limit_of('t:' .. tenant).weight }
    weights = weights + open[at][2]
  end
  for _, one in ipairs(open) do
    local share = math.min(left, math.max(1, math.floor(left * one[2] / weights)))
    weights = weights - one[2]
    looked = looked + 1
    if share > 0 then
      local taken = serve(one[1], share)
      left = left - taken
      progress = progress or taken > 0
    end
  end
  if #tenants == 0 or not progress then
    if before == moment then break end
    if #tenants == 0 then before = moment end
  end
end
write_buckets()
return { now, told }
