-- After a commit: records whose last change is in SQL now become clean.
--
-- KEYS  records (hash), all of one partition
-- ARGV  1 time to live of a clean record in milliseconds, 0 for none   2 by how much less of it a record gets at the most,
--       so that what is flushed together does not end together   3 where to begin with that   4 how many of the keys, the
--       first ones, were put last, so that they are whole where they were not written since   5 '1' where dead letters
--       were among what was committed, '' otherwise   6... the version committed for each key
-- Reply how many were still at that version.
--
-- A record that was written since keeps its state and has no TTL. A whole record gets the TTL. A tombstone, a
-- marker and a partial record have nothing that SQL does not have now, and go. So does what has no version: it was loaded
-- from SQL before this commit, which SQL applied late, or once more after it was rolled back. What was loaded before SQL
-- took a dead letter, and written since, lacks that one: it goes, too, or becomes a marker where its last change is not in
-- SQL. The first write is never refused when Redis is out of memory. Stopped half way: cannot be. Repeat: harmless.

local ttl, spread, offset, whole = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local late = ARGV[5] == '1'
local settled = 0

-- Made beforehand and as texts: Redis takes its time to make them of numbers. Neighbours end far from each other.
local lifetimes = {}
local several = math.min(#KEYS, 16)
for i = 0, several - 1 do
  lifetimes[i] = string.format('%.0f', ttl - (offset + math.floor(i * spread * 0.618)) % spread)
end

for i = 1, whole do
  local version = redis.call('HGET', KEYS[i], ':version')
  if version == ARGV[i + 5] then
    settled = settled + 1
    redis.call('PEXPIRE', KEYS[i], lifetimes[i % several])
  elseif not version then
    redis.call('DEL', KEYS[i])
  end
end
for i = whole + 1, #KEYS do
  local known = redis.call('HMGET', KEYS[i], ':version', ':state')
  local lacking = late and redis.call('HGET', KEYS[i], ':loaded')
  if known[1] == ARGV[i + 5] then
    settled = settled + 1
    if known[2] ~= 'full' or lacking then
      redis.call('DEL', KEYS[i])
    elseif ttl > 0 then
      redis.call('PEXPIRE', KEYS[i], lifetimes[i % several])
    end
  elseif not known[1] then
    redis.call('DEL', KEYS[i])
  elseif lacking then
    redis.call('DEL', KEYS[i])
    redis.call('HSET', KEYS[i], ':version', known[1], ':state', 'marker')
  end
end
return settled
