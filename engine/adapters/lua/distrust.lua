-- Remove records that may be older here than in SQL, so that reads load them anew.
--
-- KEYS  records (hash), all of one partition
-- ARGV  1 epoch below which a record is meant, '' for every one of KEYS   2 epoch and 3 sequence that SQL has applied
--       4 the last entry before that epoch, where SQL has not applied it and KEYS are its records, '' otherwise
--       5... entries that never were, whose records go in any case
-- Reply how many records were removed or became markers.
--
-- What SQL has not applied yet stays; where ARGV[1] is '', or ARGV[4] is not, it becomes a marker, whose reads wait for
-- SQL. A record that was only loaded from SQL goes where the watermark of that moment is of an earlier epoch. Stopped
-- half way: by a key that is no hash; the caller then takes the keys one by one. Repeat: harmless, but not counted.

local ghosts = {}
local last = ARGV[4]
for i = 5, #ARGV do ghosts[ARGV[i]] = true end
local changed = 0
for _, key in ipairs(KEYS) do
  local known = redis.call('HMGET', key, ':version', ':loaded')
  local version = known[1]
  local loaded = not version and known[2] and tonumber(string.match(known[2], '^%d+'))
  local epoch, sequence = string.match(version or '', '^(%d+)-(%d+)$')
  epoch, sequence = tonumber(epoch), tonumber(sequence)
  if last ~= '' and (not epoch or epoch < tonumber(ARGV[1])) then
    redis.call('DEL', key)
    redis.call('HSET', key, ':version', last, ':state', 'marker')
    changed = changed + 1
  elseif epoch and (ARGV[1] == '' or epoch < tonumber(ARGV[1])) then
    local applied, upto = tonumber(ARGV[2]), tonumber(ARGV[3])
    if ghosts[version] or epoch < applied or (epoch == applied and sequence <= upto) then
      redis.call('UNLINK', key)
      changed = changed + 1
    elseif ARGV[1] == '' then
      redis.call('DEL', key)
      redis.call('HSET', key, ':version', version, ':state', 'marker')
      changed = changed + 1
    end
  elseif loaded and (ARGV[1] == '' or loaded < tonumber(ARGV[1])) then
    redis.call('UNLINK', key)
    changed = changed + 1
  end
end
return changed
