-- Tell which entries are not in a log, without sending any of them.
--
-- KEYS  1 log (stream)
-- ARGV  entry IDs
-- Reply the IDs that are not there. Reads only. Repeat: harmless.

local missing = {}
for _, id in ipairs(ARGV) do
  if #redis.call('XRANGE', KEYS[1], id, id) == 0 then missing[#missing + 1] = id end
end
return missing
