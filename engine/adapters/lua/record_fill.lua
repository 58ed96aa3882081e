-- Put rows that were loaded under a lease into their records, where nobody has written them meanwhile.
--
-- KEYS  1 meta (hash)   2... records (hash), all of one partition
-- ARGV  1 identity of the primary that this connection speaks to, and the epoch under which the leases were taken, with a
--         space   2 token   3 the watermark of that moment
--       4... for each record:
--            its version when the lease was taken, '' for none   its state then, 'loading' or 'full'
--            time to live in milliseconds, '0' where it is not to be kept   number of texts, '0' where there is no row
--            name value ...
-- Reply for each record 1 where it was filled, 0 where the lease is not this one any more.
-- Error TIMELINE: the history is another one. It may have the lease, and have lost the write that had cancelled it.
--
-- A filled record has no version, because a fill is no write; it has the watermark, by which it is judged after Redis was
-- rolled back. HSET is the first write, which a full Redis refuses, and until the last one the record ends with the lease.
-- Stopped half way: cannot be. Repeat: 0.

local known = redis.call('HMGET', KEYS[1], 'identity', 'epoch')
if (known[1] or '') .. ' ' .. (known[2] or '') ~= ARGV[1] then
  return redis.error_reply('TIMELINE the history is another one')
end
local reply = {}
local at = 4
for i = 2, #KEYS do
  local key = KEYS[i]
  local version, state, ttl, size = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local first, last = at + 4, at + 3 + size
  at = last + 1
  local found = redis.call('HMGET', key, ':state', ':token', ':version')
  local mine = found[1] == state and found[2] == ARGV[2] and (found[3] or '') == version
  if mine and ttl ~= '0' and size > 0 then
    redis.call('HSET', key, ':state', 'full', ':loaded', ARGV[3], unpack(ARGV, first, last))
    redis.call('HDEL', key, ':token', ':until')
    redis.call('PEXPIRE', key, ttl)
  elseif mine and ttl ~= '0' and state == 'loading' then
    redis.call('HSET', key, ':state', 'absent', ':loaded', ARGV[3])
    redis.call('HDEL', key, ':token')
    redis.call('PEXPIRE', key, ttl)
  elseif mine then
    redis.call('DEL', key)
  end
  reply[i - 1] = mine and 1 or 0
end
return reply
