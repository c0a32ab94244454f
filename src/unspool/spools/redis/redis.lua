-- The spool in Redis or Valkey: every change of its state, and every look at it. One call is one
-- batch, and Redis runs one script at a time: so a batch is atomic, in memory and in the AOF.
--
-- NAME is the spool's; all keys begin with the hash tag {NAME}, so they share one slot. KEYS[1] is
-- {NAME}:about, and every other key is made from that prefix (`P`) and what is in the batch.
--
--   {NAME}:about           HASH    unspool = the form of all this, id = of this spool alone,
--                                  seq = the last place given, rings = batches that rang the bell
--   {NAME}:e:<key>         HASH    an entry: c = standing, m = envelope, t = trail; if set aside,
--                                  bad = the standing it had
--   {NAME}:r:<key>         STRING  its request, as core.record packs it, while it is not settled
--   {NAME}:a:<key>         STRING  its answer, likewise
--   {NAME}:all             ZSET    keys by place: in order of acceptance
--   {NAME}:lanes           ZSET    destinations with something to lease, all scores 0: by name
--   {NAME}:w:<destination> ZSET    place+key of what can be leased, by max(due_at, leased_until);
--                                  of an order only the head, and nothing held
--   {NAME}:names           ZSET    destinations where anything waits, all scores 0: by name
--   {NAME}:t:<destination> ZSET    keys of all that waits, by accepted_at
--   {NAME}:h:<destination> ZSET    keys of what is held, by accepted_at
--   {NAME}:o:<line>        ZSET    keys that wait under one order key, by place; a line is the
--                                  length of the destination in 4 bytes, the destination, the order
--   {NAME}:lines           SET     lines that exist
--   {NAME}:x               ZSET    place+key of what waits and is not held, by expires_at
--   {NAME}:k               ZSET    keys of claims and of what has settled, by when they may go
--   {NAME}:u               ZSET    keys with an answer, by answer_until
--   {NAME}:aside           ZSET    keys of what was set aside, all scores 0
--   {NAME}:touched         STRING  written to see whether the server syncs, for a minute; not here
--   {NAME}:bell            CHANNEL one message a batch that may concern who waits for arrivals
--
-- A place is 6 bytes, big-endian, so that equal scores are in order of acceptance. An instant is a
-- double: milliseconds up to NEVER = 2^53 - 1. Standing, envelope and trail end in the first eight
-- hex digits of the SHA-1 of the rest, for Lua in Redis has no other digest; whoever reads one here
-- checks it first, and sets aside what is not as it was written (12).
--
-- ARGV: verb, id of the spool, one string of packed arguments, one string for each item. The answer
-- is one string of packed rows: what is many values in Redis' protocol is slow to read in Python.
local P = string.sub(KEYS[1], 1, -6)
local NEVER = 9007199254740991
local WAITING, CLAIMED, ASIDE = 0, 1, 9
local STANDING, ENVELOPE = '>BBBI4ddddd', '>BddBI4c0I4c0I4c0I4c0I4c0'
local ROWS_MAX_BYTES = 8388608

local call, sha, pack, unpack = redis.call, redis.sha1hex, struct.pack, struct.unpack
local sub, join = string.sub, table.concat
local function num(n) return string.format('%.0f', n) end

local touched, rang, given = {}, false, 0

-- reading -----------------------------------------------------------------------------------------

local function sealed(s) return s .. sub(sha(s), 1, 8) end

local function opened(s)
  if not s or #s < 9 then return nil end
  local body = sub(s, 1, -9)
  return sub(sha(body), 1, 8) == sub(s, -8) and body or nil
end

-- nil: unknown. Else an entry; with e.spoilt it is not as it was written, or is set aside already.
local function read(key)
  local got = call('HMGET', P .. 'e:' .. key, 'c', 'm', 't')
  if not got[1] and not got[2] then return nil end
  local e = {key = key, c = opened(got[1]), m = opened(got[2]), t = ''}
  if got[3] then e.t = opened(got[3]) end
  if not (e.c and e.m and e.t) then e.spoilt = true return e end
  e.state, e.seized, e.answered, e.attempt, e.due, e.leased, e.keep, e.till, e.seq =
    unpack(STANDING, e.c)
  local _
  _, e.accepted, e.expires, e.rep, e.dest, e.order, e.name, e.print, e.nonce =
    unpack(ENVELOPE, e.m)
  e.spoilt = e.state == ASIDE
  return e
