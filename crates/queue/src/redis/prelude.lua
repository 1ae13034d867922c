-- What every script begins with. KEYS[1] is a shard's tag, `{q:N}`: all keys of a shard carry it and so
-- lie in one slot. Time is the server's.
--
--   TAG:hops       zset  next hop -> when its first entry is due; next hops with waiting entries alone
--   TAG:due:HOP    zset  entry -> when it is due
--   TAG:leased     zset  entry -> when its lease ends
--   TAG:held       zset  entry -> when it was put aside
--   TAG:all        zset  every entry, score 0, for listings
--   TAG:ledger     hash  accepted delivered bounced expired removed: entries
--   TAG:e:ENTRY    hash  hop recipients epoch attempts expires error worker held doomed lost doubt doubt_since
--   TAG:m:MESSAGE  hash  record at body parts total open
--   TAG:p:MESSAGE:N      a part of long content; it expires until its message is accepted
--   TAG:seen:MESSAGE     the message was accepted; expires
local P = KEYS[1] .. ':'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

-- The next hop's place follows its first entry.
local function follow(hop)
  local first = redis.call('ZRANGE', P .. 'due:' .. hop, 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', P .. 'hops', first[2], hop)
  else
    redis.call('ZREM', P .. 'hops', hop)
  end
end

local function enqueue(entry, hop, due)
  redis.call('ZADD', P .. 'due:' .. hop, whole(due), entry)
  follow(hop)
end

-- True when the entry was waiting.
local function unqueue(entry, hop)
  local was = redis.call('ZREM', P .. 'due:' .. hop, entry) == 1
  if was then follow(hop) end
  return was
end

-- Puts an entry that nobody has in its place: among those that wait, or aside.
local function rest(entry, due)
  local e = redis.call('HMGET', P .. 'e:' .. entry, 'hop', 'held')
  if not e[1] then return end
  redis.call('HDEL', P .. 'e:' .. entry, 'worker')
  if e[2] then
    redis.call('ZADD', P .. 'held', whole(now), entry)
  else
    enqueue(entry, e[1], due)
  end
end

-- Calls `each` with every entry of a message that is there, and its next hop.
local function each_entry(message, each)
  local total = tonumber(redis.call('HGET', P .. 'm:' .. message, 'total') or '0')
  for number = 0, total - 1 do
    local entry = message .. '.' .. number
    local hop = redis.call('HGET', P .. 'e:' .. entry, 'hop')
    if hop then each(entry, hop) end
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
-- entry: hop recipients max_age. With `worker` the entries start leased until `ends`.
-- Gives 1, or 0 when it was accepted before, or -1 when a part is missing; and where it stopped reading.
local function admit(at, worker, ends)
  local id, record, body = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local parts, count = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local stop = at + 5 + 3 * count
  if redis.call('EXISTS', P .. 'seen:' .. id, P .. 'm:' .. id) > 0 then return 0, stop end
  for number = 0, parts - 1 do
    if redis.call('EXISTS', P .. 'p:' .. id .. ':' .. number) == 0 then return -1, stop end
  end
  for number = 0, parts - 1 do
    redis.call('PERSIST', P .. 'p:' .. id .. ':' .. number)
  end
  redis.call('SET', P .. 'seen:' .. id, '1', 'EX', 7200)
  redis.call('HSET', P .. 'm:' .. id, 'record', record, 'at', whole(now), 'body', body,
    'parts', parts, 'total', count, 'open', count)
  redis.call('HINCRBY', P .. 'ledger', 'accepted', count)
  for number = 0, count - 1 do
    local from = at + 5 + 3 * number
    local entry, hop = id .. '.' .. number, ARGV[from]
    local expires = whole(now + tonumber(ARGV[from + 2]))
    redis.call('ZADD', P .. 'all', 0, entry)
    if worker then
      redis.call('HSET', P .. 'e:' .. entry, 'hop', hop, 'recipients', ARGV[from + 1], 'epoch', 1,
        'attempts', 0, 'expires', expires, 'worker', worker)
      redis.call('ZADD', P .. 'leased', whole(ends), entry)
    else
      redis.call('HSET', P .. 'e:' .. entry, 'hop', hop, 'recipients', ARGV[from + 1], 'epoch', 0,
        'attempts', 0, 'expires', expires)
      enqueue(entry, hop, now)
    end
  end
  return 1, stop
end

-- An entry as it is told to the caller; false when it or its message is gone.
local function tell(entry, state, due)
  local e = redis.call('HMGET', P .. 'e:' .. entry, 'hop', 'recipients', 'epoch', 'attempts', 'expires',
    'error', 'worker', 'held', 'doomed', 'doubt', 'doubt_since')
  local m = redis.call('HMGET', P .. 'm:' .. message_of(entry), 'record', 'at')
  if not e[1] or not m[1] then return false end
  return { entry, state, due, e[3], e[4], e[5], e[1], e[2], e[6], e[7], e[8], e[9], e[10], e[11], m[1], m[2] }
end

-- The same for an entry that may be waiting, leased or held.
local function tell_any(entry)
  local ends = redis.call('ZSCORE', P .. 'leased', entry)
  if ends then return tell(entry, 'leased', ends) end
  local since = redis.call('ZSCORE', P .. 'held', entry)
  if since then return tell(entry, 'held', since) end
  local hop = redis.call('HGET', P .. 'e:' .. entry, 'hop')
  local due = hop and redis.call('ZSCORE', P .. 'due:' .. hop, entry)
  return due and tell(entry, 'queued', due)
end
