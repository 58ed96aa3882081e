-- Count a hit against all limits of a subject, if each of them has room for it. The windows slide.
--
-- KEYS  1 the subject's hits (sorted set)
-- ARGV  1 cost in units, no more than the smallest limit   2 '1' to count it, '0' to look only
--       3... for each limit: its units, its window in microseconds
-- Reply {1 where it is admitted, else 0; units left of the scarcest limit; microseconds until the same would be admitted if
--       nobody else hits, 0 where it is; the server's clock in microseconds}
-- Errors, all before any effect: FOREIGN or WRONGTYPE, the key holds something else; OOM from Redis itself
--
-- A member is one hit: the units hit so far, this one included, then ':' and its own. The score is its time. So a member
-- is never there twice, equal times keep the order of the hits, and what a window holds is the difference of two members:
-- no hit is looked at but those where a window begins, O(log n), and O(log n) of them to find when there will be room.
--
-- A hit counts for less than a window: at the very end of it there is room again. Nothing is removed to be counted right;
-- what no window needs any more is removed in small pieces, so that Redis is never busy with a hit for long.
--
-- The clock never goes back behind the newest hit. Where the server's does (it was set, or a replica behind was promoted),
-- it stands still until the server's has caught up; where that would take more than a window, all hits are taken together
-- as one of this moment. Both count hits for longer than they would have to be, never for less.
--
-- Stopped half way: cannot be. ZADD is the write that a full Redis refuses, or DEL goes before it, after which it refuses
-- nothing. Repeat: counts again.

local key, cost = KEYS[1], tonumber(ARGV[1])
local longest = 0
for i = 4, #ARGV, 2 do longest = math.max(longest, tonumber(ARGV[i])) end
local time = redis.call('TIME')
local clock = time[1] * 1000000 + time[2]

local function whole(number)
  return string.format('%.0f', number)
end

-- The units up to a hit, its own, and its time.
local function hit_at(rank)
  local found = redis.call('ZRANGE', key, rank, rank, 'WITHSCORES')
  local sum, units = string.match(found[1], '^(%d+):(%d+)$')
  if not sum then error(redis.error_reply('FOREIGN the key holds what is no hit')) end
  return tonumber(sum), tonumber(units), tonumber(found[2])
end

local function add(sum, units, at)
  redis.call('ZADD', key, whole(at), string.format('%016.0f:%.0f', sum, units))
end

local function expire(at)
  redis.call('PEXPIREAT', key, whole(math.ceil((at + longest) / 1000)))
end

local count, total, now = redis.call('ZCARD', key), 0, clock

-- How many hits a window is past, and the units of the others.
local function past(window)
  local gone = redis.call('ZCOUNT', key, '-inf', whole(now - window))
  if gone == count then return gone, 0 end
  local sum, units = hit_at(gone)
  return gone, total - sum + units
end

if count > 0 then
  local sum, _, newest = hit_at(-1)
  total, now = sum, math.max(clock, newest)
  if newest - clock > longest then
    local _, units = past(longest)
    redis.call('DEL', key)
    count, total, now = 1, units, clock
    add(total, units, now)
    expire(now)
  end
end

local left, wait = math.huge, 0
for i = 3, #ARGV, 2 do
  local limit, window = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
  local low, units = past(window)
  left = math.min(left, limit - units)
  if units + cost > limit then
    -- The first hit with whose end there is room.
    local high = count - 1
    while low < high do
      local middle = math.floor((low + high) / 2)
      if hit_at(middle) >= total + cost - limit then high = middle else low = middle + 1 end
    end
    local _, _, at = hit_at(low)
    wait = math.max(wait, at + window - clock)
  end
end
local admitted = left >= cost
if admitted and ARGV[2] == '1' then
  left = left - cost
  local gone = math.min(past(longest), 100)
  add(total + cost, cost, now)
  if gone > 0 then redis.call('ZREMRANGEBYRANK', key, 0, gone - 1) end
  expire(now)
end
return {admitted and 1 or 0, math.max(0, left), wait, clock}
