-- Append entries to a partition's log and update the records that they change, as one atomic step.
--
-- KEYS  1 log (stream)   2 meta (hash)   3... one record (hash) for each operation but 'a', in order
-- ARGV  1 identity of the primary that this connection speaks to, and the epoch that the caller knows, with a space
--       2 client ID      3 stamp: number of this attempt, growing within the client
--       4 call ID, the stem of the mutation IDs
--       5 anchor: '' on a first attempt; '+' on one that only has to fence older calls of this client off;
--         on a retry the entry ID above which the call may already stand
--       6 entries searched at most by a retry; then, where the history has changed since a lost attempt, a space and the
--         field o (docs/wire-format.md): the first entry of each lost history that Redis has not. If SQL has that one, it
--         may have the lost attempt, too, and a flusher passes the entries over: so their records become markers
--       7 entries of the partition that SQL may not have yet for the call to be admitted, fewer than these; '' for a call
--         that is admitted in any case
--       8 '' or further limits: the age of the oldest of them in milliseconds, 0 for none; then, where Redis is short of
--         memory, a space and 'm'
--       9 number of entries     10 '0' where none of them increments
--      11... for each entry:
--           payload, number of operations, then for each operation:
--             'p' 2k  name value ...                    put: the whole record
--             'u' 2k  name value ...                    patch: some columns
--             'i' 5k  name kind delta low high ...      increment; kind 'i', 'f', 'n<scale>' or 'n'
--             'd' 0                                     delete
--             'n' 1   table                             insert: no record kept; what is there becomes a marker
--             'a' 1   table                             insert of a row whose key the database makes (takes no key)
-- Reply the ID of the last entry; the call's entries are contiguous.
-- Errors, all before any effect on log and records:
--       TIMELINE   the primary or the epoch is not what the caller knows, or the log is gone
--       FENCED     a later attempt of this client has overtaken this one
--       UNSEARCHED a retry could not see far enough back to know whether the call stood in the log
--       BACKLOG <reason> <entries> <resume>  not admitted: so many entries are not in SQL yet, and not before there are as few
--                  as <resume> is another call; <reason> is 'entries', 'seconds' or 'memory'
--       RANGE <column>  an increment would leave the column's range
--       WRONGTYPE  a key of the namespace holds something foreign
--
-- Stopped half way: cannot be; Redis runs a script whole, and logs and replicates it whole. But nothing is
-- rolled back on an error, so everything that can fail stands before the first XADD, which is the write that
-- Redis refuses when it is out of memory (a retry's fence before it is harmless alone, and so is the note that a partition
-- is held), and nothing is pcalled.

local log, meta = KEYS[1], KEYS[2]
local known = redis.call('HMGET', meta, 'identity', 'epoch', 'fence:' .. ARGV[2], 'floor', 'held')
local length = redis.call('XLEN', log)
if (known[1] or '') .. ' ' .. (known[2] or '') ~= ARGV[1] or (length == 0 and redis.call('EXISTS', log) == 0) then
  -- A log that was deleted must not count from 0 again inside the same epoch.
  return redis.error_reply('TIMELINE the primary changed, or the log is gone')
end
if known[3] and tonumber(known[3]) > tonumber(ARGV[3]) then
  return redis.error_reply('FENCED by a later attempt')
end
local call = ARGV[4]
local count = tonumber(ARGV[9])
local doubt = ''

-- Whether nothing was trimmed between the anchor and the oldest entry found above it (nil: none is there).
local function searched_all(oldest)
  local last
  if not oldest then
    local info = redis.call('EXISTS', log) == 1 and redis.call('XINFO', 'STREAM', log) or {}
    for i = 1, #info, 2 do
      if info[i] == 'last-generated-id' then last = info[i + 1] end
    end
    if not last or last == '0-0' or last == ARGV[5] then return true end
  end
  local anchor_epoch, anchor_sequence = string.match(ARGV[5], '^(%d+)-(%d+)$')
  local epoch, sequence = string.match(oldest or last, '^(%d+)-(%d+)$')
  if epoch == anchor_epoch then
    if not oldest then return tonumber(sequence) <= tonumber(anchor_sequence) end
    return tonumber(sequence) == tonumber(anchor_sequence) + 1
  end
  if not oldest or sequence ~= '0' then return false end
  local base = string.match(redis.call('HGET', meta, 'lineage:' .. epoch) or '', '^(%d+%-%d+)@')
  if base == '0-0' or base == ARGV[5] then return true end
  local base_epoch, base_sequence = string.match(base or '', '^(%d+)-(%d+)$')
  return base_epoch == anchor_epoch and tonumber(base_sequence) <= tonumber(anchor_sequence)
end

if ARGV[5] == '+' then
  redis.call('HSET', meta, 'fence:' .. ARGV[2], ARGV[3])
