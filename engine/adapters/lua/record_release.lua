-- Give leases for loading records back.
--
-- KEYS  records (hash), all of one partition
-- ARGV  1 token
-- Reply how many were given back.
--
-- Not refused when Redis is out of memory. Stopped half way: cannot be. Repeat: 0.

local released = 0
for _, key in ipairs(KEYS) do
  local known = redis.call('HMGET', key, ':state', ':token', ':overlay')
  if known[2] == ARGV[1] and known[1] == 'loading' then
    redis.call('DEL', key)
    released = released + 1
  elseif known[2] == ARGV[1] then
    redis.call('HDEL', key, ':token', ':until')
    released = released + 1
  elseif string.match(known[3] or '', '^%d+ (%S+) ') == ARGV[1] then
    redis.call('HDEL', key, ':overlay')
    released = released + 1
  end
end
return released
