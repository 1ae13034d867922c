-- Changes by those who hold messages and leases, as many as came together. Each stands for itself: one that fails
-- stops no other, and has its own answer.
--
-- ARGV, for each change: the number of its shard's tag among KEYS, its kind, how many arguments follow, and those.
-- Changes of one shard stand together. The answers come in the same order; one that failed is { -2, why }.

-- The refusal of a server whose memory is full; false while there is room. Such a server refuses what may need more of
-- it where that is the first write of a script, and nothing after that. Here new mail alone is to be refused: without
-- leases that are renewed, and doubts that are written down, what is queued could not go, and no memory would come
-- free. So the first write is one that changes nothing, whether it is refused or not.
local full = redis.pcall('SET', KEYS[1] .. ':full', '1', 'XX')
full = type(full) == 'table' and full.err and full
if full then redis.call('UNLINK', KEYS[1] .. ':full') end

-- What the changes of a shard add to and take from its sorted sets, and count: written at once by `leave`. Nothing
-- here is looked for before that: entries that are new are known to nobody, and those that are done have no epoch.
local new, leased, done, seen, counts

local function begin(shard)
  enter(KEYS[tonumber(shard)])
  new, leased, done, seen, counts = {}, {}, {}, {}, {}
end

-- Calls a command with a long list, in slices that fit Lua's stack.
local function in_slices(command, key, list)
  for from = 1, #list, 1000 do
    redis.call(command, P .. key, unpack(list, from, math.min(from + 999, #list)))
  end
end

local function leave()
  in_slices('ZADD', 'all', new)
  in_slices('ZADD', 'leased', leased)
  in_slices('ZREM', 'leased', done)
  in_slices('ZREM', 'all', done)
  for time, ids in pairs(seen) do
    in_slices('SADD', 'seen:' .. time, ids)
    redis.call('EXPIRE', P .. 'seen:' .. time, 7200)
  end
  for column, count in pairs(counts) do
    redis.call('HINCRBY', P .. 'ledger', column, count)
  end
  write_buckets()
end

local function count(column, entries)
  counts[column] = (counts[column] or 0) + entries
end

-- Whether `epoch` still holds the entry.
local function holds(entry, epoch)
  local ends = redis.call('ZSCORE', P .. 'leased', entry)
  return ends and tonumber(ends) > now and redis.call('HGET', P .. 'e:' .. entry, 'epoch') == epoch
end

-- Whether an entry may start at once; it then has its tokens.
local function may_start(tenant, hop)
  local pool = pool_of(tenant, hop)
  local limits = { limit_of('t:' .. tenant), limit_of('h:' .. hop), pool and limit_of('p:' .. pool) or nil }
  for _, limit in ipairs(limits) do
    if limit.barred or limit.tokens < 1 then return false end
  end
  for _, limit in ipairs(limits) do spend(limit, 1) end
  return true
end

-- Reads a message from ARGV[at] on and makes it durable: id record body parts count, then for each
-- entry: hop tenant recipients max_age. With `worker` the entries start leased until `ends`, unless they
-- are suspended or beyond their rate. Gives 1, or 0 when it was accepted before, or -1 when a part is
-- missing; and for each entry `1` when it is leased. A bounce takes the place of what it is about, and so is let in by a
-- server that is full.
local function admit(at, worker, ends, bounce)
  local id, record, body = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local parts, entries = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local message, time, random = P .. 'm:' .. id, string.sub(id, 1, 8), string.sub(id, 9)
  -- `seen:ID` is how a version before wrote down what it had accepted.
  if redis.call('EXISTS', message, P .. 'seen:' .. id) > 0
    or redis.call('SISMEMBER', P .. 'seen:' .. time, random) == 1 then return 0, '' end
  for number = 0, parts - 1 do
    if redis.call('EXISTS', P .. 'p:' .. id .. ':' .. number) == 0 then return -1, '' end
  end
  if full and not bounce then error(full) end
  redis.call('HSET', message, 'record', record, 'at', whole(now), 'body', body,
    'parts', ARGV[at + 3], 'total', ARGV[at + 4], 'open', ARGV[at + 4])
  for number = 0, parts - 1 do
    redis.call('PERSIST', P .. 'p:' .. id .. ':' .. number)
  end
  local started = {}
  for number = 0, entries - 1 do
    local from = at + 5 + 4 * number
    local entry, hop, tenant = id .. '.' .. number, ARGV[from], ARGV[from + 1]
    local starts = worker and may_start(tenant, hop)
    local key, expires = P .. 'e:' .. entry, whole(now + tonumber(ARGV[from + 3]))
    if starts then
      redis.call('HSET', key, 'hop', hop, 'tenant', tenant, 'recipients', ARGV[from + 2], 'epoch', '1',
        'attempts', '0', 'expires', expires, 'worker', worker)
      leased[#leased + 1] = whole(ends)
      leased[#leased + 1] = entry
    else
      redis.call('HSET', key, 'hop', hop, 'tenant', tenant, 'recipients', ARGV[from + 2], 'epoch', '0',
        'attempts', '0', 'expires', expires)
      enqueue(entry, tenant, hop, now)
    end
    new[#new + 1] = '0'
    new[#new + 1] = entry
    emit('accepted', entry)
    started[number + 1] = starts and '1' or '0'
  end
  seen[time] = seen[time] or {}
  table.insert(seen[time], random)
  count('accepted', entries)
  return 1, table.concat(started)
end

-- An entry is done; with the last of its message, that goes.
local function finish(entry, closing)
  local id = message_of(entry)
  local key, message = P .. 'e:' .. entry, P .. 'm:' .. id
  local m = redis.call('HMGET', message, 'open', 'parts')
  if (tonumber(m[1]) or 1) > 1 then
    redis.call('HINCRBY', message, 'open', '-1')
    redis.call('UNLINK', key)
  elseif m[2] == '0' then
    redis.call('UNLINK', key, message)
  else
    redis.call('UNLINK', key)
    forget_message(id)
  end
  done[#done + 1] = entry
  count(closing, 1)
  emit(closing, entry)
end

local kinds = {}

-- worker ('' for none) lease_ms, then the message as `admit` reads it. What `admit` gives, and the time.
function kinds.accept(at)
  local outcome, started = admit(at + 2, ARGV[at] ~= '' and ARGV[at], now + tonumber(ARGV[at + 1]))
  return { outcome, started, now }
end

-- id. A message that was not accepted yet is not accepted any more.
function kinds.bar(at)
  local id = ARGV[at]
  local time = string.sub(id, 1, 8)
  seen[time] = seen[time] or {}
  table.insert(seen[time], string.sub(id, 9))
  return 1
end

-- entry epoch recipients retry_ms ('' when it is done) error closing bounce (1 or 0), then the bounce as `admit`
-- reads it. 1, or 0 when the lease is stale.
function kinds.settle(at)
  local entry = ARGV[at]
  if not holds(entry, ARGV[at + 1]) then return 0 end
  if ARGV[at + 3] == '' then
    finish(entry, ARGV[at + 5])
  else
    local key = P .. 'e:' .. entry
    redis.call('ZREM', P .. 'leased', entry)
    redis.call('HINCRBY', key, 'attempts', 1)
    redis.call('HSET', key, 'recipients', ARGV[at + 2], 'error', ARGV[at + 4], 'lost', 0)
    redis.call('HDEL', key, 'doubt', 'doubt_since')
    emit('deferred', entry, ARGV[at + 4])
    rest(entry, now + tonumber(ARGV[at + 3]))
  end
  if ARGV[at + 6] == '1' then admit(at + 7, false, 0, true) end
  return 1
end

-- entry epoch peer. 1, or 0 when the lease is stale.
function kinds.doubt(at)
  if not holds(ARGV[at], ARGV[at + 1]) then return 0 end
  redis.call('HSET', P .. 'e:' .. ARGV[at], 'doubt', ARGV[at + 2], 'doubt_since', whole(now))
  emit('in_doubt', ARGV[at], ARGV[at + 2])
  return 1
end

-- entry epoch lease_ms. 1, or 0 when the lease is stale.
function kinds.renew(at)
  if not holds(ARGV[at], ARGV[at + 1]) then return 0 end
  redis.call('ZADD', P .. 'leased', whole(now + tonumber(ARGV[at + 2])), ARGV[at])
  return 1
end

-- entry epoch. 1, or 0 when the lease is stale.
function kinds.hand_back(at)
  if not holds(ARGV[at], ARGV[at + 1]) then return 0 end
  redis.call('ZREM', P .. 'leased', ARGV[at])
  rest(ARGV[at], now)
  return 1
end

local answers, at, last, shard = {}, 1, #ARGV, nil
while at <= last do
  if ARGV[at] ~= shard then
    if shard then leave() end
    shard = ARGV[at]
    begin(shard)
  end
  local fine, answer = pcall(kinds[ARGV[at + 1]], at + 3)
  answers[#answers + 1] = fine and answer or { -2, type(answer) == 'table' and answer.err or tostring(answer) }
  at = at + 3 + tonumber(ARGV[at + 2])
end
if shard then leave() end
return answers
