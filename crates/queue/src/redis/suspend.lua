-- ARGV: scope by why verb (`suspend` or `resume`). 1, or 0 when there was nothing to resume.
local record = { by = ARGV[2], why = ARGV[3], since = now }
if ARGV[4] == 'resume' then
  if redis.call('HDEL', P .. 'suspended', ARGV[1]) == 0 then return 0 end
else
  redis.call('HSET', P .. 'suspended', ARGV[1], cjson.encode(record))
end
redis.call('XADD', P .. 'verbs', 'MAXLEN', '~', 10000, '*', 'by', ARGV[2], 'verb', ARGV[4], 'target', ARGV[1],
  'why', ARGV[3], 'entries', 0)
return 1
