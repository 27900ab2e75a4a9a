"""The Lua script behind both Redis stores: its text, its keys and arguments, and the meaning of its answers.

The script holds the same rules as ``mqauth.replay.rules.judge``, in the place where Redis runs them atomically;
the contract test of stores compares the two. The value of an id is ``h<lease end> <owner length> <owner><place>``
while a claim holds it, and ``d<place>`` once it is done. A place is a digest of 12 bytes, or empty. A single id
is a string key. The ids of a batch are the fields of one hash, by index, and its key lives as long as the id that
lives longest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.wire import memo, message

SCRIPT: Final = """
-- KEYS: one for each token. ARGV: the lease clock in ms, or '' for the server's clock. Then for each key: the
-- number of requests, the ms the key lives, and the requests. A request is: verb, index (empty for a single id),
-- lease in ms, length of the owner, owner, place. Returns one string with a letter for each request.
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
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

local answers, at = {}, 2
for _, key in ipairs(KEYS) do
  local requests, life, fresh = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), false
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
return table.concat(answers)
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


def prefix_of(namespace: str, scope: str) -> bytes:
    """Return the beginning of all keys of a scope."""
    return _PREFIXES[namespace, scope]


def letters(answer: Any, asked: ScriptCall) -> list[str]:
    """Return the letters of an answer in the order of the requests.

    Raises:
        ValueError: the answer is not one of this script.
    """
    text = answer.decode("ascii") if isinstance(answer, bytes) else answer
    if not isinstance(text, str) or len(text) != len(asked.order):
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
