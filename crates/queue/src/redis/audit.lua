-- ARGV: after (an entry, or '') scan. How many entries were looked at, what does not fit, and the last of them:
-- '' when the shard holds no more.
local from = ARGV[1] == '' and '-' or '(' .. ARGV[1]
local entries = redis.call('ZRANGEBYLEX', P .. 'all', from, '+', 'LIMIT', 0, ARGV[2])
local odd, messages = {}, {}

local function fault(what, why)
  odd[#odd + 1] = { what, why }
end

for _, entry in ipairs(entries) do
  local message = message_of(entry)
  local e = redis.call('HMGET', P .. 'e:' .. entry, 'tenant', 'hop', 'recipients')
  if not e[2] or not e[3] then
    fault(entry, 'it is counted, and its record is gone')
  else
    local places = 0
    if redis.call('ZSCORE', P .. 'leased', entry) then places = places + 1 end
    if redis.call('ZSCORE', P .. 'held', entry) then places = places + 1 end
    local lane = (e[1] or '') .. '|' .. e[2]
    if redis.call('ZSCORE', P .. 'due:' .. lane, entry) then
      places = places + 1
      if not redis.call('ZSCORE', P .. 'hops:' .. (e[1] or ''), e[2]) or not redis.call('ZSCORE', P .. 'tenants', e[1] or '') then
        fault(entry, 'it waits in a lane that has no turn')
      end
    end
    if places == 0 then fault(entry, 'it neither waits, nor is leased, nor held') end
    if places > 1 then fault(entry, 'it is in ' .. places .. ' places at once') end
  end
  messages[message] = true
end
for message in pairs(messages) do
  local m = redis.call('HMGET', P .. 'm:' .. message, 'record', 'total', 'open', 'parts')
  if not m[1] then
    fault(message, 'its entries are there, its record and content are gone')
  else
    local found = 0
    for number = 0, tonumber(m[2]) - 1 do
      if redis.call('EXISTS', P .. 'e:' .. message .. '.' .. number) == 1 then found = found + 1 end
    end
    if found ~= tonumber(m[3]) then
      fault(message, 'it has ' .. found .. ' entries, and counts ' .. m[3])
    end
    for number = 0, tonumber(m[4]) - 1 do
      if redis.call('EXISTS', P .. 'p:' .. message .. ':' .. number) == 0 then
        fault(message, 'part ' .. number .. ' of its content is gone')
      end
    end
  end
end
return { #entries, odd, #entries == tonumber(ARGV[2]) and entries[#entries] or '' }
