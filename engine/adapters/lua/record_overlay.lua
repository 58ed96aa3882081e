-- Lay a row under a record of which Redis has some columns, where nobody has written it meanwhile.
--
-- KEYS  1 record (hash)
-- ARGV  1 its version when the row was asked for; where it had none, the watermark under which it was loaded
--       2... name value ... of the columns that it lacks; none where there is no row
-- Reply 1 where it is still at that version and partial, or full: then it was written before a column was declared, or
--       another reader was here. Else 0.
--
-- It keeps its version and its time to live, if it has one: that of a partial record is not in SQL. That it was loaded is
-- noted, because a row lacks what became a dead letter. The lease ends, whoever has it; where there is no row, it says so
-- until the record is written again: who waits need not load one after the other. HSET is the first write, which a full
-- Redis refuses. Stopped half way: cannot be. Repeat: harmless.

local known = redis.call('HMGET', KEYS[1], ':version', ':state', ':loaded', ':overlay')
if (known[1] or known[3]) ~= ARGV[1] or (known[2] ~= 'partial' and known[2] ~= 'full') then return 0 end
local nothing = '0 - ' .. ARGV[1]
if #ARGV > 1 then
  redis.call('HSET', KEYS[1], ':state', 'full', ':loaded', ARGV[1], unpack(ARGV, 2))
  if known[4] then redis.call('HDEL', KEYS[1], ':overlay') end
elseif known[4] ~= nothing then
  redis.call('HSET', KEYS[1], ':overlay', nothing)
end
return 1
