package main

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// claimed is a claim, kept until a moment in seconds after which no copy is accepted.
type claimed struct {
	place string
	done  bool
	until int64
}

// forget drops the claims that have ended.
func (c *consumer) forget(received int64) {
	for id, entry := range c.claims {
		if entry.until < received {
			delete(c.claims, id)
		}
	}
}

// claimInput returns what a message's id is a digest of; claimID the id.
func claimInput(iss, sub, jti string) []byte {
	return append(append(sized([]byte(iss)), sized([]byte(sub))...), jti...)
}

func claimID(input []byte, index int64, batch bool) string {
	found := sha256.Sum256(input)
	if !batch {
		return string(found[:16])
	}
	return string(binary.BigEndian.AppendUint16(found[:16:16], uint16(index)))
}

// claim is step 13.
func (c *consumer) claim(m *message, found *claims, release *release, waived []string) judged {
	scope := c.scopeOf(m) + "\x00"
	id := scope + claimID(claimInput(found.iss, found.sub, found.jti), found.index, found.mqa.size > 0)
	j := judged{verdict: verdict{verdict: "accepted"}, claims: found}
	until := found.exp + c.leeway + c.maxQueueAge
	if release != nil {
		until = max(until, release.exp+c.leeway+c.maxQueueAge)
	}
	if c.noStore {
		return judged{verdict: deferred("replay_store_unavailable")}
	}
	if release != nil {
		entry, there := c.claims[scope+release.id()]
		if there && entry.done {
			return judged{verdict: verdict{verdict: "duplicate"}, claims: found}
		}
		if there {
			return judged{verdict: deferred("claim_held")}
		}
		taken := &claimed{until: until}
		c.claims[scope+release.id()] = taken
		j.taken = append(j.taken, taken)
		if slices.Contains(waived, "replayed") {
			return j
		}
	}
	entry, there := c.claims[id]
	place := m.place()
	switch {
	case !there && len(c.claims) >= c.room:
		return judged{verdict: deferred("replay_store_full")}
	case !there:
		entry = &claimed{place: place, until: until}
		c.claims[id] = entry
	case release != nil && entry.done:
		delete(c.claims, scope+release.id())
		return judged{verdict: rejected("replayed")}
	case release != nil:
		return judged{verdict: deferred("claim_held")}
	case place != "" && place == entry.place:
	case place == "" && m.origin != nil && m.origin.redelivered && entry.done:
		return judged{verdict: verdict{verdict: "duplicate"}, claims: found}
	case place == "" && m.origin != nil && m.origin.redelivered:
		return judged{verdict: deferred("claim_held")}
	default:
		return judged{verdict: rejected("replayed")}
	}
	j.taken = append(j.taken, entry)
	return j
}

// place returns where the broker put a record, empty where it does not say.
func (m *message) place() string {
	o := m.origin
	if !m.kafka() || o == nil || o.topic == "" || o.partition < 0 || o.offset < 0 {
		return ""
	}
	raw := sized([]byte(o.cluster))
	raw = append(append(raw, sized([]byte(m.destination))...), sized([]byte(o.topicID))...)
	return string(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(raw, uint64(o.partition)), uint64(o.offset)))
}
