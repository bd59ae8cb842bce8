"""Atomic operations in Redis, as Lua scripts.

Each first compares tokens: a run that was paused until its lock expired changes nothing. redis-py repeats a command
whose reply was lost, so each script is idempotent.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "ACQUIRE",
    "ADOPT",
    "CONFIRM",
    "DELETE_AS_HOLDER",
    "DELETE_UNUSABLE",
    "DISPATCH",
    "DROP",
    "END_DISPATCH",
    "END_DRAIN",
    "ENQUEUE",
    "EXTEND",
    "FLIP",
    "HEARTBEAT",
    "NAME_OUTPUT",
    "READ_QUEUE",
    "REPLACE_MANIFEST",
    "REVOKE",
    "STAGE_UPDATES",
]

# KEYS: keys of the schema. ARGV: for each key, its type, and '1' if it expires.
# Deletes a key of the wrong type, a key without an expiry that should have one, and a stream whose newest id has 20
# digits, so that hardly anything can be added. Returns the problems found.
DELETE_UNUSABLE: Final = """
local problems = {}
for i, key in ipairs(KEYS) do
    local expected, expires = ARGV[2 * i - 1], ARGV[2 * i] == '1'
    local actual = redis.call('TYPE', key).ok
    local problem = nil
    if actual ~= 'none' and actual ~= expected then
        problem = 'is of the type ' .. actual .. ', not ' .. expected
    elseif expires and redis.call('PTTL', key) == -1 then
        problem = 'never expires'
    elseif actual == 'stream' then
        local newest = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
        if newest and newest[1]:find('-', 1, true) > 20 then problem = 'has the id ' .. newest[1] end
    end
    if not expires then redis.call('PERSIST', key) end
    if problem then
        redis.call('DEL', key)
        problems[#problems + 1] = key .. ' ' .. problem
    end
end
return problems
"""

# KEYS: lock, handed. ARGV: token, milliseconds for the lock, milliseconds for `handed`.
# Never shortens the expiry: several scans of one run extend its lock, each for as long as it needs. A lock that has
# expired and is free is taken again if the run is still the one that was dispatched.
EXTEND: Final = """
local is_dispatched = redis.call('HGET', KEYS[2], 'token') == ARGV[1]
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] then
    if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
elseif not held and is_dispatched then
    redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
else
    return 0
