-- ARGV: suspended, policy and readers of the first shard, each as a count and then field and value by turns. This
-- shard is about to come into use: what holds for the whole queue holds for it.
local at = 1
local function rows()
  local count, fields = tonumber(ARGV[at]), {}
  for field = at + 1, at + count do fields[#fields + 1] = ARGV[field] end
  at = at + 1 + count
  return fields
end
for _, name in ipairs({ 'suspended', 'policy' }) do
  redis.call('DEL', P .. name)
  local fields = rows()
  for field = 1, #fields, 2 do redis.call('HSET', P .. name, fields[field], fields[field + 1]) end
end
-- A reader of the outbox has passed nothing here yet.
local readers = rows()
for field = 1, #readers, 2 do redis.call('HSETNX', P .. 'readers', readers[field], '0-0') end
return 1
