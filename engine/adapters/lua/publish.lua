-- After a commit: publish the offset for readers, and trim what is flushed.
--
-- KEYS  1 log (stream)   2 meta (hash)
-- ARGV  1 epoch and 2 ID of the offset   3 trim entries below this ID, '' not to   4 operations flushed, to be counted
--       5 '1' where the partition has dead letters, so that what is below the offset may not be in SQL's tables
-- Reply 1, or 0 where this history does not know the offset's epoch.
--
-- A failover may have come between the commit and this call, and epochs of the new primary may have smaller numbers,
-- where a clock was ahead: neither trimming by the old number nor publishing it would be right then. Trimming comes
-- first, even of nothing: it is never refused, and a full Redis refuses no write after a script's first one. So writers
-- learn that the backlog falls. Stopped half way: cannot be. Repeat: counts again.

local log, meta = KEYS[1], KEYS[2]
if redis.call('HEXISTS', meta, 'lineage:' .. ARGV[1]) == 0 then return 0 end
local below = '0-1'
if ARGV[3] ~= '' and redis.call('HEXISTS', meta, 'lineage:' .. string.match(ARGV[3], '^%d+')) == 1 then
  below = ARGV[3]
end
redis.call('XTRIM', log, 'MINID', below)
redis.call('HSET', meta, 'watermark', ARGV[2], 'letters', ARGV[5])
if ARGV[4] ~= '0' then
  redis.call('HINCRBY', meta, 'flushed:rows', ARGV[4])
  redis.call('HINCRBY', meta, 'flushed:batches', 1)
end
return 1
