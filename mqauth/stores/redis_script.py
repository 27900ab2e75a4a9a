"""The Lua script behind both Redis stores: its text, its keys and arguments, and the meaning of its answers.

The script holds the same rules as ``mqauth.replay.rules.judge``, in the place where Redis runs them atomically;
the contract test of stores compares the two. The value of an id is ``h<lease end> <owner length> <owner><place>``
while a claim holds it, and ``d<place>`` once it is done. A place is a digest of 12 bytes, or empty. A single id
is a string key. The ids of a batch are the fields of one hash, by index, and its key lives as long as the id that
lives longest.

Each scope has a mark besides, which claims move ahead once a second. Where a claim finds it gone, or older than
its process knows, the server has lost what was written since: it was emptied, or began with an old file, or a
replica took over that lacked it. Then nothing is claimed. A loss of the last second alone may go unnoticed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.wire import memo, message

SCRIPT: Final = """
-- KEYS: of claims the scope's mark, then one for each token. ARGV: what the caller knows of the mark, '' for
-- nothing, '-' where there is none; the lease clock in ms, or '' for the server's clock. Then for each key of a
-- token: the number of requests, the ms the key lives, and the requests. A request is: verb, index (empty for a
-- single id), lease in ms, length of the owner, owner, place. Returns one string: a letter for each request, and
-- after a space the mark where the caller did not know it. Of a loss: no letter, the mark, and since when.
local time = redis.call('TIME')
local now = tonumber(ARGV[2]) or time[1] * 1000 + math.floor(time[2] / 1000)

-- A mark tells in microseconds when it was made, and when it was moved: a claim does that once a second. One that
-- is gone, or older than the caller knows, is made anew, so that all others notice, too.
local function look(known)
  local made, moved = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%d+)$')
  local known_made, known_moved = string.match(known, '^(%d+) (%d+)$')
  local micros, since = time[1] * 1000000 + time[2]
  if known_made and known_made ~= made then
    since = known_made
  elseif known_made and tonumber(moved) < tonumber(known_moved) then
    since, made = moved, nil
  end
  -- It never goes back, whatever the clock does.
  if not made or math.abs(micros - moved) >= 1000000 then
    made = made or string.format('%.0f', micros)
    moved = string.format('%.0f', math.max(micros, (tonumber(moved) or 0) + 1))
    redis.call('SET', KEYS[1], made .. ' ' .. moved)
  end
  return made .. ' ' .. moved, since
end

local function parse(value)
  if not value then return nil end
  local ends, size, start = string.match(value, '^h(%d+) (%d+) ()')
  local stop = start and start + size or 2
  local entry = {place = string.sub(value, stop), ends = tonumber(ends)}
  if start then entry.owner = string.sub(value, start, stop - 1) end
  local rest = #value + 1 - stop
  if not (start or string.sub(value, 1, 1) == 'd') or (rest ~= 0 and rest ~= 12) then error('damaged') end
  return entry
end

local function judge(entry, verb, owner, place)
  local ours = entry and entry.owner == owner
  if verb == 'renew' then return ours and 'f' or 'l' end
  if not entry or ours then return 'f' end
  if place ~= '' then
    if entry.place ~= place then return 'p' end
    return entry.owner and 'f' or 'r'
  end
  if verb ~= 'redelivered' then return 'p' end
  if not entry.owner then return 'd' end
  return entry.ends <= now and 'f' or 'h'
end

local function load(key, at, requests)
  local fields, entries = {}, {}
  for i = 1, requests do fields[i] = string.match(ARGV[at + i - 1], '^%l+ (%d*) ') end
  if fields[1] == '' then return {[''] = parse(redis.call('GET', key))} end
  for i, value in ipairs(redis.call('HMGET', key, unpack(fields))) do entries[fields[i]] = parse(value) end
  return entries
end

