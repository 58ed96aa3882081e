-- Put a loaded value into its entry, where nobody has invalidated it since its lease was taken, and no load that began
-- later has put one there.
--
-- KEYS  1 entry (hash)
-- ARGV  1 token   2 generation and 3 number of the lease in it   4 value   5 how long it is fresh and 6 how long it is
--       kept, in milliseconds   7 what loading it took, in milliseconds
-- Reply 1, or 0 where the generation is over or has a later value: then nothing is written.
--
-- A lease that has run out still counts, also where others have taken it since: otherwise nothing would ever be kept of
-- loads that take longer than their lease. Whoever has it now keeps it. HSET is the first write, which a full Redis
-- refuses. Stopped half way: cannot be. Repeat: 0.

local key = KEYS[1]
local entry = redis.call('HMGET', key, 'generation', 'filled', 'token')
local filled = entry[2] and #entry[2] <= 15 and tonumber(string.match(entry[2], '^%d+$'))
if entry[1] ~= ARGV[2] or (filled and filled >= tonumber(ARGV[3])) then return 0 end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', key, 'value', ARGV[4], 'until', string.format('%.0f', now + tonumber(ARGV[5])), 'cost', ARGV[7],
  'filled', ARGV[3])
if entry[3] and entry[3] ~= ARGV[1] then
  redis.call('PEXPIRE', key, ARGV[6], 'GT')
else
  redis.call('HDEL', key, 'token', 'lease')
  redis.call('PEXPIRE', key, ARGV[6])
end
return 1
