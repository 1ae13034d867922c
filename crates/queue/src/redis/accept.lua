-- ARGV: worker ('' for none) lease_ms, then the message as `admit` reads it.
local worker = ARGV[1] ~= '' and ARGV[1]
local outcome, leased = admit(3, worker, now + tonumber(ARGV[2]))
return { outcome, leased, now }
