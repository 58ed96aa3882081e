-- Take the right to load records from SQL, each for one caller at a time.
--
-- KEYS  1 meta (hash)   2... records (hash), all of one partition
-- ARGV  1 identity of the primary that this connection speaks to   2 token   3 how long the leases last in milliseconds
--       4... for each record what the caller has seen:
--            ''             nothing, or another caller's lease
--            'a' :loaded    a record that was absent and may not be any more
--            'm' :version   a marker whose entry SQL has
--            'f' :version   a whole record (without a version: nothing after the 'f') that is to be loaded again
--            'o' :version or :loaded, a space, a column   a record that lacks the column, so that a row is to be laid under
--                           it; no column where it lacks none, though it is partial
-- Reply {epoch, watermark, for each record 1 where the lease was taken, 2 where none is needed, since SQL has no row for
--       it, else 0}, or {} where nothing may be kept: the history is new, and nobody has compared it with SQL yet.
-- Error UNOPENED: no epoch was ever begun, so that no later history could be told from this one.
--
-- What is not there becomes a hash of state 'loading', which ends by itself and which any write replaces: so a write
-- cancels the lease. A whole record keeps what it has; a write gives it another version. So does what a row is to be laid
-- under, whose lease, in ':overlay', names what it was taken for: it holds up nobody once that was written again. It only
-- spares SQL further loads; one that lasts longer than a lease may counts as nothing, since clocks may be set. HSET is the
-- first write, which a full Redis refuses. Stopped half way: cannot be; but a log that ends inside a transaction can bring back its first
-- command alone: a lease without an end counts as nothing. Repeat: takes nothing that is taken.

local known = redis.call('HMGET', KEYS[1], 'identity', 'epoch', 'floor', 'watermark')
if not known[2] then return redis.error_reply('UNOPENED no epoch was ever begun') end
if known[1] ~= ARGV[1] or known[3] then return {} end
local watermark = known[4] or '0-0'
local reply = {known[2], watermark}
local now

local function clock()
  if not now then
    local time = redis.call('TIME')
    now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  end
  return now
end

local function end_of_lease()
  return string.format('%.0f', clock() + tonumber(ARGV[3]))
end

-- Whether a row is to be laid under a record by this caller: 0, 1 or 2, as in the reply.
local function overlaid(key, found, seen)
  local about, lacked = string.match(seen, '^(%S*) (.*)$')
  if (found[1] ~= 'partial' and found[1] ~= 'full') or ((found[2] and found[2] ~= '' and found[2]) or found[3] or '') ~= about
    or (lacked ~= '' and redis.call('HGET', key, lacked)) then
    return 0
  end
  local ends, leased = string.match(found[5] or '', '^(%d+) %S+ (%S*)$')
  if leased == about then
    if ends == '0' then return 2 end
    local left = tonumber(ends) - clock()
    if left > 0 and left <= tonumber(ARGV[3]) then return 0 end
  end
  redis.call('HSET', key, ':overlay', end_of_lease() .. ' ' .. ARGV[2] .. ' ' .. about)
  return 1
end

for i = 2, #KEYS do
  local key = KEYS[i]
  local kind, seen = string.sub(ARGV[i + 2], 1, 1), string.sub(ARGV[i + 2], 2)
  local found = redis.call('HMGET', key, ':state', ':version', ':loaded', ':until', ':overlay')
  local state, version = found[1], found[2]
  local free
  if kind == 'o' then
    reply[i + 1] = overlaid(key, found, seen)
  elseif kind == 'f' then
    free = state == 'full' and (version or '') == seen and tonumber(found[4] or '0') <= clock()
      and redis.call('PTTL', key) > 0
    if free then redis.call('HSET', key, ':token', ARGV[2], ':until', end_of_lease()) end
  else
    if kind == 'a' then
      free = state == 'absent' and found[3] == seen
    elseif kind == 'm' then
      free = state == 'marker' and version == seen
    elseif state then
      free = state == 'loading' and redis.call('PTTL', key) == -1
    else
      free = redis.call('EXISTS', key) == 0
    end
    if free then
      redis.call('HSET', key, ':state', 'loading', ':token', ARGV[2], ':loaded', watermark)
      if version then redis.call('HDEL', key, ':version') end
      redis.call('PEXPIRE', key, ARGV[3])
    end
  end
  reply[i + 1] = reply[i + 1] or free and 1 or 0
end
return reply
