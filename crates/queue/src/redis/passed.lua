-- ARGV: reader event ('' forgets the reader). What every reader has passed is dropped.
local function parts(id)
  local at, number = string.match(id, '(%d+)-(%d+)')
  return tonumber(at), tonumber(number)
end
if ARGV[2] == '' then
  redis.call('HDEL', P .. 'readers', ARGV[1])
elseif redis.call('HEXISTS', P .. 'readers', ARGV[1]) == 1 then
  redis.call('HSET', P .. 'readers', ARGV[1], ARGV[2])
end
local first
for _, id in ipairs(redis.call('HVALS', P .. 'readers')) do
  if not first then
    first = id
  else
    local at, number = parts(id)
    local first_at, first_number = parts(first)
    if at < first_at or (at == first_at and number < first_number) then first = id end
  end
end
if not first then
  redis.call('UNLINK', P .. 'events')
elseif first ~= '0-0' then
  -- The event passed stays, so that nothing after it is taken for dropped.
  redis.call('XTRIM', P .. 'events', 'MINID', first)
end
return 1
