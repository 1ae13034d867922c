-- ARGV: message. Its entries; its record and when it was accepted, if it is there.
local message = redis.call('HMGET', P .. 'm:' .. ARGV[1], 'record', 'at', 'total')
if not message[1] then return { false, false, {} } end
local told = {}
for number = 0, tonumber(message[3]) - 1 do
  local row = tell_any(ARGV[1] .. '.' .. number)
  if row then told[#told + 1] = row end
end
return { message[1], message[2], told }
