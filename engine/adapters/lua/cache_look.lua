-- Look a cached value up; where there is none, take the lease for loading it.
--
-- KEYS  1 entry (hash: value, until, cost, filled; token, lease; generation, leases; times in milliseconds)
-- ARGV  1 token of the lease to take, '' to take none   2 how long the lease lasts in milliseconds
--       3 how many times the cost of a load before its end the value is refreshed, '0' for not at all
--       4 for how many milliseconds an expired value will do while another caller loads
--       5 '1' where the value that is there will not do   6 how long the entry is kept for the load in milliseconds
-- Reply {'hit', value, milliseconds that it is fresh for}
--       {'stale', value}
--       {'busy'} another caller has the lease, or none was to be taken
--       {'leased', generation, number of the lease in it, value where it is still fresh, or nil, 1 where there is a
--                  value, else 0, milliseconds that it is fresh for} the caller has the lease
--
-- The first lease begins a generation, which ends with the entry, so with any invalidation; later leases are numbered in
-- it. What was loaded in a generation may be put there even after its lease has run out.
--
-- The entry has a time to live from the first on, and a lease never shortens it, but may well prolong it: what is there
-- may have expired long ago. A number that is none counts as not there. The HSET is the first write, which a full Redis
-- refuses; what is fresh is found without any. Stopped half way: cannot be. Repeat with the same token: 'busy'.

local key = KEYS[1]

local function whole(text)
  return text and #text <= 15 and tonumber(string.match(text, '^%d+$')) or nil
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local entry = redis.call('HMGET', key, 'value', 'until', 'cost', 'token', 'lease')
local value, fresh_until, cost, lease_until = entry[1], whole(entry[2]), whole(entry[3]), whole(entry[5])
if ARGV[5] == '1' or not (fresh_until and cost) then value = false end
local fresh = value and fresh_until > now
if fresh and now + cost * tonumber(ARGV[3]) < fresh_until then
  return {'hit', value, fresh_until - now}
end
local leased = entry[4] and lease_until and lease_until > now
if leased or ARGV[1] == '' then
  if fresh then return {'hit', value, fresh_until - now} end
  if value and fresh_until + tonumber(ARGV[4]) > now then return {'stale', value} end
  return {'busy'}
end
local known = redis.call('HMGET', key, 'generation', 'leases')
local generation, number = known[1], whole(known[2])
if not (generation and number) then generation, number = ARGV[1], 0 end
redis.call('HSET', key, 'token', ARGV[1], 'lease', string.format('%.0f', now + tonumber(ARGV[2])),
  'generation', generation, 'leases', string.format('%.0f', number + 1))
if number == 0 then redis.call('HDEL', key, 'filled') end
if redis.call('PEXPIRE', key, ARGV[6], 'GT') == 0 then redis.call('PEXPIRE', key, ARGV[6], 'NX') end
return {'leased', generation, number + 1, fresh and value, entry[1] and 1 or 0, fresh and fresh_until - now or 0}
