-- What every script begins with. KEYS[1] is a shard's tag, `{q:N}`: all keys of a shard carry it and so
-- lie in one slot. Time is the server's.
--
-- A lane is what waits of one tenant for one next hop: `TENANT|HOP`. A turn is when a lane, or a tenant, is
-- next looked at: when its first entry is due, or, once it was served, after those that have not been since.
--
--   TAG:tenants      zset  tenant -> its turn; tenants with waiting entries alone
--   TAG:hops:TENANT  zset  next hop -> the turn of that lane
--   TAG:first        zset  lane -> when its first entry is due
--   TAG:due:LANE     zset  entry -> when it is due
--   TAG:leased       zset  entry -> when its lease ends
--   TAG:held         zset  entry -> when it was put aside
--   TAG:all          zset  every entry, score 0, for listings
--   TAG:ledger       hash  accepted delivered bounced expired removed: entries
--   TAG:e:ENTRY      hash  hop tenant recipients epoch attempts expires error worker held doomed lost
--                          doubt doubt_since
--   TAG:m:MESSAGE    hash  record at body parts total open
--   TAG:p:MESSAGE:N        a part of long content; it expires until its message is accepted
--   TAG:seen:MESSAGE       the message was accepted; expires
--   TAG:policy       hash  t:TENANT or h:HOP -> weight, tokens a millisecond, tokens at most
--   TAG:suspended    hash  t:TENANT or h:HOP -> who, when and why, as JSON
--   TAG:b:SCOPE      hash  level at: a token bucket; it expires when it is full
--   TAG:sharers:HOP  zset  worker -> until when it counts
--   TAG:verbs        stream  what operators asked for
--   TAG:readers      hash  reader of the outbox -> the last event it has passed
--   TAG:events       stream  the outbox; written while there are readers
local P = KEYS[1] .. ':'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- The same with microseconds: turns that fall in one millisecond are still told apart.
local moment = string.format('%.3f', time[1] * 1000 + time[2] / 1000)
local clock = tonumber(moment)

local function whole(number)
  return string.format('%.0f', number)
end

local outbox
-- Adds to the outbox, if anybody reads it.
local function emit(kind, entry, detail)
  if outbox == nil then outbox = redis.call('EXISTS', P .. 'readers') == 1 end
  if outbox then
    redis.call('XADD', P .. 'events', 'MAXLEN', '~', 1000000, '*', 'kind', kind, 'entry', entry, 'detail', detail or '')
  end
end