end

-- 'r': with its request; 'a': with its answer. Once there is much in the answer of this call, they
-- are left out, and asked for one by one.
local function row(e, flag, with)
  local a, r = '', ''
  if given < ROWS_MAX_BYTES then
    if with == 'a' and e.answered == 1 then a = call('GET', P .. 'a:' .. e.key) or '' end
    if with == 'r' and e.state <= CLAIMED then r = call('GET', P .. 'r:' .. e.key) or '' end
    given = given + #a + #r
  end
  return pack('>BI4c0I4c0I4c0I4c0I4', flag, #e.key, e.key, #e.c, e.c, #e.m, e.m, #e.t, e.t, #r)
    .. r .. pack('>I4', #a) .. a  -- for what is large, pack goes letter by letter
end

-- writing -----------------------------------------------------------------------------------------

local function standing(e)
  e.c = pack(STANDING, e.state, e.seized, e.answered, e.attempt, e.due, e.leased, e.keep, e.till,
    e.seq)
  return sealed(e.c)
end

local function member(e) return pack('>I6', e.seq) .. e.key end
local function ready(e) return num(math.max(e.due, e.leased)) end
local function line_of(e) return pack('>I4', #e.dest) .. e.dest .. e.order end

local function offer(e)  -- it can be leased, once it is due
  if e.due ~= NEVER then call('ZADD', P .. 'w:' .. e.dest, ready(e), member(e)) end
end

local function head_of(line)
  while true do
    local key = call('ZRANGE', P .. 'o:' .. line, 0, 0)[1]
    if not key then return nil end
    local e = read(key)
    if e and not e.spoilt and e.state == WAITING then return e end
    call('ZREM', P .. 'o:' .. line, key)  -- it says nothing of itself; the others go on (12)
  end
end

local function join_line(e)
  local line = line_of(e)
  local old = head_of(line)
  call('ZADD', P .. 'o:' .. line, e.seq, e.key)
  call('SADD', P .. 'lines', line)
  if old and old.seq < e.seq then return end
  if old then call('ZREM', P .. 'w:' .. e.dest, member(old)) end
  offer(e)
end

local function leave_line(line, key, dest, place)
  local head = call('ZRANGE', P .. 'o:' .. line, 0, 0)[1]
  if call('ZREM', P .. 'o:' .. line, key) == 0 then return end
  if place then call('ZREM', P .. 'w:' .. dest, place .. key) end
  if head == key then
    local e = head_of(line)
    if e then offer(e) touched[e.dest] = true end
  end
  if call('EXISTS', P .. 'o:' .. line) == 0 then call('SREM', P .. 'lines', line) end
end

local function enter(e)  -- whatever finds it
  if e.state == WAITING then
    touched[e.dest] = true
    call('ZADD', P .. 't:' .. e.dest, num(e.accepted), e.key)
    if e.due == NEVER then
      call('ZADD', P .. 'h:' .. e.dest, num(e.accepted), e.key)
    else
      call('ZADD', P .. 'x', num(e.expires), member(e))
    end
    if e.order == '' then offer(e) else join_line(e) end
  else
    local till = e.state == CLAIMED and math.max(e.keep, e.leased) or e.keep
    call('ZADD', P .. 'k', num(till), e.key)
    if e.answered == 1 then call('ZADD', P .. 'u', num(e.till), e.key) end
  end
end

local function leave(e)
  if e.state == WAITING then
    touched[e.dest] = true
    call('ZREM', P .. 't:' .. e.dest, e.key)
    if e.due == NEVER then
      call('ZREM', P .. 'h:' .. e.dest, e.key)
    else
      call('ZREM', P .. 'x', member(e))
    end
    if e.order ~= '' then
      leave_line(line_of(e), e.key, e.dest, pack('>I6', e.seq))
    elseif e.due ~= NEVER then
      call('ZREM', P .. 'w:' .. e.dest, member(e))
    end
  else
    call('ZREM', P .. 'k', e.key)
    if e.answered == 1 then call('ZREM', P .. 'u', e.key) end
  end
end

local function forget(e)
  leave(e)
  call('ZREM', P .. 'all', e.key)
  call('DEL', P .. 'e:' .. e.key, P .. 'r:' .. e.key, P .. 'a:' .. e.key)
end

-- Out of everybody's way, with all its bytes (12). What it says of itself is not believed: it is
-- looked for everywhere. That is slow, and rare.
local function aside(e)
  local key = e.key
  if call('ZSCORE', P .. 'aside', key) then return 0 end
  local seq = call('ZSCORE', P .. 'all', key)
  local place = seq and pack('>I6', tonumber(seq)) or ''
  for _, dest in ipairs(call('ZRANGE', P .. 'names', 0, -1)) do
    call('ZREM', P .. 't:' .. dest, key)
    call('ZREM', P .. 'h:' .. dest, key)
    call('ZREM', P .. 'w:' .. dest, place .. key)
    touched[dest] = true
  end
  for _, line in ipairs(call('SMEMBERS', P .. 'lines')) do leave_line(line, key) end
  call('ZREM', P .. 'x', place .. key)
  for _, index in ipairs({'all', 'k', 'u'}) do call('ZREM', P .. index, key) end
  local was = call('HGET', P .. 'e:' .. key, 'c') or ''
  call('HSET', P .. 'e:' .. key, 'bad', was, 'c',
    sealed(pack(STANDING, ASIDE, 0, 0, 0, 0, 0, 0, 0, 0)))
  call('ZADD', P .. 'aside', 0, key)
  return 1
end

-- What is said of destinations, once for a batch.
local function close()
  for dest in pairs(touched) do
    for index, names in pairs({w = 'lanes', t = 'names'}) do
      if call('EXISTS', P .. index .. ':' .. dest) == 1 then
        call('ZADD', P .. names, 0, dest)
      else
        call('ZREM', P .. names, dest)
      end
    end
  end
  if rang then
    call('HINCRBY', P .. 'about', 'rings', 1)
    call('PUBLISH', P .. 'bell', '')
  end
end

local function corrupt(entries)
  local went = 0
  for _, e in ipairs(entries) do went = went + aside(e) end
  close()
  return 'C' .. pack('>I4', #entries, went)
end

-- verbs -------------------------------------------------------------------------------------------

local V, args, items = {}, ARGV[3] or '', #ARGV - 3

-- item: form (as the standing has it), attempt, due, leased, keep, till; key, m, t, r, a
function V.accept()
  local known, spoilt, entries = {}, {}, {}
  for i = 1, items do
    local e, _ = {seized = 0}
    e.state, e.attempt, e.due, e.leased, e.keep, e.till, e.key, e.m, e.t, e.r, e.a =
      unpack('>BI4ddddI4c0I4c0I4c0I4c0I4c0', ARGV[3 + i])
    _, e.accepted, e.expires, e.rep, e.dest, e.order, e.name, e.print, e.nonce =
      unpack(ENVELOPE, e.m)
    e.answered = e.a ~= '' and 1 or 0
    entries[i] = e
    if known[e.key] == nil then
      known[e.key] = read(e.key) or false
      if known[e.key] and known[e.key].spoilt then spoilt[#spoilt + 1] = known[e.key] end
    end
  end
  if #spoilt > 0 then return corrupt(spoilt) end  -- nothing of the batch is done (12)
  -- The first write is one that Redis refuses when it is out of memory: then nothing is done (Full).
  local seq = call('HINCRBY', P .. 'about', 'seq', items) - items
  local answers = {'A'}
  for i = 1, items do
    local e, old = entries[i], known[entries[i].key]
    if old and old.print ~= e.print then
      answers[#answers + 1] = 'M' .. row(old, 0, 'a')
    elseif old and (old.state ~= CLAIMED or old.leased > e.accepted) then
      answers[#answers + 1] = 'D' .. row(old, 0, 'a')
    else
      if old then  -- taken over (3)
        e.attempt = old.attempt + 1
        forget(old)
      end
      e.seq = seq + i
      call('HSET', P .. 'e:' .. e.key, 'c', standing(e), 'm', sealed(e.m))
      if e.t ~= '' then call('HSET', P .. 'e:' .. e.key, 't', sealed(e.t)) end
      if e.r ~= '' then call('SET', P .. 'r:' .. e.key, e.r) end
      if e.a ~= '' then call('SET', P .. 'a:' .. e.key, e.a) end
      call('ZADD', P .. 'all', e.seq, e.key)
      enter(e)
      known[e.key] = e
      rang = rang or e.state == WAITING
      answers[#answers + 1] = 'N' .. pack('>I4', e.attempt)
    end
  end
  close()
  return join(answers)
end

local function take(e, till, seize, with)
  local harmless = e.leased == 0 or e.seized == 1
  e.seized = seize and harmless and 1 or 0
  e.attempt, e.leased = e.attempt + 1, till
  call('HSET', P .. 'e:' .. e.key, 'c', standing(e))
  call('ZADD', P .. 'w:' .. e.dest, 'XX', ready(e), member(e))
  return row(e, harmless and 0 or 1, with)
end

-- An index that says what the entry does not say is not believed (I3).
local function stale(e, found)
  return not e or (not e.spoilt and (e.state ~= WAITING or member(e) ~= found))
end

-- item: how many, destination
function V.lease()
  local now, till = unpack('>dd', args)
  local rows = {}
  for i = 1, items do
    local limit, dest = unpack('>I4I4c0', ARGV[3 + i])
    local due = call('ZRANGEBYSCORE', P .. 'w:' .. dest, '-inf', num(now), 'LIMIT', 0, limit)
    for _, found in ipairs(due) do
      if given >= ROWS_MAX_BYTES then break end
      local e = read(sub(found, 7))
      if stale(e, found) then
        call('ZREM', P .. 'w:' .. dest, found)
        touched[dest] = true
      elseif e.spoilt then
        aside(e)
        call('ZREM', P .. 'w:' .. dest, found)  -- its place may be spoilt, too
      else
        rows[#rows + 1] = take(e, till, false, 'r')
      end
    end
  end
  close()
  return join(rows)
end

-- item: key
function V.seize()
  local now, till = unpack('>dd', args)
  local rows = {}
  for i = 1, items do
    local e = read(ARGV[3 + i])
    if e and e.spoilt then aside(e) end
    if e and not e.spoilt and e.state == WAITING and e.leased <= now then
      rows[#rows + 1] = 'L' .. take(e, till, true, 'r')
    else
      rows[#rows + 1] = '-'
    end
  end
  close()
  return join(rows)
end

function V.expire()
  local now, till, limit = unpack('>ddI4', args)
  local rows, at = {}, 0
  while #rows < limit do
    local found = call('ZRANGEBYSCORE', P .. 'x', '-inf', num(now), 'LIMIT', at, limit)
    if #found == 0 then break end
    for _, one in ipairs(found) do
      local e = read(sub(one, 7))
      if stale(e, one) then
        call('ZREM', P .. 'x', one)
        at = at - 1
      elseif e.spoilt then
        aside(e)
        call('ZREM', P .. 'x', one)  -- its place may be spoilt, too
        at = at - 1
      elseif e.leased <= now and #rows < limit then
        rows[#rows + 1] = take(e, till, true)
      end
    end
    at = at + #found
  end
  close()
  return join(rows)
end

-- item: attempt, due, keep, till, what becomes of each state (a digit, - or x); key, nonce, t, a
function V.settle()
  local answers = {}
  for i = 1, items do
    local attempt, due, keep, till, life, key, nonce, t, a =
      unpack('>I4dddc4I4c0I4c0I4c0I4c0', ARGV[3 + i])
    local e = read(key)
    if e and e.spoilt then aside(e) e = nil end
    local good = e and e.attempt == attempt and e.nonce == nonce
    local after = good and sub(life, e.state + 1, e.state + 1) or '-'
    answers[i] = after == '-' and '0' or '1'  -- I3
    if after == 'x' then
      forget(e)
    elseif after ~= '-' then
      leave(e)
      e.state, e.leased, e.seized, e.keep, e.t = tonumber(after), 0, 0, keep, t
      if e.state == WAITING then
        e.due = due
      else
        call('DEL', P .. 'r:' .. key)
      end
      if a ~= '' then
        e.answered, e.till = 1, till
        call('SET', P .. 'a:' .. key, a)
      end
      call('HSET', P .. 'e:' .. key, 'c', standing(e), 't', sealed(t))
      enter(e)
    end
    rang = rang or after ~= '-'
  end
  close()
  return join(answers)
end

-- item: attempt, key, nonce
function V.renew()
  local till = unpack('>d', args)
  local answers = {}
  for i = 1, items do
    local attempt, key, nonce = unpack('>I4I4c0I4c0', ARGV[3 + i])
    local e = read(key)
    local good = e and not e.spoilt and e.attempt == attempt and e.nonce == nonce and e.leased ~= 0
    answers[i] = good and '1' or '0'
    if good then
      e.leased = till
      call('HSET', P .. 'e:' .. key, 'c', standing(e))
      if e.state == WAITING then
        call('ZADD', P .. 'w:' .. e.dest, 'XX', ready(e), member(e))
      else
        call('ZADD', P .. 'k', num(math.max(e.keep, e.leased)), key)
      end
    end
  end
  return join(answers)
end

function V.sweep()
  local now, limit = unpack('>dI4', args)
  local went = 0
  for _, key in ipairs(call('ZRANGEBYSCORE', P .. 'k', '-inf', num(now), 'LIMIT', 0, limit)) do
    local e = read(key)
    if e and not e.spoilt then forget(e) went = went + 1
    elseif e then aside(e)
    else call('ZREM', P .. 'k', key) end
  end
  local left = limit - went
  for _, key in ipairs(call('ZRANGEBYSCORE', P .. 'u', '-inf', num(now), 'LIMIT', 0, left)) do
    local e = read(key)
    call('ZREM', P .. 'u', key)
    if e and e.spoilt then aside(e) end
    if e and not e.spoilt then
      call('DEL', P .. 'a:' .. key)
      e.answered = 0
      call('HSET', P .. 'e:' .. key, 'c', standing(e))
      went = went + 1
    end
  end
  close()
  return num(went)
end

-- item: key, standing. Its request or answer could not be read by who saw it so (12).
function V.aside()
  local went = 0
  for i = 1, items do
    local key, seen = unpack('>I4c0I4c0', ARGV[3 + i])
    local e = read(key)
    if e and (e.spoilt or e.c == seen) then went = went + aside(e) end
  end
  close()
  return num(went)
end

-- item: key (17)
function V.discard()
  local answers = {}
  for i = 1, items do
    local key = ARGV[3 + i]
    answers[i] = num(call('ZREM', P .. 'aside', key))
    if answers[i] == '1' then
      call('DEL', P .. 'e:' .. key, P .. 'r:' .. key, P .. 'a:' .. key)
    end
  end
  return join(answers)
end

-- Something that has to be synced, and changes nothing.
function V.touch()
  call('SET', P .. 'touched', '', 'PX', 60000)
  return ''
end

-- looking -----------------------------------------------------------------------------------------

-- item: key
function V.find()
  local rows, spoilt = {'A'}, {}
  for i = 1, items do
    local e = read(ARGV[3 + i])
    if e and e.spoilt then spoilt[#spoilt + 1] = e end
    if e and not e.spoilt then
      rows[#rows + 1] = 'E' .. row(e, 0, 'a')
    else
      rows[#rows + 1] = '-'
    end
  end
  if #spoilt > 0 then return corrupt(spoilt) end
  return join(rows)
end

-- item: key. Its request, where that was left out.
function V.part() return call('GET', P .. 'r:' .. ARGV[4]) or '' end

-- limit, after ('' or [name)
function V.survey()
  local limit, after = unpack('>I4I4c0', args)
  local rows = {}
  local names = call('ZRANGEBYLEX', P .. 'lanes', after == '' and '-' or '(' .. sub(after, 2), '+',
    'LIMIT', 0, limit)
  for _, dest in ipairs(names) do
    local due = call('ZRANGE', P .. 'w:' .. dest, 0, 0, 'WITHSCORES')[2]
    if due then rows[#rows + 1] = pack('>dI4c0', tonumber(due), #dest, dest) end
  end
  return join(rows)
end

local function wanted(e, state, held, dest, name)
  local is_held = e.state == WAITING and e.due == NEVER
  return (state == 255 or e.state == state) and (held == 2 or is_held == (held == 1))
    and (dest == '' or '[' .. e.dest == dest) and (name == '' or '[' .. e.name == name)
end

-- From a place on, so many entries looked at and at most so many given; where it stopped, and
-- whether there is more behind it.
function V.browse()
  local after, looks, limit, requests, state, held, dest, name =
    unpack('>dI4I4BBBI4c0I4c0', args)
  local found = items > 0 and {ARGV[4]}
    or call('ZRANGEBYSCORE', P .. 'all', '(' .. num(after), '+inf', 'LIMIT', 0, looks)
  local rows, more = {}, #found == looks and items == 0
  for i, key in ipairs(found) do
    local place = tonumber(call('ZSCORE', P .. 'all', key) or 0)
    local e = place > after and read(key)
    if e and e.spoilt then
      aside(e)
    elseif e and wanted(e, state, held, dest, name) then
      rows[#rows + 1] = row(e, 0, requests == 1 and 'r' or '')
    end
    if place > 0 then after = math.max(after, place) end
    if (#rows == limit or given >= ROWS_MAX_BYTES) and i < #found then more = true break end
  end
  close()
  return pack('>dB', after, more and 1 or 0) .. join(rows)
end

-- item: key. Its place; 0: unknown.
function V.place()
  return pack('>d', tonumber(call('ZSCORE', P .. 'all', ARGV[4]) or 0))
end

-- limit, after ('' or [name), how many edges; item: an edge
function V.tally()
  local limit, after = unpack('>I4I4c0', args)
  local rows = {}
  local names = call('ZRANGEBYLEX', P .. 'names', after == '' and '-' or '(' .. sub(after, 2), '+',
    'LIMIT', 0, limit)
  for _, dest in ipairs(names) do
    local all, held = P .. 't:' .. dest, P .. 'h:' .. dest
    local oldest = call('ZRANGE', all, 0, 0, 'WITHSCORES')[2]
    local got = {pack('>I4c0dd', #dest, dest, call('ZCARD', held), tonumber(oldest or 0))}
    local above = '+inf'
    for i = 1, items + 1 do
      local from = i <= items and ARGV[3 + i] or '-inf'
      got[#got + 1] = pack('>d', call('ZCOUNT', all, from, above) - call('ZCOUNT', held, from, above))
      above = '(' .. from
    end
    rows[#rows + 1] = join(got)
  end
  return join(rows)
end

-- limit, after ('' or [key): what was set aside, and the envelope where that can be read (17)
function V.damaged()
  local limit, after = unpack('>I4I4c0', args)
  local rows = {}
  local keys = call('ZRANGEBYLEX', P .. 'aside', after == '' and '-' or '(' .. sub(after, 2), '+',
    'LIMIT', 0, limit)
  for _, key in ipairs(keys) do
    local size = call('STRLEN', P .. 'r:' .. key) + call('STRLEN', P .. 'a:' .. key)
    for _, field in ipairs({'m', 't', 'bad'}) do
      size = size + call('HSTRLEN', P .. 'e:' .. key, field)
    end
    local m = opened(call('HGET', P .. 'e:' .. key, 'm')) or ''
    rows[#rows + 1] = pack('>I4c0dI4c0', #key, key, size, #m, m)
  end
  return join(rows)
end

-- How often the bell was rung, and how many are set aside.
function V.rings()
  return pack('>dI4', tonumber(call('HGET', P .. 'about', 'rings')), call('ZCARD', P .. 'aside'))
end

-- form, id for a new spool ('': make none): N, there is none; F, it is another program's; V, another
-- form; O, its id and numbers
function V.open()
  local form, id = unpack('>I4c0I4c0', args)
  local kind = call('TYPE', KEYS[1]).ok
  if kind == 'none' then
    for _, index in ipairs({'all', 'lanes', 'names', 'x', 'k', 'u', 'aside', 'lines'}) do
      if call('EXISTS', P .. index) == 1 then return 'F' .. P .. index end
    end
    if id == '' then return 'N' end
    call('HSET', KEYS[1], 'unspool', form, 'id', id, 'seq', 0, 'rings', 0)
  elseif kind ~= 'hash' then
    return 'F' .. KEYS[1]
  end
  call('PUBLISH', P .. 'bell', '')  -- may we? Else it would be refused after a batch was written
  local got = call('HMGET', KEYS[1], 'unspool', 'id', 'rings')
  if not got[1] or not got[2] then return 'F' .. KEYS[1] end
  if got[1] ~= form then return 'V' .. got[1] end
  return 'O' .. pack('>I4c0dd', #got[2], got[2], tonumber(got[3]), call('ZCARD', P .. 'aside'))
end

local verb, CHANGES = ARGV[1], {lease = 1, seize = 1, expire = 1, settle = 1, renew = 1, sweep = 1,
  aside = 1, discard = 1, touch = 1}
if verb ~= 'open' and verb ~= 'touch' and call('HGET', KEYS[1], 'id') ~= ARGV[2] then
  return redis.error_reply('GONE ' .. KEYS[1] .. ' is not the one that was opened')
end
-- What ends things may not be refused for want of memory, or there would never be more of it: once
-- a script has written, Redis lets it finish, and a DEL is never refused.
if CHANGES[verb] then call('DEL', P .. 'nothing') end
return V[verb]()
