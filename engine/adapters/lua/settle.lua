-- After a commit: records whose last change is in SQL now become clean.
--
-- KEYS  records (hash), all of one partition
-- ARGV  1 time to live of a clean record in milliseconds, 0 for none   2... the version committed for each key
-- Reply how many were still at that version.
--
-- A record that was written since keeps its state and has no TTL. A whole record gets the TTL. A tombstone, a
-- marker and a partial record have nothing that SQL does not have now, and go. None of these commands is refused
-- when Redis is out of memory. Stopped half way: cannot be. Repeat: harmless.

local ttl = ARGV[1]
local settled = 0
for i, key in ipairs(KEYS) do
  local known = redis.call('HMGET', key, ':version', ':state')
  if known[1] == ARGV[i + 1] then
    settled = settled + 1
    if known[2] ~= 'full' then
      redis.call('DEL', key)
    elseif ttl ~= '0' then
      redis.call('PEXPIRE', key, ttl)
    end
  end
end
return settled
