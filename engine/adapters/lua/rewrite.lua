-- Append entries again that were accepted in another history, and let their records wait for them.
--
-- KEYS  1 log (stream)   2 meta (hash)   3... the records (hash) that the entries change, each once
-- ARGV  1 identity of the primary   2 an ID up to which the log was looked at, '' where every record is there
--       3 number of entries   4... the expected version of each record ('' for one that is not there); then for each entry:
--           field o (docs/wire-format.md), mutation ID, payload, number of operations, then for each operation:
--           its letter, as append.lua has them; its table where it is an insert, else ''; its place in KEYS, 0 for 'a'
-- Reply the ID of the last entry; they are contiguous. Errors, all before any effect:
--       TIMELINE   the primary is not the one on which the current epoch began, or the log is gone
--       CHANGED    a record is not at its expected version; or one is not there, and may have been written since the look
--
-- Every record becomes a marker, whose reads wait for SQL: a flusher skips an entry where SQL has applied the original,
-- and SQL may then have something later. Stopped half way: cannot be. Repeat: CHANGED, or other entries for the same
-- originals, which the flusher skips.

local log, meta = KEYS[1], KEYS[2]
local known = redis.call('HMGET', meta, 'identity', 'epoch')
if known[1] ~= ARGV[1] or redis.call('EXISTS', log) == 0 then
  return redis.error_reply('TIMELINE the primary changed, or the log is gone')
end

local function numbers(id)
  local epoch, sequence = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(sequence)
end

local function facts(reply)
  local found = {}
  for i = 1, #reply, 2 do found[reply[i]] = reply[i + 1] end
  return found
end

-- How a payload has a record's table and key, one after the other (docs/wire-format.md).
local function needle_of(key)
  local name, text = string.match(key, '^wb:{[^}]*}:([^:]*):(.*)$')
  local size = #text
  local head
  if size < 32 then
    head = string.char(160 + size)
  elseif size < 256 then
    head = string.char(217, size)
  else
    head = string.char(218, math.floor(size / 256), size % 256)
  end
  return name .. head .. text
end

-- Whether nothing that was appended after an ID is about records that are not there, or has been flushed: a flusher
-- acknowledges what it has committed before it removes a record, and commits nothing that its group did not deliver. An
-- insert leaves no record at all, so the entries themselves are looked at.
local function unwritten_since(id, absent)
  local last = facts(redis.call('XINFO', 'STREAM', log))['last-generated-id']
  local epoch, sequence = numbers(id)
  local last_epoch, last_sequence = numbers(last)
  if last_epoch < epoch or (last_epoch == epoch and last_sequence <= sequence) then return true end
  local delivered
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', log)) do
    group = facts(group)
    if group['name'] == 'flushers' then delivered = group['last-delivered-id'] end
  end
  if not delivered or epoch ~= last_epoch or last_sequence - sequence > 1000 then return false end
  local appended = redis.call('XRANGE', log, '(' .. id, '+')
  if #appended ~= last_sequence - sequence then return false end
  for _, key in ipairs(absent) do
    local needle = needle_of(key)
    for _, entry in ipairs(appended) do
      if string.find(entry[2][4] or '', needle, 1, true) then return false end
    end
  end
  local delivered_epoch, delivered_sequence = numbers(delivered)
  if delivered_epoch ~= epoch then return delivered_epoch < epoch end
  local out = math.max(0, delivered_sequence - sequence)
  return out == 0 or #redis.call('XPENDING', log, 'flushers', '(' .. id, '+', 1000) == out
end

local at = 4
local absent = {}
for record = 3, #KEYS do
  if ARGV[at] == '' then absent[#absent + 1] = KEYS[record] end
  if (redis.call('HGET', KEYS[record], ':version') or '') ~= ARGV[at] then
    return redis.error_reply('CHANGED a record was written meanwhile')
  end
  at = at + 1
end
if #absent > 0 and not unwritten_since(ARGV[2], absent) then
  return redis.error_reply('CHANGED entries were appended meanwhile, and flushed, or about records that are not there')
end
local epoch = known[2] .. '-*'
local id
for _ = 1, tonumber(ARGV[3]) do
  id = redis.call('XADD', log, epoch, 'm', ARGV[at + 1], 'p', ARGV[at + 2], 'o', ARGV[at])
  local operations = tonumber(ARGV[at + 3])
  at = at + 4
  for _ = 1, operations do
    local op, inserted, key = ARGV[at], ARGV[at + 1], KEYS[tonumber(ARGV[at + 2])]
    at = at + 3
    if inserted ~= '' then redis.call('HSET', meta, 'inserted:' .. inserted, id) end
    if op ~= 'a' and (redis.call('DEL', key) == 1 or op ~= 'n') then
      redis.call('HSET', key, ':version', id, ':state', 'marker')
    end
  end
end
return id
