-- Remove what caches must not give any more, and announce it to those who have copies.
--
-- KEYS  an entry (hash) with its value and its lease, or the version (string) of a cache; may be none
-- ARGV  1 channel   2 message
-- Reply how many keys there were.
--
-- Nobody hears of it before the whole script is done, so the announcement comes first: it can be denied, and then nothing
-- is removed. Not refused when Redis is out of memory. Stopped half way: cannot be. Repeat: announces again.

redis.call('PUBLISH', ARGV[1], ARGV[2])
local removed = 0
for _, key in ipairs(KEYS) do removed = removed + redis.call('DEL', key) end
return removed
