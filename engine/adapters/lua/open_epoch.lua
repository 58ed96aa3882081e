-- Begin a new epoch on a partition, unless the current one began on this very primary and its log is there.
--
-- KEYS  1 log (stream)   2 meta (hash)
-- ARGV  1 identity of the primary, read on this connection just now   2 random number, 0 to 2^20 - 1
-- Reply the current epoch. The first one makes the log with its consumer group, which a full Redis would refuse later.
--
-- The number is milliseconds * 256 plus the random one, or the last epoch plus a step of that size where that is larger:
-- unique across histories, so that a replica that never saw the last epoch does not open its twin. Two that begin at once,
-- or after the same epoch with clocks that are behind, are twins once in a million. A step is worth four seconds at the
-- most; numbers stay below 2^53, exact in a double, for a thousand years.
-- The lineage keeps where the predecessor ended, which tells exactly what a rollback took.
-- Stopped half way: cannot be. Repeat: returns the epoch that the first call opened.

local log, meta = KEYS[1], KEYS[2]
local known = redis.call('HMGET', meta, 'identity', 'epoch')
if known[1] == ARGV[1] and redis.call('EXISTS', log) == 1 then return known[2] end
local last = '0-0'
if redis.call('EXISTS', log) == 0 then
  redis.call('XGROUP', 'CREATE', log, 'flushers', '0', 'MKSTREAM')
else
  local info = redis.call('XINFO', 'STREAM', log)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
end
if known[2] and tonumber(string.match(last, '^%d+')) < tonumber(known[2]) then
  -- No entry of the current epoch: what stands above its beginning came back after it was lost.
  local base = redis.call('HGET', meta, 'lineage:' .. known[2])
  last = base and string.match(base, '^%d+%-%d+') or last
end
local now = redis.call('TIME')
local milliseconds = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
local epoch = milliseconds * 256 + tonumber(ARGV[2])
local floor = math.max(tonumber(known[2] or '0'), tonumber(string.match(last, '^(%d+)-')))
if epoch <= floor then epoch = floor + 1 + tonumber(ARGV[2]) end
local name = string.format('%.0f', epoch)
redis.call('HSET', meta, 'identity', ARGV[1], 'epoch', name,
  'lineage:' .. name, last .. '@' .. string.format('%.0f', milliseconds))
local before = string.match(last, '^(%d+)-')
if before ~= '0' and redis.call('HEXISTS', meta, 'lineage:' .. before) == 0 then
  -- Somebody has deleted the meta hash: the log itself tells of the epoch before.
  redis.call('HSET', meta, 'lineage:' .. before, '0-0@0')
end
-- Records of earlier epochs are suspect until a flusher has compared this history with SQL.
if known[2] or before ~= '0' then redis.call('HSET', meta, 'floor', name) end
return name
