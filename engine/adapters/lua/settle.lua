-- After a commit: records whose last change is in SQL now become clean.
--
-- KEYS  records (hash), all of one partition
-- ARGV  1 time to live of a clean record in milliseconds, 0 for none   2 how many of the keys, the first ones, were put
--       last, so that they are whole where they were not written since   3... the version committed for each key
-- Reply how many were still at that version.
--
-- A record that was written since keeps its state and has no TTL. A whole record gets the TTL. A tombstone, a
-- marker and a partial record have nothing that SQL does not have now, and go. None of these commands is refused
-- when Redis is out of memory. Stopped half way: cannot be. Repeat: harmless.

local ttl, whole = ARGV[1], tonumber(ARGV[2])
local settled = 0
for i = 1, whole do
  if redis.call('HGET', KEYS[i], ':version') == ARGV[i + 2] then
    settled = settled + 1
    redis.call('PEXPIRE', KEYS[i], ttl)
  end
end
for i = whole + 1, #KEYS do
  local known = redis.call('HMGET', KEYS[i], ':version', ':state')
  if known[1] == ARGV[i + 2] then
    settled = settled + 1
    if known[2] ~= 'full' then
      redis.call('DEL', KEYS[i])
    elseif ttl ~= '0' then
      redis.call('PEXPIRE', KEYS[i], ttl)
    end
  end
end
return settled