-- A lane's place, and its tenant's, follow its first entry; `served` moves them behind those that wait.
local function follow(tenant, hop, served)
  local lane, hops = tenant .. '|' .. hop, P .. 'hops:' .. tenant
  local first = redis.call('ZRANGE', P .. 'due:' .. lane, 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', P .. 'first', first[2], lane)
    local due, turn = tonumber(first[2]), nil
    if served then
      turn = math.max(due, served)
    else
      local before = tonumber(redis.call('ZSCORE', hops, hop) or 'inf')
      turn = before <= clock and due <= clock and before or due
    end
    redis.call('ZADD', hops, string.format('%.3f', turn), hop)
  else
    redis.call('ZREM', P .. 'first', lane)
    redis.call('ZREM', hops, hop)
  end
  local next_turn = redis.call('ZRANGE', hops, 0, 0, 'WITHSCORES')
  if next_turn[1] then
    local before = not served and tonumber(redis.call('ZSCORE', P .. 'tenants', tenant) or 'inf')
    local turn = tonumber(next_turn[2])
    if before and before <= clock and turn <= clock then turn = before end
    redis.call('ZADD', P .. 'tenants', string.format('%.3f', served and math.max(turn, clock) or turn), tenant)
  else
    redis.call('ZREM', P .. 'tenants', tenant)
  end
end

local function enqueue(entry, tenant, hop, due)
  redis.call('ZADD', P .. 'due:' .. tenant .. '|' .. hop, whole(due), entry)
  follow(tenant, hop)
end

-- True when the entry was waiting.
local function unqueue(entry, tenant, hop)
  local was = redis.call('ZREM', P .. 'due:' .. tenant .. '|' .. hop, entry) == 1
  if was then follow(tenant, hop) end
  return was
end

-- Puts an entry that nobody has in its place: among those that wait, or aside.
local function rest(entry, due)
  local e = redis.call('HMGET', P .. 'e:' .. entry, 'hop', 'tenant', 'held')
  if not e[1] then return end
  redis.call('HDEL', P .. 'e:' .. entry, 'worker')
  if e[3] then
    redis.call('ZADD', P .. 'held', whole(now), entry)
    emit('held', entry, e[3])
  else
    enqueue(entry, e[2] or '', e[1], due)
  end
end

-- How many tokens a scope has, and how to spend them; `text` is its policy, false for none.
local function bucket(scope, text)
  local rate, burst = string.match(text or '', '^%d+ (%S+) (%S+)$')
  rate, burst = tonumber(rate), tonumber(burst)
  if not rate then return { tokens = math.huge, spend = function() end, wait = 0 } end
  local key = P .. 'b:' .. scope
  local b = redis.call('HMGET', key, 'level', 'at')
  -- A clock that was set back fills nothing; the next token writes the new time.
  local since = math.max(0, clock - (tonumber(b[2]) or clock))
  local level = math.min(burst, (tonumber(b[1]) or burst) + since * rate)
  local function write(left)
    redis.call('HSET', key, 'level', string.format('%.6f', left), 'at', moment)
    redis.call('PEXPIRE', key, whole(math.ceil((burst - left) / rate) + 1000))
  end
  if b[2] and tonumber(b[2]) > clock then write(level) end
  return {
    tokens = math.floor(level + 0.000001),
    spend = function(count) write(level - count) end,
    wait = math.max(1, math.ceil((1 - level) / rate)),
  }
end

-- Whether an entry may start at once; it then has its tokens.
local function may_start(tenant, hop)
  local t, h = 't:' .. tenant, 'h:' .. hop
  local barred = redis.call('HMGET', P .. 'suspended', t, h)
  if barred[1] or barred[2] then return false end
  local policy = redis.call('HMGET', P .. 'policy', t, h)
  local ours, theirs = bucket(t, policy[1]), bucket(h, policy[2])
  if ours.tokens < 1 or theirs.tokens < 1 then return false end
  ours.spend(1)
  theirs.spend(1)
  return true
end

-- Calls `each` with every entry of a message that is there, its tenant and its next hop.
local function each_entry(message, each)
  local total = tonumber(redis.call('HGET', P .. 'm:' .. message, 'total') or '0')
  for number = 0, total - 1 do
    local entry = message .. '.' .. number
    local e = redis.call('HMGET', P .. 'e:' .. entry, 'tenant', 'hop')
    if e[2] then each(entry, e[1] or '', e[2]) end
  end
end

-- Whether `epoch` still holds the entry.
local function held(entry, epoch)
  local ends = redis.call('ZSCORE', P .. 'leased', entry)
  return ends and tonumber(ends) > now and redis.call('HGET', P .. 'e:' .. entry, 'epoch') == epoch
end

local function forget_message(message)
  local parts = tonumber(redis.call('HGET', P .. 'm:' .. message, 'parts') or '0')
  for number = 0, parts - 1 do
    redis.call('UNLINK', P .. 'p:' .. message .. ':' .. number)
  end
  redis.call('UNLINK', P .. 'm:' .. message)
end

local function message_of(entry)
  return string.match(entry, '^[^.]+')
end

-- Reads a message from ARGV[at] on and makes it durable: id record body parts count, then for each
-- entry: hop tenant recipients max_age. With `worker` the entries start leased until `ends`, unless they
-- are suspended or beyond their rate. Gives 1, or 0 when it was accepted before, or -1 when a part is
-- missing; and for each entry `1` when it is leased.
local function admit(at, worker, ends)
  local id, record, body = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local parts, count = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if redis.call('EXISTS', P .. 'seen:' .. id, P .. 'm:' .. id) > 0 then return 0, '' end
  for number = 0, parts - 1 do
    if redis.call('EXISTS', P .. 'p:' .. id .. ':' .. number) == 0 then return -1, '' end
  end
  for number = 0, parts - 1 do
    redis.call('PERSIST', P .. 'p:' .. id .. ':' .. number)
  end
  redis.call('SET', P .. 'seen:' .. id, '1', 'EX', 7200)
  redis.call('HSET', P .. 'm:' .. id, 'record', record, 'at', whole(now), 'body', body,
    'parts', parts, 'total', count, 'open', count)
  redis.call('HINCRBY', P .. 'ledger', 'accepted', count)
  local leased = {}
  for number = 0, count - 1 do
    local from = at + 5 + 4 * number
    local entry, hop, tenant = id .. '.' .. number, ARGV[from], ARGV[from + 1]
    local expires = whole(now + tonumber(ARGV[from + 3]))
    redis.call('ZADD', P .. 'all', 0, entry)
    emit('accepted', entry)
    if worker and may_start(tenant, hop) then
      redis.call('HSET', P .. 'e:' .. entry, 'hop', hop, 'tenant', tenant, 'recipients', ARGV[from + 2],
        'epoch', 1, 'attempts', 0, 'expires', expires, 'worker', worker)
      redis.call('ZADD', P .. 'leased', whole(ends), entry)
      leased[#leased + 1] = '1'
    else
      redis.call('HSET', P .. 'e:' .. entry, 'hop', hop, 'tenant', tenant, 'recipients', ARGV[from + 2],
        'epoch', 0, 'attempts', 0, 'expires', expires)
      enqueue(entry, tenant, hop, now)
      leased[#leased + 1] = '0'
    end
  end
  return 1, table.concat(leased)
end

-- An entry as it is told to the caller; false when it or its message is gone.
local function tell(entry, state, due)
  local e = redis.call('HMGET', P .. 'e:' .. entry, 'hop', 'recipients', 'epoch', 'attempts', 'expires',
    'error', 'worker', 'held', 'doomed', 'doubt', 'doubt_since', 'tenant')
  local m = redis.call('HMGET', P .. 'm:' .. message_of(entry), 'record', 'at')
  if not e[1] or not m[1] then return false end
  return { entry, state, due, e[3], e[4], e[5], e[1], e[2], e[6], e[7], e[8], e[9], e[10], e[11], e[12] or '',
    m[1], m[2] }
end

-- The same for an entry that may be waiting, leased or held.
local function tell_any(entry)
  local ends = redis.call('ZSCORE', P .. 'leased', entry)
  if ends then return tell(entry, 'leased', ends) end
  local since = redis.call('ZSCORE', P .. 'held', entry)
  if since then return tell(entry, 'held', since) end
  local e = redis.call('HMGET', P .. 'e:' .. entry, 'tenant', 'hop')
  local due = e[2] and redis.call('ZSCORE', P .. 'due:' .. (e[1] or '') .. '|' .. e[2], entry)
  return due and tell(entry, 'queued', due)
end