elseif ARGV[5] ~= '' then
  local search_max
  search_max, doubt = string.match(ARGV[6], '^(%d+) ?(.*)$')
  local last, searched, length = '+', 0, #call
  local oldest
  while true do
    local found = redis.call('XREVRANGE', log, last, '(' .. ARGV[5], 'COUNT', 256)
    for _, entry in ipairs(found) do
      local mutation = entry[2][2]
      if string.sub(mutation, 1, length) == call and (#mutation == length or string.sub(mutation, length + 1, length + 1) == '.') then
        return entry[1]
      end
    end
    if #found > 0 then oldest = found[#found][1] end
    if #found < 256 then break end
    searched = searched + 256
    if searched >= tonumber(search_max) then
      return redis.error_reply('UNSEARCHED the log is longer than the search')
    end
    last = '(' .. found[256][1]
  end
  if not searched_all(oldest) then return redis.error_reply('UNSEARCHED entries were trimmed meanwhile') end
  redis.call('HSET', meta, 'fence:' .. ARGV[2], ARGV[3])
end

-- Admission. A log shorter than the limit needs no look, because it holds what SQL has, too. Who is held is admitted again
-- below half of the limit; where SQL has everything any call is admitted, however large.
local held = known[5]
if ARGV[7] ~= '' and (held or ARGV[8] ~= '' or length >= tonumber(ARGV[7])) then
  local watermark = redis.call('HGET', meta, 'watermark')

  -- How many entries SQL does not have, by what was published; more where the two histories do not meet.
  local function backlog_now()
    local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
    if not last or not watermark then return length end
    local applied_epoch, applied = string.match(watermark, '^(%d+)-(%d+)$')
    local epoch, sequence = string.match(last[1], '^(%d+)-(%d+)$')
    if epoch == applied_epoch then return math.max(0, sequence - applied) end
    if tonumber(epoch) < tonumber(applied_epoch) then return 0 end
    local base_epoch, base = string.match(redis.call('HGET', meta, 'lineage:' .. epoch) or '', '^(%d+)-(%d+)@')
    if base_epoch == applied_epoch then return sequence + 1 + math.max(0, base - applied) end
    return length
  end

  local function oldest_milliseconds()
    local first = redis.call('XRANGE', log, watermark and '(' .. watermark or '-', '+', 'COUNT', 1)[1]
    local made = first and tonumber(string.sub(first[2][2], 1, 11), 16)
    if not made then return 0 end
    local now = redis.call('TIME')
    return now[1] * 1000 + now[2] / 1000 - made
  end

  local entries_max = tonumber(ARGV[7])
  local milliseconds_max, short = string.match(ARGV[8], '^(%d+)( ?m?)$')
  milliseconds_max = tonumber(milliseconds_max or 0)
  local share = held and 0.5 or 1
  local backlog = backlog_now()
  local resume = math.ceil(backlog / 2) - 1
  local reason
  if backlog > 0 then
    if backlog >= entries_max * share then
      reason, resume = 'entries', math.ceil(entries_max / 2) - 1
    elseif milliseconds_max > 0 and oldest_milliseconds() >= milliseconds_max * share then
      reason = 'seconds'
    elseif short == ' m' and not (held and backlog <= tonumber(string.match(held, '^%d+'))) then
      reason = 'memory'
    end
  end
  if reason then
    if held then
      resume = tonumber(string.match(held, '^%d+'))
    else
      redis.call('HSET', meta, 'held', string.format('%.0f %s', resume, reason))
    end
    return redis.error_reply(string.format('BACKLOG %s %.0f %.0f', reason, backlog, resume))
  end
end

-- Records that Redis may have older than SQL: this history is new, and nobody has compared it with SQL yet. What they
-- hold is not built upon.
local suspect = {}
if known[4] then
  for record = 3, #KEYS do
    local found = redis.call('HMGET', KEYS[record], ':version', ':loaded')
    -- What was only loaded from SQL is as old as what SQL had published then.
    local version = found[1] or found[2]
    if version and tonumber(string.match(version, '^%d+')) < tonumber(known[4]) then suspect[KEYS[record]] = true end
  end
end
if doubt ~= '' then
  -- Whether the call takes effect, only a flusher will know.
  for record = 3, #KEYS do suspect[KEYS[record]] = true end
end

-- Everything that can fail comes first. By the place in KEYS: whether the record was not there; by the place in ARGV:
-- the new name, value, ... of each increment, none where the record is not whole in Redis.
local fresh, sums = {}, nil
if ARGV[10] == '0' then
  -- Without increments only the types can be wrong.
  local at, record = 11, 3
  for _ = 1, count do
    local operations = tonumber(ARGV[at + 1])
    at = at + 2
    for _ = 1, operations do
      if ARGV[at] ~= 'a' then
        -- What is not there has no time to live.
        fresh[record] = not redis.call('HGET', KEYS[record], ':state')
        record = record + 1
      end
      at = at + 2 + tonumber(ARGV[at + 1])
    end
  end
else
  -- Whole numbers as text, of any length.
  local function magnitude_compare(a, b)
    if #a ~= #b then return #a < #b and -1 or 1 end
    if a == b then return 0 end
    return a < b and -1 or 1
  end

  local function magnitude_add(a, b, sign)
    local out, carry, i, j = {}, 0, #a, #b
    while i > 0 or j > 0 do
      local x = i > 0 and tonumber(string.sub(a, math.max(1, i - 11), i)) or 0
      local y = j > 0 and tonumber(string.sub(b, math.max(1, j - 11), j)) or 0
      local sum = x + sign * y + carry
      carry = 0
      if sum >= 1e12 then sum, carry = sum - 1e12, 1 elseif sum < 0 then sum, carry = sum + 1e12, -1 end
      table.insert(out, 1, string.format('%012.0f', sum))
      i, j = i - 12, j - 12
    end
    if carry == 1 then table.insert(out, 1, '1') end
    local digits = string.gsub(table.concat(out), '^0+', '')
    return digits == '' and '0' or digits
  end

  local function split(number)
    local negative = string.sub(number, 1, 1) == '-'
    local digits = string.gsub(negative and string.sub(number, 2) or number, '^0+', '')
    return negative, digits == '' and '0' or digits
  end

  local function whole_add(a, b)
    local a_negative, a_digits = split(a)
    local b_negative, b_digits = split(b)
    local negative, digits = a_negative, nil
    if a_negative == b_negative then
      digits = magnitude_add(a_digits, b_digits, 1)
    elseif magnitude_compare(a_digits, b_digits) >= 0 then
      digits = magnitude_add(a_digits, b_digits, -1)
    else
      negative, digits = b_negative, magnitude_add(b_digits, a_digits, -1)
    end
    return (negative and digits ~= '0') and '-' .. digits or digits
  end

  local function whole_less(a, b)
    local a_negative, a_digits = split(a)
    local b_negative, b_digits = split(b)
    if a_negative ~= b_negative then return a_negative end
    local order = magnitude_compare(a_digits, b_digits)
    if a_negative then order = -order end
    return order < 0
  end

  local function shortest(number)
    for digits = 15, 17 do
      local text = string.format('%.' .. digits .. 'g', number)
      if tonumber(text) == number then return text end
    end
    return string.format('%.17g', number)
  end

  local function fraction(number)
    return string.match(number, '%.(%d*)$') or ''
  end

  -- The number times ten to the scale, as a whole number.
  local function unscaled(number, scale)
    local digits = fraction(number)
    return string.gsub(number, '%.%d*$', '') .. digits .. string.rep('0', scale - #digits)
  end

  -- The sum as text, or nil where it leaves [low, high]. NULL counts as 0.
  local function add(kind, current, delta, low, high)
    if current == '\\N' then current = '0' end
    if kind == 'f' then
      local before = tonumber(current)
      local sum = before + tonumber(delta)
      -- An infinity that the increment itself makes: the database would refuse it.
      if math.abs(sum) == math.huge and math.abs(before) ~= math.huge then return nil end
      return shortest(sum)
    end
    local scale = 0
    if kind ~= 'i' then
      scale = tonumber(string.sub(kind, 2)) or math.max(#fraction(current), #fraction(delta))
      current, delta = unscaled(current, scale), unscaled(delta, scale)
    end
    local sum
    local x, y = tonumber(current), tonumber(delta)
    if math.abs(x) < 4e15 and math.abs(y) < 4e15 then
      sum = string.format('%.0f', x + y)
      if sum == '-0' then sum = '0' end
    else
      sum = whole_add(current, delta)
    end
    if low ~= '' and (whole_less(sum, low) or whole_less(high, sum)) then return nil end
    if scale > 0 then
      local negative, digits = split(sum)
      digits = string.rep('0', scale + 1 - #digits) .. digits
      sum = (negative and '-' or '') .. string.sub(digits, 1, -scale - 1) .. '.' .. string.sub(digits, -scale)
    end
    return sum
  end

  -- What the call makes of each record, as far as its own increments have to know: the state, the ranges of ARGV that
  -- were set (the array part), columns by name (values), and whether the hash of before is gone.
  local drafts = {}
  sums = {}

  local function replaced(draft, state)
    draft.state, draft.gone, draft.values = state, true, nil
    for i = #draft, 1, -1 do draft[i] = nil end
  end

  -- Compute an increment; return the column that would leave its range.
  local function increment(key, from, size)
    local names = {}
    for i = from, from + size - 1, 5 do names[#names + 1] = ARGV[i] end
    local draft = drafts[key]
    local stored = {}
    if not (draft and draft.gone) then stored = redis.call('HMGET', key, ':state', unpack(names)) end
    if not draft then
      draft = {state = suspect[key] and 'marker' or stored[1]}
      drafts[key] = draft
    end
    if draft.state ~= 'full' then return replaced(draft, 'marker') end
    local values = draft.values or {}
    for i = 1, #draft, 2 do
      for n = draft[i], draft[i + 1], 2 do values[ARGV[n]] = ARGV[n + 1] end
    end
    for i = #draft, 1, -1 do draft[i] = nil end
    draft.values = values
    local fields = {}
    for n, name in ipairs(names) do
      local i = from + 5 * (n - 1)
      local current = values[name] or stored[n + 1]
      if not current then return replaced(draft, 'marker') end
      local sum = add(ARGV[i + 1], current, ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
      if not sum then return name end
      values[name] = sum
      fields[#fields + 1] = name
      fields[#fields + 1] = sum
    end
    sums[from] = fields
  end

  -- Everything that can fail.
  local at, record = 11, 3
  for _ = 1, count do
    local operations = tonumber(ARGV[at + 1])
    at = at + 2
    for _ = 1, operations do
      local op, size = ARGV[at], tonumber(ARGV[at + 1])
      local first, last = at + 2, at + 1 + size
      at = last + 1
      if op ~= 'a' then
        local key = KEYS[record]
        record = record + 1
        if op == 'i' then
          local column = increment(key, first, size)
          if column then return redis.error_reply('RANGE ' .. column) end
        else
          local draft = drafts[key]
          if not draft then
            draft = {state = suspect[key] and 'marker' or redis.call('HGET', key, ':state')}
            drafts[key] = draft
          end
          if op == 'd' then
            replaced(draft, 'tombstone')
          elseif op == 'n' then
            if draft.state then replaced(draft, 'marker') end
          elseif op == 'p' or (draft.state ~= 'tombstone' and draft.state ~= 'marker') then
            draft[#draft + 1] = first
            draft[#draft + 1] = last
            if op == 'p' then draft.state = 'full' elseif draft.state ~= 'full' then draft.state = 'partial' end
          end
        end
      end
    end
  end
end

-- Nothing below can fail.
local epoch = known[2] .. '-*'
local id
local at, record = 11, 3
for entry = 1, count do
  local operations = tonumber(ARGV[at + 1])
  local mutation = count == 1 and call or call .. '.' .. entry
  if doubt == '' then
    id = redis.call('XADD', log, epoch, 'm', mutation, 'p', ARGV[at])
  else
    id = redis.call('XADD', log, epoch, 'm', mutation, 'p', ARGV[at], 'o', doubt)
  end
  at = at + 2
  for _ = 1, operations do
    local op, size = ARGV[at], tonumber(ARGV[at + 1])
    local first, last = at + 2, at + 1 + size
    at = last + 1
    if op == 'a' or op == 'n' then redis.call('HSET', meta, 'inserted:' .. ARGV[first], id) end
    if op ~= 'a' then
      local key = KEYS[record]
      record = record + 1
      if suspect[key] then
        suspect[key] = nil
        redis.call('DEL', key)
        redis.call('HSET', key, ':state', 'marker')
      end
      if doubt ~= '' then
        redis.call('HSET', key, ':version', id)
      elseif op == 'p' then
        redis.call('HSET', key, ':version', id, ':state', 'full', unpack(ARGV, first, last))
      elseif op == 'd' then
        redis.call('DEL', key)
        redis.call('HSET', key, ':version', id, ':state', 'tombstone')
      elseif op == 'n' then
        if redis.call('DEL', key) == 1 then redis.call('HSET', key, ':version', id, ':state', 'marker') end
      elseif op == 'u' then
        local state = redis.call('HGET', key, ':state')
        if state == 'full' then
          redis.call('HSET', key, ':version', id, unpack(ARGV, first, last))
        elseif state == 'tombstone' or state == 'marker' then
          redis.call('HSET', key, ':version', id)
        else
          redis.call('HSET', key, ':version', id, ':state', 'partial', unpack(ARGV, first, last))
        end
      else
        local fields = sums[first]
        if fields then
          redis.call('HSET', key, ':version', id, unpack(fields))
        else
          redis.call('DEL', key)
          redis.call('HSET', key, ':version', id, ':state', 'marker')
        end
      end
      if not fresh[record - 1] then redis.call('PERSIST', key) end
    end
  end
end
if held and ARGV[7] ~= '' then redis.call('HDEL', meta, 'held') end
return id
