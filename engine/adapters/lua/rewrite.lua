-- Append an entry again that was accepted in another history, and let its records wait for it.
--
-- KEYS  1 log (stream)   2 meta (hash)   3... one record (hash) for each operation but 'a', in order
-- ARGV  1 identity of the primary   2 ID of the original entry   3 mutation ID   4 payload   5 number of operations
--       6 an ID up to which the log was looked at, '' where every record is there
--       7... the expected version of each of KEYS from the third on ('' for a record that is not there); then for each
--       operation: its letter, as append.lua has them, and its table where it is an insert, else ''
-- Reply the ID of the entry. Errors, all before any effect:
--       TIMELINE   the primary is not the one on which the current epoch began, or the log is gone
--       CHANGED    a record is not at its expected version; or one is not there, and entries were appended since the look
--
-- Every record becomes a marker, whose reads wait for SQL: a flusher skips the entry where SQL has applied the original,
-- and SQL may then have something later. Stopped half way: cannot be. Repeat: CHANGED, or another entry for the same
-- original, which the flusher skips.

local log, meta = KEYS[1], KEYS[2]
local known = redis.call('HMGET', meta, 'identity', 'epoch')
if known[1] ~= ARGV[1] or redis.call('EXISTS', log) == 0 then
  return redis.error_reply('TIMELINE the primary changed, or the log is gone')
end
if ARGV[6] ~= '' then
  -- A record that is not there may have been written, flushed and removed since.
  local info, last = redis.call('XINFO', 'STREAM', log), nil
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then last = info[i + 1] end
  end
  local epoch, sequence = string.match(last, '^(%d+)-(%d+)$')
  local seen_epoch, seen_sequence = string.match(ARGV[6], '^(%d+)-(%d+)$')
  epoch, sequence = tonumber(epoch), tonumber(sequence)
  seen_epoch, seen_sequence = tonumber(seen_epoch), tonumber(seen_sequence)
  if epoch > seen_epoch or (epoch == seen_epoch and sequence > seen_sequence) then
    return redis.error_reply('CHANGED entries were appended meanwhile')
  end
end
local at = 7
for record = 3, #KEYS do
  if (redis.call('HGET', KEYS[record], ':version') or '') ~= ARGV[at] then
    return redis.error_reply('CHANGED a record was written meanwhile')
  end
  at = at + 1
end
local id = redis.call('XADD', log, known[2] .. '-*', 'm', ARGV[3], 'p', ARGV[4], 'o', ARGV[2])
local record = 3
for _ = 1, tonumber(ARGV[5]) do
  local op, inserted = ARGV[at], ARGV[at + 1]
  at = at + 2
  if inserted ~= '' then redis.call('HSET', meta, 'inserted:' .. inserted, id) end
  if op ~= 'a' then
    local key = KEYS[record]
    record = record + 1
    if redis.call('DEL', key) == 1 or op ~= 'n' then
      redis.call('HSET', key, ':version', id, ':state', 'marker')
    end
  end
end
return id
