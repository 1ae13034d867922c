-- ARGV: limit. What operators asked for, the latest first.
local told = {}
for _, row in ipairs(redis.call('XREVRANGE', P .. 'verbs', '+', '-', 'COUNT', ARGV[1])) do
  local f = row[2]
  told[#told + 1] = { string.match(row[1], '^%d+'), f[2], f[4], f[6], f[8], f[10] }
end
return told
