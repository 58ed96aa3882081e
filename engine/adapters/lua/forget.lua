-- Remove records that are still what they were when they were judged, so that reads load them from SQL.
--
-- KEYS  records, all of one partition
-- ARGV  for each of them the version that it had; '' for a hash without one, '!' for what is no hash
-- Reply for each of them 1 where it was removed, 0 where it was written meanwhile or is gone.
--
-- Stopped half way: cannot be. Repeat: removes nothing more. Not refused when Redis is out of memory.

local removed = {}
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  local version = nil
  if kind == 'hash' then
    version = redis.call('HGET', key, ':version') or ''
  elseif kind ~= 'none' then
    version = '!'
  end
  removed[i] = version == ARGV[i] and redis.call('UNLINK', key) or 0
end
return removed
