-- Let records of earlier epochs be trusted again, once this history was compared with SQL.
--
-- KEYS  1 meta (hash)
-- ARGV  1 the floor that was judged   2 the epoch below which records were removed, because SQL has them newer, or ''
-- Reply 1, or 0 where another epoch has begun meanwhile. Stopped half way: cannot be. Repeat: harmless.

if redis.call('HGET', KEYS[1], 'floor') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'floor')
-- A full Redis refuses no write after the first one.
if ARGV[2] ~= '' then redis.call('HSET', KEYS[1], 'judged', ARGV[2]) end
return 1
