-- What every script begins with. KEYS are tags of shards, `{q:N}`: all keys of a shard carry its tag and so lie in
-- one slot.
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
--   TAG:seen:TIME    set   the random part of ids that begin with TIME (8 characters: a second) and were
--                          accepted; expires two hours after the last
--   TAG:clock              how far the server's clock had come, and how far the queue's is ahead of it
--   TAG:full               never there; to write it shows whether the server is full
--   TAG:policy       hash  t:TENANT, h:HOP or p:POOL -> weight, tokens a millisecond, tokens at most;
--                          by:TENANT -> its source pool; leaves:KIND -> next hops of this kind have one
--   TAG:suspended    hash  t:TENANT, h:HOP or p:POOL -> who, when and why, as JSON
--   TAG:b:SCOPE      hash  level at: a token bucket; it expires when it is full
--   TAG:sharers:HOP  zset  worker -> until when it counts; or sharers:p:POOL
--   TAG:verbs        stream  what operators asked for
--   TAG:readers      hash  reader of the outbox -> the last event it has passed
--   TAG:events       stream  the outbox; written while there are readers

-- A number as text. Commands want text, and making it is a good part of what a script costs: few numbers come often.
local texts = {}
local function whole(number)
  local text = texts[number]
  if not text then
    text = string.format('%.0f', number)
    texts[number] = text
  end
  return text
end

-- The shard that is worked on: what its keys begin with, the queue's time in milliseconds, the same with
-- microseconds (turns that fall in one millisecond are still told apart) as text and as number, the server's
-- time, and how far the queue's is ahead of that.
local P, now, moment, clock, wall, ahead
local outbox, buckets, pools, empty

-- A longer silence than this counts for so much: nobody was there, or the server's clock was set forward. It is less
-- than what is left of leases that are renewed in time.
local LONGEST_STEP = 30000
-- A difference to the server's clock goes away by this part of the time that passes.
local DRIFT = 0.1
-- The clock is written down so often.
local CLOCK_EVERY = 1000

-- Turns to a shard. The queue's time is the server's as long as that goes on steadily. When it is set back, the
-- queue's goes on from where it was; when it leaps, the queue's takes a step.
local function enter(tag)
  P = tag .. ':'
  outbox, buckets, pools, empty = nil, {}, {}, {}
  local time = redis.call('TIME')
  local kept = redis.call('GET', P .. 'clock')
  local micros = tonumber(time[2])
  wall = time[1] * 1000 + math.floor(micros / 1000)
  local seen, before = string.match(kept or '', '^(%d+) (-?%d+)$')
  seen, before = tonumber(seen) or wall, tonumber(before) or 0
  local passed = math.max(0, math.min(wall - seen, LONGEST_STEP))
  ahead = before + math.max(0, seen - wall) - math.max(0, wall - seen - LONGEST_STEP)
  local drift = math.floor(passed * DRIFT)
  if ahead > 0 then ahead = math.max(0, ahead - drift) else ahead = math.min(0, ahead + drift) end
  if not kept or ahead ~= before or wall - seen >= CLOCK_EVERY then
    -- A server that is full, and still lets things go, refuses this.
    redis.pcall('SET', P .. 'clock', whole(wall) .. ' ' .. whole(ahead))
  end
  now = wall + ahead
  moment = string.format('%.3f', now + micros % 1000 / 1000)
  clock = tonumber(moment)
end

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

-- A field of a hash that often has none at all, `policy` or `suspended`.
local function of_few(hash, field)
  if empty[hash] == nil then empty[hash] = redis.call('HLEN', P .. hash) == 0 end
  return not empty[hash] and redis.call('HGET', P .. hash, field)
end

-- The source pool by which what waits of a tenant for a next hop leaves; false for what does not leave.
local function pool_of(tenant, hop)
  local field = tenant ~= '' and 'by:' .. tenant or 'leaves:' .. string.match(hop, '^[^:]*')
  if pools[field] == nil then
    local found = of_few('policy', field)
    if tenant ~= '' then pools[field] = found or 'default' else pools[field] = found and 'default' end
  end
  return pools[field]
end

-- What limits a scope: whether it is suspended, its weight, how many tokens it has and for how long it has none. What
-- is spent is written by `write_buckets`.
local function limit_of(scope)
  local known = buckets[scope]
  if known then return known end
  local text = of_few('policy', scope) or ''
  known = { tokens = math.huge, wait = 0, weight = tonumber(string.match(text, '^%d+')) or 1 }
  known.barred = of_few('suspended', scope) and true or false
  buckets[scope] = known
  local rate, burst = string.match(text, '^%d+ (%S+) (%S+)$')
  rate, burst = tonumber(rate), tonumber(burst)
  if not rate then return known end
  local b = redis.call('HMGET', P .. 'b:' .. scope, 'level', 'at')
  local since = math.max(0, clock - (tonumber(b[2]) or clock))
  known.rate, known.burst = rate, burst
  known.level = math.min(burst, (tonumber(b[1]) or burst) + since * rate)
  known.tokens = math.floor(known.level + 0.000001)
  known.wait = math.max(1, math.ceil((1 - known.level) / rate))
  return known
end

local function spend(known, count)
  if known.rate and count > 0 then
    known.level, known.spent = known.level - count, true
    known.tokens = math.floor(known.level + 0.000001)
    known.wait = math.max(1, math.ceil((1 - known.level) / known.rate))
  end
end

local function write_buckets()
  for scope, known in pairs(buckets) do
    if known.spent then
      local key = P .. 'b:' .. scope
      redis.call('HSET', key, 'level', string.format('%.6f', known.level), 'at', moment)
      redis.call('PEXPIRE', key, whole(math.ceil((known.burst - known.level) / known.rate) + 1000))
    end
  end
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
