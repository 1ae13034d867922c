-- ARGV: scope and policy by turns. They take the place of what was there.
redis.call('DEL', P .. 'policy')
for at = 1, #ARGV, 2 do
  redis.call('HSET', P .. 'policy', ARGV[at], ARGV[at + 1])
end
return 1
