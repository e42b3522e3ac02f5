"""The scripts that change control sets, each atomic in Redis (consistency.md 4.2)."""

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Script:
    """A script and the digest it is called by."""

    name: str
    text: str
    sha: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self,
            "sha",
            hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest().encode(),
        )


# KEYS registry, set; ARGV realm, a fresh nonce. -1: this life is over; -2: the set was lost in it.
_ENSURE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local nonce = redis.call('HGET', KEYS[1], ARGV[1])
if nonce then
  if not redis.call('ZSCORE', KEYS[2], 'n:' .. nonce) then return -2 end
else
  nonce = ARGV[2]
  redis.call('HSET', KEYS[1], ARGV[1], nonce)
  redis.call('DEL', KEYS[2])
  redis.call('ZADD', KEYS[2], '+inf', 'n:' .. nonce, 0, 's')
end
"""

OPEN = Script(
    "open",
    _ENSURE
    + """
return {nonce, redis.call('ZSCORE', KEYS[2], 's'), redis.call('ZSCORE', KEYS[2], 'E') or '0'}
""",
)

# ARGV realm, a fresh nonce, mark, tag...
MARK = Script(
    "mark",
    _ENSURE
    + """
for i = 4, #ARGV do
  redis.call('ZADD', KEYS[2], '+inf', 'p:' .. ARGV[3] .. ':' .. ARGV[i])
end
return 1
""",
)

# KEYS set; ARGV most members, mark, tag... Returns the sequence; 0: the mark was not there.
BUMP = Script(
    "bump",
    """
local pending, done = {}, {}
for i = 3, #ARGV do pending[#pending + 1] = 'p:' .. ARGV[2] .. ':' .. ARGV[i] end
if redis.call('ZREM', KEYS[1], unpack(pending)) ~= #pending then return 0 end
local sequence = redis.call('ZINCRBY', KEYS[1], 1, 's')
for i = 3, #ARGV do
  done[#done + 1] = sequence
  done[#done + 1] = ARGV[i]
end
redis.call('ZADD', KEYS[1], unpack(done))
local most = tonumber(ARGV[1])
if redis.call('ZCARD', KEYS[1]) > most then
  local middle = math.floor(most / 2)
  local cut = redis.call('ZRANGE', KEYS[1], middle, middle, 'WITHSCORES')[2]
  if cut ~= 'inf' then
    local definitions = redis.call('ZSCORE', KEYS[1], 'E')
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. cut)
    redis.call('ZADD', KEYS[1], cut, 'f')
    if definitions then redis.call('ZADD', KEYS[1], definitions, 'E') end
  end
end
return tonumber(sequence)
""",
)

# KEYS set, entry...; ARGV last, most changes, nonce. Returns the changes, then each entry or nil.
READ = Script(
    "read",
    """
local out = {redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', '(' .. ARGV[1],
  'WITHSCORES', 'LIMIT', 0, ARGV[2])}
local floor = tonumber(redis.call('ZSCORE', KEYS[1], 'f') or '0')
for i = 2, #KEYS do
  local blob = redis.call('GET', KEYS[i])
  if blob then
    local line = string.match(blob, '^[^\\n]*')
    local is_read, head = pcall(cjson.decode, line)
    local since, nonce, tags
    if is_read and type(head) == 'table' then since, nonce, tags = head[1], head[2], head[3] end
    if type(since) ~= 'number' or type(tags) ~= 'table' or #tags == 0 then
      -- Not an entry: whoever asked finds that out and counts it.
    elseif nonce ~= ARGV[3] or since < floor then
      blob = false
    else
      for _, score in ipairs(redis.call('ZMSCORE', KEYS[1], unpack(tags))) do
        if score and tonumber(score) > since then
          blob = false
          break
        end
      end
    end
  end
  out[i] = blob
end
return out
""",
)
