-- ARGV: after (an entry, or '') limit scan next_hop ('' for all) state ('' for all) tenant ('*' for all)
-- older_ms ('' for all) pool ('' for all). Entries, and the last one looked at: '' when the shard holds no more.
local from = ARGV[1] == '' and '-' or '(' .. ARGV[1]
local entries = redis.call('ZRANGEBYLEX', P .. 'all', from, '+', 'LIMIT', 0, ARGV[3])
local told, limit = {}, tonumber(ARGV[2])
local until_then = ARGV[7] ~= '' and now - tonumber(ARGV[7])
for _, entry in ipairs(entries) do
  local row = tell_any(entry)
  if row and (ARGV[4] == '' or row[7] == ARGV[4]) and (ARGV[5] == '' or row[2] == ARGV[5])
    and (ARGV[6] == '*' or row[15] == ARGV[6])
    and (ARGV[8] == '' or pool_of(row[15], row[7]) == ARGV[8])
    and (not until_then or tonumber(row[17]) <= until_then) then
    told[#told + 1] = row
  end
  if #told == limit then return { told, entry } end
end
return { told, #entries == tonumber(ARGV[3]) and entries[#entries] or '' }
