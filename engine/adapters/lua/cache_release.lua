-- Give the lease for loading a value back.
--
-- KEYS  1 entry (hash)
-- ARGV  1 token
-- Reply 1, or 0 where the lease is not this one any more.
--
-- A value that is there stays, with its time to live. Where the lease was the only one of its generation, that is over:
-- nobody else is about to put a value there, and nothing is left of an entry without one. Not refused when Redis is out of
-- memory. Stopped half way: cannot be. Repeat: 0.

local entry = redis.call('HMGET', KEYS[1], 'token', 'leases')
if entry[1] ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'token', 'lease')
if entry[2] == '1' then redis.call('HDEL', KEYS[1], 'generation', 'leases') end
return 1