end
if is_dispatched then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
return 1
"""

# KEYS: processes. ARGV: name, what the process is, milliseconds for which it is remembered.
# The time is Redis' own, which the readers use too. Entries older than that are removed, and entries from equally far
# in the future, which nothing else would remove.
HEARTBEAT: Final = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
    local told_ms = tonumber(entries[i + 1]:match('^%d+ '))
    local is_known = told_ms and math.abs(now_ms - told_ms) <= tonumber(ARGV[3])
    if not is_known then redis.call('HDEL', KEYS[1], entries[i]) end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', now_ms) .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""

# KEYS: lock, revoked. ARGV: token, milliseconds for the lock.
ACQUIRE: Final = """
if redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0 -- 1: repeated after a lost reply
"""

# KEYS: lock, handed. ARGV: token of the run that was dispatched, a new one, milliseconds for the lock.
# The new token makes a redelivered message harmless: only one of the two deliveries can end the run.
ADOPT: Final = """
local held = redis.call('GET', KEYS[1])
if held == ARGV[2] then return 1 end -- repeated after a lost reply
if redis.call('HGET', KEYS[2], 'token') ~= ARGV[1] or (held and held ~= ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""

# KEYS: lock, handed. ARGV: token, assignment, milliseconds for `handed`.
# A run that was revoked, or whose lock has expired, no longer dispatches anything.
DISPATCH: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'token', ARGV[1], 'assignment', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""

# KEYS: lock, handed, revoked. ARGV: the prefix of the tokens of a run, milliseconds for `revoked`.
# Without its lock a run can publish nothing, wherever it is; without its assignment no worker can continue it; and one
# that has not begun yet does not get the lock.
REVOKE: Final = """
local function is_its(token) return token and string.sub(token, 1, #ARGV[1]) == ARGV[1] end
if is_its(redis.call('GET', KEYS[1])) then redis.call('DEL', KEYS[1]) end
if is_its(redis.call('HGET', KEYS[2], 'token')) then redis.call('DEL', KEYS[2]) end
redis.call('SET', KEYS[3], '1', 'PX', ARGV[2])
"""

# KEYS: handed. ARGV: token.
END_DISPATCH: Final = """
if redis.call('HGET', KEYS[1], 'token') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

# KEYS: lock, the key to delete, which may be the lock itself. ARGV: token.
DELETE_AS_HOLDER: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[2]) end
return 0
"""

# KEYS: output. ARGV: an id, an id that it may replace, its expiry in milliseconds. Returns the id that is then stored.
# A value that is not an id (32 hexadecimal digits) is damage, and replaced.
NAME_OUTPUT: Final = """
local named = redis.call('GET', KEYS[1])
local is_id = named and #named == 32 and not named:find('[^0-9a-f]')
if is_id and named ~= ARGV[1] and named ~= ARGV[2] then return named end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
"""

# KEYS: current, flipped. ARGV: version, time.
# HSET alone would make a pointer of one field if the pointer was lost.
CONFIRM: Final = """
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return end
redis.call('HSET', KEYS[1], 'checked_at', ARGV[2])
if redis.call('HGET', KEYS[2], 'version') ~= ARGV[1] then
    redis.call('DEL', KEYS[2])
    redis.call('HSET', KEYS[2], 'version', ARGV[1])
end
"""

# KEYS: lock, current. ARGV: token, version, manifest.
# A pointer to another version stays as it is: the next run publishes from the files.
REPLACE_MANIFEST: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if redis.call('HGET', KEYS[2], 'version') == ARGV[2] then redis.call('HSET', KEYS[2], 'manifest', ARGV[3]) end
return 1
"""

# KEYS: queue, queued, updates, draining, accepted. ARGV: the entry as JSON, without its first brace; its number of
# records and removals; how many may wait; how many symbols may be held; milliseconds for `draining`, for `accepted`;
# the time if TIME is forbidden; then the entry's symbols.
# Returns 'ok', the entry's number, and 1 if nothing drains the queue; or 'queue' or 'held', and how many there are.
# A queue that has lost its counters continues from the number of its newest entry. The time is rounded up, so that an
# update has precedence over a file that was written before it in the same millisecond.
ENQUEUE: Final = """
local accepted = redis.call('GET', KEYS[5])
if accepted then return {'ok', tonumber(accepted), 1} end -- repeated after a lost reply
local queued = redis.call('HMGET', KEYS[2], 'sequence', 'records')
local newest = redis.call('LINDEX', KEYS[1], -1)
local sequence = math.max(tonumber(queued[1]) or 0, newest and tonumber(newest:match('^{"sequence":(%d+),')) or 0) + 1
local waiting = newest and tonumber(queued[2]) or 0
if waiting + tonumber(ARGV[2]) > tonumber(ARGV[3]) then return {'queue', waiting} end
local held = redis.call('HLEN', KEYS[3])
local fresh = 0
if held + #ARGV - 7 > tonumber(ARGV[4]) then
    for i = 8, #ARGV do fresh = fresh + 1 - redis.call('HEXISTS', KEYS[3], ARGV[i]) end
    if held + fresh > tonumber(ARGV[4]) then return {'held', held} end
end
local time = redis.pcall('TIME')
local at_ms = time.err and ARGV[7] or string.format('%.0f', time[1] * 1000 + math.ceil(time[2] / 1000))
local number = string.format('%.0f', sequence)
redis.call('RPUSH', KEYS[1], '{"sequence":' .. number .. ',"at_ms":' .. at_ms .. ',' .. ARGV[1])
redis.call('HSET', KEYS[2], 'sequence', number, 'records', string.format('%.0f', waiting + ARGV[2]))
redis.call('SET', KEYS[5], number, 'PX', ARGV[6])
return {'ok', sequence, redis.call('SET', KEYS[4], '1', 'NX', 'PX', ARGV[5]) and 1 or 0}
"""

# KEYS: draining, current, queued, queue. ARGV: milliseconds for `draining`, '' to delete it.
# Returns the fields and values of `current` and of `queued`, the entries, and TIME, empty if it is forbidden.
READ_QUEUE: Final = """
if ARGV[1] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], '1', 'PX', ARGV[1]) end
local time = redis.pcall('TIME')
local current, queued = redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3])
return {current, queued, redis.call('LRANGE', KEYS[4], 0, -1), time.err and {} or time}
"""

# KEYS: symbols and ranking of the version that is changed, staged symbols, ranking, updates and seal.
# ARGV: seconds until what is staged expires, how many records the index may have, how many of the best are named, the
# lowest confidence of these, the seal; then of each update its symbol, itself, and its record and confidence, '' for a
# removal.
# Of records with equal confidence the first symbols are the best; a sorted set, read from the best on, has them last.
# Returns the number of records, and the symbols of the best, best first.
STAGE_UPDATES: Final = """
local symbols, ranking, updates = KEYS[3], KEYS[4], KEYS[5]
redis.call('DEL', symbols, ranking, updates) -- of an attempt that a guard has refused
redis.call('COPY', KEYS[1], symbols)
redis.call('COPY', KEYS[2], ranking)
redis.call('SET', KEYS[6], ARGV[5], 'EX', ARGV[1])
for i = 6, #ARGV, 4 do
    local symbol = ARGV[i]
    redis.call('HSET', updates, symbol, ARGV[i + 1])
    if ARGV[i + 2] == '' then
        redis.call('HDEL', symbols, symbol)
        redis.call('ZREM', ranking, symbol)
    else
        redis.call('HSET', symbols, symbol, ARGV[i + 2])
        redis.call('ZADD', ranking, ARGV[i + 3], symbol)
    end
