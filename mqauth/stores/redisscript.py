"""What the two Redis stores say to the server: keys, arguments, and the claim table as one Lua script.

The script is ``mqauth.replay.judge`` once more, where Redis can run it atomically; the store contract holds
the two together. Kept of an id: ``h<lease end> <owner length> <owner><place>`` while it is held,
``d<place>`` once it is done; a place is a digest of 12 bytes, or nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Final

from mqauth.replay import ClaimRequest, ClaimStatus

PLACE_BYTES: Final = 12
_TTL_LIMIT: Final = 10 * 366 * 86_400  # seconds; Redis refuses expiries that overflow

SCRIPT: Final = """
-- KEYS: one a wish. ARGV: the lease clock in ms, or '' for the server's; then verb, owner, place, lease ms
-- and key ms for each wish. Returns a word for each.
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
  if verb == 'renew' then return ours and 'fresh' or 'lost' end
  if not entry or ours then return 'fresh' end
  if place ~= '' then
    if entry.place ~= place then return 'replayed' end
    return entry.owner and 'fresh' or 'reread'
  end
  if verb ~= 'redelivered' then return 'replayed' end
  if not entry.owner then return 'duplicate' end
  return entry.ends <= now and 'fresh' or 'held'
end

local function take(key, entry, owner, place, lease, ttl)
  local held = string.format('h%.0f %d ', now + lease, #owner) .. owner
  if entry then
    ttl = string.format('%.0f', math.max(redis.call('PTTL', key), ttl))
    place = entry.place
  end
  redis.call('SET', key, held .. place, 'PX', ttl)
end

local answers = {}
for i, key in ipairs(KEYS) do
  local verb, owner, place, lease, ttl = unpack(ARGV, 5 * i - 3, 5 * i + 1)
  local entry = parse(redis.call('GET', key))
  local word = 'done'
  if verb == 'confirm' or verb == 'release' then
    if entry and entry.owner == owner then
      if verb == 'release' then
        redis.call('DEL', key)
      else
        redis.call('SET', key, 'd' .. entry.place, 'KEEPTTL')
      end
    end
  else
    word = judge(entry, verb, owner, place)
    if word == 'fresh' then take(key, entry, owner, place, lease, ttl) end
  end
  answers[i] = word
end
return answers
"""
SHA: Final = hashlib.sha1(SCRIPT.encode("ascii"), usedforsecurity=False).hexdigest()


class Verb(StrEnum):
    """What is wished; a claim is sent as one of three words."""

    CLAIM = "claim"
    REDELIVERED = "redelivered"
    RENEW = "renew"
    CONFIRM = "confirm"
    RELEASE = "release"


def key(namespace: str, request: ClaimRequest) -> bytes:
    """Return the key of an id; the braces keep a scope on one node of a cluster, so that batches work."""
    return f"{namespace}:{{{request.scope}}}:".encode("utf-8", "surrogatepass") + request.id


def arguments(
    verb: Verb, requests: Iterable[ClaimRequest], *, now: float, margin: float, lease_clock: float | None
) -> list[bytes | str | int]:
    """Return the script's arguments.

    Args:
        verb: the same for all of them.
        requests: the wishes.
        now: UTC seconds here.
        margin: seconds a key outlives its id, for clocks that disagree.
        lease_clock: seconds, or ``None`` for the server's clock.
    """
    found: list[bytes | str | int] = ["" if lease_clock is None else round(lease_clock * 1000)]
    for request in requests:
        remaining = min(max(request.expires - now, 0.0) + margin, _TTL_LIMIT)
        found += (
            _word(verb, request),
            request.owner.encode("utf-8", "surrogatepass"),
            _place(request.place),
            round(request.lease * 1000),
            int(remaining * 1000) + 1,
        )
    return found


def statuses(answer: Sequence[Any], wishes: int) -> list[ClaimStatus]:
    """Return what the script's words mean.

    Raises:
        ValueError: the answer is not one of this script.
    """
    if len(answer) != wishes:
        raise ValueError("an answer a wish is needed")
    return [ClaimStatus(word if isinstance(word, str) else word.decode("ascii")) for word in answer]


def doubts(info: dict[str, Any]) -> list[str]:
    """Return why a server with this INFO could forget live ids, none where it does not.

    Source: Redis manual, pages "Key eviction" and "Redis persistence".
    """
    found = []
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction" and int(info.get("maxmemory", 0)) > 0:
        found.append(f"its maxmemory-policy {policy} forgets live ids when memory is short; set noeviction")
    if int(info.get("aof_enabled", 1)) == 0:
        found.append("it keeps no append-only file and forgets claims when it restarts; set appendonly yes")
    return found


def _word(verb: Verb, request: ClaimRequest) -> str:
    """Return the word a wish is sent as."""
    if verb is not Verb.CLAIM:
        return verb.value
    if request.renew:
        return Verb.RENEW.value
    return Verb.REDELIVERED.value if request.redelivered else Verb.CLAIM.value


def _place(place: str | None) -> bytes:
    """Return the digest of a place, empty for none."""
    if place is None:
        return b""
    return hashlib.blake2b(place.encode("utf-8", "surrogatepass"), digest_size=PLACE_BYTES).digest()