local function apply(entries, verb, owner, place, lease, index)
  local entry = entries[index]
  if verb == 'confirm' or verb == 'release' then
    if not entry or entry.owner ~= owner then return '-' end
    return '-', verb == 'confirm' and 'd' .. entry.place
  end
  local letter = judge(entry, verb, owner, place)
  if letter ~= 'f' then return letter end
  place = entry and entry.place or place
  entries[index] = {owner = owner, place = place, ends = now + lease}
  return letter, string.format('h%.0f %d ', now + lease, #owner) .. owner .. place
end

local function save_one(key, value, life)
  if not value then
    redis.call('DEL', key)
  elseif life then
    redis.call('SET', key, value, 'PX', string.format('%.0f', math.max(redis.call('PTTL', key), life)))
  else
    redis.call('SET', key, value, 'KEEPTTL')
  end
end

local function save(key, changed, life)
  if changed[''] ~= nil then return save_one(key, changed[''], life) end
  local set, gone = {}, {}
  for index, value in pairs(changed) do
    if value then
      set[#set + 1] = index
      set[#set + 1] = value
    else
      gone[#gone + 1] = index
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  if #set > 0 then redis.call('HSET', key, unpack(set)) end
  if life and life > redis.call('PTTL', key) then redis.call('PEXPIRE', key, string.format('%.0f', life)) end
end

local answers, at, first, news = {}, 3, 1, ''
if ARGV[1] ~= '-' then
  first = 2
  local mark, since = look(ARGV[1])
  if since then return ' ' .. mark .. ' ' .. since end
  if mark ~= ARGV[1] then news = ' ' .. mark end
end
for i = first, #KEYS do
  local key, requests, life, fresh = KEYS[i], tonumber(ARGV[at]), tonumber(ARGV[at + 1]), false
  at = at + 2
  local entries, changed = load(key, at, requests), {}
  for _ = 1, requests do
    local verb, index, lease, size, start = string.match(ARGV[at], '^(%l+) (%d*) (%d+) (%d+) ()')
    local owner, place = string.sub(ARGV[at], start, start + size - 1), string.sub(ARGV[at], start + size)
    local letter, value = apply(entries, verb, owner, place, lease, index)
    if value ~= nil then changed[index] = value end
    fresh = fresh or letter == 'f'
    answers[#answers + 1] = letter
    at = at + 1
  end
  if next(changed) then save(key, changed, fresh and life) end
end
return table.concat(answers) .. news
"""
SHA: Final = hashlib.sha1(SCRIPT.encode("ascii"), usedforsecurity=False).hexdigest()
STATUSES: Final = {
    "f": ClaimStatus.FRESH,
    "r": ClaimStatus.REREAD,
    "h": ClaimStatus.HELD,
    "d": ClaimStatus.DUPLICATE,
    "p": ClaimStatus.REPLAYED,
    "l": ClaimStatus.LOST,
}
"""The meaning of the letters in an answer to claims."""
ENDED: Final = {"-": None}
"""The same for confirms and releases, which are told nothing."""
_NEWS: Final = re.compile(r"([a-z]*) ([0-9]+ [0-9]+)(?: ([0-9]+))?")
"""An answer with a mark."""
NO_MARK: Final = "-"
"""What is sent in place of a mark with confirms and releases, which look at none."""
# On a cluster the braces put all keys of a scope on one node (hash tags), where one script may use them.
_PREFIXES: Final = memo.Memo[tuple[str, str], bytes](
    lambda names: f"{names[0]}:{{{names[1]}}}:".encode("utf-8", "surrogatepass")
)
"""The beginning of a key, by namespace and scope."""


class Verb(StrEnum):
    """The verbs of requests. A claim is sent as one of the first three."""

    CLAIM = "claim"
    REDELIVERED = "redelivered"
    RENEW = "renew"
    CONFIRM = "confirm"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """A call of the script: its keys, its arguments, and the number of the request behind each letter."""

    keys: list[bytes]
    arguments: list[bytes | str | int]
    order: list[int]


def script_call(
    verb: Verb,
    requests: Sequence[ClaimRequest],
    *,
    namespace: str,
    now: float,
    margin: float,
    lease_clock: float | None,
) -> ScriptCall:
    """Return the call that applies one verb to ids; those of one token stand together, in their order.

    Args:
        verb: the verb of all requests.
        requests: the ids with owner, lease and place.
        namespace: the beginning of every key.
        now: UTC seconds by our clock.
        margin: seconds for which a key outlives its token, because clocks differ.
        lease_clock: seconds, or ``None`` for the clock of the server.
    """
    groups: dict[bytes, list[int]] = {}
    for number, request in enumerate(requests):
        prefix, token = _PREFIXES[namespace, request.scope], request.id
        # the ids of a batch have one key, that of its token; the tilde keeps it apart from a single token's
        groups.setdefault(
            prefix + token if request.index is None else prefix + token[:-2] + b"~", []
        ).append(number)
    arguments: list[bytes | str | int] = [
        "" if lease_clock is None else round(lease_clock * 1000)
    ]
    for numbers in groups.values():
        remaining = max(requests[number].expires for number in numbers) - now
        # Ten years at most: Redis refuses an expiry that overflows.
        arguments += (
            len(numbers),
            int(min(max(remaining, 0.0) + margin, 10 * 366 * 86_400) * 1000) + 1,
        )
        for request in (requests[number] for number in numbers):
            script_verb = verb
            if verb is Verb.CLAIM and (request.renew or request.redelivered):
                script_verb = Verb.RENEW if request.renew else Verb.REDELIVERED
            index, owner = (
                "" if request.index is None else request.index,
                request.owner.encode("utf-8", "surrogatepass"),
            )
            head = (
                f"{script_verb.value} {index} {round(request.lease * 1000)} {len(owner)} "
            )
            arguments.append(head.encode("ascii") + owner + _place(request.place))
    return ScriptCall(
        list(groups),
        arguments,
        [number for numbers in groups.values() for number in numbers],
    )


def mark_key(namespace: str, scope: str) -> bytes:
    """Return the key of a scope's mark; no id is so short."""
    return _PREFIXES[namespace, scope] + b"mark"


class Answer(NamedTuple):
    """What the script says.

    Args:
        letters: one for each request; none where something was lost.
        mark: of the scope, where the caller did not know it; else empty.
        since: UTC seconds from which on something was lost, by the server's clock; ``None`` where nothing was.
    """

    letters: str
    mark: str = ""
    since: float | None = None


def read(answer: Any) -> Answer:
    """Return what an answer says.

    Raises:
        ValueError: it is not one of this script.
    """
    text = answer.decode("ascii") if isinstance(answer, bytes) else answer
    if not isinstance(text, str):
        raise ValueError("expected letters, one for each request")
    if " " not in text:
        return Answer(text)
    found = _NEWS.fullmatch(text)
    if found is None:
        raise ValueError("expected letters and a mark")
    letters, mark, since = found.groups()
    return Answer(letters, mark, None if since is None else int(since) / 1_000_000)


def letters(text: str, asked: ScriptCall) -> list[str]:
    """Return the letters of an answer in the order of the requests.

    Raises:
        ValueError: it has more or fewer.
    """
    if len(text) != len(asked.order):
        raise ValueError(f"expected {len(asked.order)} letters, one for each request")
    return [letter for _, letter in sorted(zip(asked.order, text, strict=True))]


def risks(info: dict[str, Any]) -> list[str]:
    """Return the reasons why a server with this INFO could forget ids that still count.

    Source: the pages "Key eviction" and "Redis persistence" of the Redis manual.
    """
    policy = str(info.get("maxmemory_policy", "noeviction"))
    known = {
        f"its maxmemory-policy {policy} forgets live ids when memory is short; set noeviction": policy
        != "noeviction"
        and int(info.get("maxmemory", 0)) > 0,
        "it keeps no append-only file and forgets claims when it restarts; set appendonly yes": int(
            info.get("aof_enabled", 1)
        )
        == 0,
    }
    return [risk for risk, holds in known.items() if holds]


def _place(place: message.Place | None) -> bytes:
    """Return the digest of a place: a topic's name may be long, and Redis keeps the place for every id."""
    if place is None:
        return b""
    cluster, topic, partition, offset = place
    # The length tells where the cluster's name ends, so that two places never have the same text.
    text = f"{len(cluster)} {cluster}/{topic}/{partition}/{offset}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
