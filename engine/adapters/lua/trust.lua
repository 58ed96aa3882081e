-- Let records of earlier epochs be trusted again, once this history was compared with SQL.
--
-- KEYS  1 meta (hash)
-- ARGV  1 the floor that was judged
-- Reply 1, or 0 where another epoch has begun meanwhile. Stopped half way: cannot be. Repeat: harmless.

if redis.call('HGET', KEYS[1], 'floor') ~= ARGV[1] then return 0 end
return redis.call('HDEL', KEYS[1], 'floor')