end
for i = 3, 5 do redis.call('EXPIRE', KEYS[i], ARGV[1]) end
local count = redis.call('ZCARD', ranking)
local excess = count - ARGV[2]
if excess > 0 then
    local function trim(those)
        for _, symbol in ipairs(those) do
            redis.call('ZREM', ranking, symbol)
            redis.call('HDEL', symbols, symbol)
        end
        excess = excess - #those
    end
    local worst = redis.call('ZRANGE', ranking, excess - 1, excess - 1, 'WITHSCORES')[2]
    trim(redis.call('ZRANGEBYSCORE', ranking, '-inf', '(' .. worst))
    trim(redis.call('ZREVRANGEBYSCORE', ranking, worst, worst, 'LIMIT', 0, excess))
    count = tonumber(ARGV[2])
end
local top, lowest = tonumber(ARGV[3]), tonumber(ARGV[4])
local best, equals, score = {}, {}, nil
local window = redis.call('ZREVRANGE', ranking, 0, top - 1, 'WITHSCORES')
for i = 1, #window, 2 do
    if tonumber(window[i + 1]) < lowest then break end
    if window[i + 1] ~= score then
        for j = #equals, 1, -1 do best[#best + 1] = equals[j] end
        equals, score = {}, window[i + 1]
    end
    equals[#equals + 1] = window[i]
end
if score then -- there may be more of these than the window has
    equals = redis.call('ZRANGEBYSCORE', ranking, score, score, 'LIMIT', 0, top - #best)
    for _, symbol in ipairs(equals) do best[#best + 1] = symbol end
end
return {count, best}
"""

# KEYS: queue, draining.
# A call that is accepted after this has to send a drain; a call that was accepted before is in the queue checked here.
END_DRAIN: Final = """
if redis.call('LLEN', KEYS[1]) > 0 then return 0 end
redis.call('DEL', KEYS[2])
return 1
"""

# KEYS: publishing, queue, queued. ARGV: token, the number of the last entry applied, the number of the entry to
# drop, its records, the entries refused (JSON).
DROP: Final = """
local queued = redis.call('HMGET', KEYS[3], 'applied', 'records')
if queued[1] == ARGV[3] then return 1 end -- repeated after a lost reply
if redis.call('GET', KEYS[1]) ~= ARGV[1] or (queued[1] or '0') ~= ARGV[2] then return 0 end
redis.call('LPOP', KEYS[2])
local records = string.format('%.0f', math.max(0, (tonumber(queued[2]) or 0) - ARGV[4]))
redis.call('HSET', KEYS[3], 'applied', ARGV[3], 'records', records, 'refused', ARGV[5])
return 1
"""

# KEYS: lock, current, published, deltas, flipped, queue, queued, seal, then the staged keys, their final names, and old
#       versions' keys. The lock is the run's, or `publishing`; the last staged key is of the updates in force.
# ARGV: token, version, version the run started from ('' for none), seconds for old versions, number of staged keys,
#       changes kept, their bytes at the most, change ('' for none), the number of updates that are staged, of the last
#       entry applied before, and the entries taken now: how many, how many records, the number of the last one, the
#       pace; how many are put back without the records that a scan has answered; the seal; then the type of each staged
#       key, then the pointer's fields and values, then what is put back.
# The seal is the last staged value. A replica that has become the master, or a server that was restarted, has a prefix
# of the writes: if it has the seal, it has all staged values; otherwise it may have half an index.
# The script that shows updates also removes them from the queue, so each is applied once, whatever process dies when.
# A run stages all updates in force, a drain only those that it adds: copying 20,000 would take 5 ms.
# In each entry of the stream of changes, `end` is the total size of all changes up to it, so that the size of the
# entries in the stream is a difference of two. The newest entry stays, whatever its size.
FLIP: Final = """
local kinds = tonumber(ARGV[5])
local is_staged = true
local types = {}
for i = 1, kinds do types[i] = ARGV[16 + i] end
local left = #ARGV - tonumber(ARGV[15]) -- from there on is what is put back
local is_drain = ARGV[11] ~= '0' and left == #ARGV
if ARGV[9] == '0' then types[kinds] = 'none' end -- a hash without fields does not exist
if redis.call('GET', KEYS[8]) ~= ARGV[16] then is_staged = false end
for i = 1, kinds do
    if redis.call('TYPE', KEYS[8 + i]).ok ~= types[i] then is_staged = false end
end
local flipped = redis.call('HMGET', KEYS[5], 'version', 'token')
-- repeated after a lost reply
if not is_staged and flipped[1] == ARGV[2] and flipped[2] == ARGV[1] then return 'ok' end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'the lock is no longer held by this run' end
local current = redis.call('HGET', KEYS[2], 'version') or '' -- a pointer that was lost is made anew
if current ~= '' and current ~= ARGV[3] then return 'version ' .. current .. ' was published meanwhile' end
if ARGV[11] ~= '0' and (redis.call('HGET', KEYS[7], 'applied') or '0') ~= ARGV[10] then
    return 'its updates were applied meanwhile'
end
if not is_staged then
    for i = 0, kinds do redis.call('DEL', KEYS[8 + i]) end
    return 'what was staged has expired, or was lost when Redis was started again or failed over'
end
redis.call('DEL', KEYS[8])
for i = 9 + 2 * kinds, #KEYS do
    if redis.call('TTL', KEYS[i]) == -1 then redis.call('EXPIRE', KEYS[i], ARGV[4]) end
end
for i = 1, kinds do
    if i == kinds and is_drain then
        local changed = redis.call('HGETALL', KEYS[8 + i])
        for j = 1, #changed, 2 do redis.call('HSET', KEYS[8 + kinds + i], changed[j], changed[j + 1]) end
        redis.call('DEL', KEYS[8 + i])
    elseif types[i] == 'none' then
        redis.call('DEL', KEYS[8 + kinds + i])
    else
        redis.call('RENAME', KEYS[8 + i], KEYS[8 + kinds + i])
        redis.call('PERSIST', KEYS[8 + kinds + i])
    end
end
if ARGV[11] ~= '0' then
    local records = (tonumber(redis.call('HGET', KEYS[7], 'records')) or 0) - ARGV[12]
    redis.call('LTRIM', KEYS[6], ARGV[11], -1)
    for i = #ARGV, left + 1, -1 do redis.call('LPUSH', KEYS[6], ARGV[i]) end
    redis.call('HSET', KEYS[7], 'applied', ARGV[13], 'records', string.format('%.0f', math.max(0, records)))
    redis.call('HSET', KEYS[7], 'tat_ms', ARGV[14])
end
local checked_at = redis.call('HGET', KEYS[2], 'checked_at')
redis.call('DEL', KEYS[2], KEYS[5])
redis.call('HSET', KEYS[2], unpack(ARGV, 17 + kinds, left))
-- Updates say nothing of the input, which a tick may have confirmed meanwhile.
if is_drain and checked_at then
    redis.call('HSET', KEYS[2], 'checked_at', checked_at)
end
redis.call('HSET', KEYS[5], 'version', ARGV[2], 'token', ARGV[1])
if ARGV[8] ~= '' then
    local function field(entry, name)
        for i = 1, entry and #entry[2] or 0, 2 do
            if entry[2][i] == name then return entry[2][i + 1] end
        end
        return nil
    end
    local function end_of(entry) return tonumber(field(entry, 'end')) or 0 end
    local function add()
        local ends = end_of(redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)[1]) + #ARGV[8]
        local id = ARGV[2] .. '-0'
        local fields = {'change', ARGV[8], 'end', string.format('%.0f', ends)}
        local added = redis.pcall('XADD', KEYS[4], 'MAXLEN', ARGV[6], id, unpack(fields))
        if type(added) == 'table' and added.err then return false end
        while true do
            local oldest = redis.call('XRANGE', KEYS[4], '-', '+', 'COUNT', 1)[1]
            local before = end_of(oldest) - #(field(oldest, 'change') or '')
            if oldest[1] == id or ends - before <= tonumber(ARGV[7]) then return true end
            redis.call('XDEL', KEYS[4], oldest[1])
        end
    end
    if not add() then -- its newest id is higher, so nothing can be added
        redis.call('DEL', KEYS[4])
        add()
    end
end
redis.pcall('PUBLISH', KEYS[3], ARGV[2]) -- if the ACL forbids it, readers see the version a second later
return 'ok'
"""
