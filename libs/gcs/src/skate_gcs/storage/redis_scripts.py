"""The Lua scripts of the ``redis`` back end: each one is atomic, and the first write of each is
refused before anything changes when the server has no room or can not save.

The fence is a hash that says whose tables these are: ``epoch`` grows with each opener, so that an
older one, which may be stopped or cut off and not know it, can not write any more; ``holder`` and
``until_ms`` (the server's clock) keep a newcomer out while the present opener lives; ``sequence``
counts the commits, so that one whose answer was lost is not repeated, and so that a server that
came back with less than it acknowledged is noticed.
"""

from __future__ import annotations

from typing import Final

TAKE: Final = """
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local fence = redis.call('HMGET', KEYS[1], 'holder', 'until_ms', 'epoch', 'sequence', 'schema')
if fence[5] and fence[5] ~= ARGV[3] then
  return {'schema', fence[5]}
end
local left_ms = (tonumber(fence[2]) or 0) - now_ms
if fence[1] and fence[1] ~= ARGV[1] and left_ms > 0 then
  return {'held', left_ms, fence[1]}
end
local epoch = (tonumber(fence[3]) or 0) + 1
local sequence = tonumber(fence[4]) or 0
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'epoch', epoch, 'sequence', sequence,
  'schema', ARGV[3], 'until_ms', now_ms + ARGV[2])
return {'taken', epoch, sequence}
"""
"""KEYS: the fence. ARGV: holder, milliseconds, schema.

Returns ``held`` with the milliseconds left and the holder, ``schema`` with the one found, or
``taken`` with the epoch and the sequence."""

COMMIT: Final = """
local fence = redis.call('HMGET', KEYS[1], 'epoch', 'sequence', 'holder')
if fence[1] ~= ARGV[1] then
  return {'fenced', fence[3] or 'nobody'}
end
local sequence = tonumber(fence[2])
local wanted = tonumber(ARGV[3])
if sequence == wanted then
  return {'stored'}
end
if sequence ~= wanted - 1 then
  return {'lost', sequence}
end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'sequence', ARGV[3],
  'until_ms', now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2])
local n = 4
while n <= #ARGV do
  local key = KEYS[tonumber(ARGV[n])]
  if ARGV[n + 1] == '1' then
    redis.call('HSET', key, ARGV[n + 2], ARGV[n + 3])
    n = n + 4
  else
    redis.call('HDEL', key, ARGV[n + 2])
    n = n + 3
  end
end
return {'stored'}
"""
"""KEYS: the fence, then the tables. ARGV: epoch, milliseconds, sequence, then for each row the
table's place in KEYS, 1 and key and value, or 0 and key."""

RENEW: Final = """
local fence = redis.call('HMGET', KEYS[1], 'epoch', 'sequence', 'holder')
if fence[1] ~= ARGV[1] then
  return {'fenced', fence[3] or 'nobody'}
end
if fence[2] ~= ARGV[3] then
  return {'lost', fence[2]}
end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'until_ms', now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2])
return {'stored'}
"""
"""As COMMIT, without rows: ARGV[3] is the sequence that must be there."""

RELEASE: Final = """
if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then
  redis.call('HSET', KEYS[1], 'until_ms', 0)
end
return {'stored'}
"""
"""The opener is done: the next one need not wait. ARGV: epoch."""
