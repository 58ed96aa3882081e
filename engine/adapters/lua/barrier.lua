-- Make a small write on this connection, so that a WAITAOF or WAIT after it covers every earlier write.
--
-- KEYS  1 meta (hash)
-- ARGV  1 identity of the primary on which the writes to be covered were made
-- Reply 1. Error TIMELINE: another primary, or another history of it, so nothing can be concluded.
-- Stopped half way: cannot be. Repeat: harmless.

if redis.call('HGET', KEYS[1], 'identity') ~= ARGV[1] then
  return redis.error_reply('TIMELINE the primary changed')
end
redis.call('HINCRBY', KEYS[1], 'barrier', 1)
return 1
