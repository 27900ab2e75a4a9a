package main

import (
	"regexp"
	"slices"
	"strings"
)

// release is a reviewer's word that a dead letter may pass (section 12).
type release struct {
	iss, letter, scope string
	waive              []string
	exp                int64
}

var (
	letterForm = regexp.MustCompile(`\A[0-9a-f]{64}\z`)
	reasons    = strings.Fields(`
		token_missing token_repeated token_oversize token_malformed token_type header_forbidden algorithm_forbidden
		key_unknown key_revoked key_expired signature_invalid claims_malformed claim_missing issuer_untrusted
		audience_mismatch subject_mismatch issued_in_future not_yet_valid expired lifetime_excessive queue_age_exceeded
		append_time_missing destination_mismatch body_mismatch record_key_mismatch headers_mismatch coverage_insufficient
		producer_forbidden replayed proof_invalid release_invalid message_malformed handler_failed
		identity_invalid identity_mismatch`)
	waivable = []string{
		"expired", "queue_age_exceeded", "lifetime_excessive", "key_expired", "producer_forbidden", "replayed",
		"append_time_missing",
	}
)

func (r *release) input() []byte {
	return append(append([]byte{0, 0, 0, 0}, sized([]byte(r.iss))...), r.letter...)
}

func (r *release) id() string { return claimID(r.input(), 0, false) }

// release judges the release on a message, after step 7. Without one it waives nothing.
func (c *consumer) release(m *message, producer *token, found *claims, received int64) ([]string, *release, verdict) {
	invalid := rejected("release_invalid")
	text, n, r := m.carried("mqauth-release")
	if n == 0 && !slices.ContainsFunc(m.headers, func(h pair) bool { return fold(h.name) == "mqauth-release" }) {
		return nil, nil, verdict{}
	}
	if n != 1 || r != "" || c.authorities == nil {
		return nil, nil, invalid
	}
	t, r := takeApart(text, "mqauth-release+jwt")
	if r != "" || t.proof != nil {
		return nil, nil, invalid
	}
	payload, err := parse(t.payload, 8, false)
	members, ok := payload.(*object)
	if err != nil || !ok {
		return nil, nil, invalid
	}
	release, times, ok := readRelease(members, producer, found, m)
	if !ok {
		return nil, nil, invalid
	}
	granted := c.authorities[release.iss]
	if granted == nil {
		return nil, nil, invalid
	}
	if granted.keys == nil {
		return nil, nil, deferred("keys_unavailable")
	}
	keys := map[string]map[string]*key{release.iss: granted.keys}
	k, v := c.authenticate(t, release.iss, keys, received, -1)
	if v.verdict == "deferred" {
		return nil, nil, v
	}
	if k == nil || k.expires >= 0 && times[0] >= k.expires {
		return nil, nil, invalid
	}
	reviewer, _ := members.members["sub"].(string)
	if k.named && !slices.Contains(k.subjects, reviewer) {
		return nil, nil, invalid
	}
	late := times[0] > received+c.leeway || times[1]+c.leeway <= received
	if late || times[1] <= times[0] || times[1]-times[0] > 604800 {
		return nil, nil, invalid
	}
	for _, waived := range release.waive {
		if !slices.Contains(granted.waive, waived) {
			return nil, nil, invalid
		}
	}
	return release.waive, release, verdict{}
}

func readRelease(payload *object, producer *token, found *claims, m *message) (*release, [2]int64, bool) {
	var times [2]int64
	known := []string{"iss", "sub", "reason", "letter", "tok", "mqa", "waive", "scope", "iat", "exp", "jti"}
	for _, member := range known {
		if _, there := payload.members[member]; !there {
			return nil, times, false
		}
	}
	if !only(payload, append(known, "past")...) {
		return nil, times, false
	}
	r, ok := &release{}, [9]bool{}
	r.iss, ok[0] = name(payload.members["iss"], 1, 256)
	_, ok[1] = name(payload.members["sub"], 1, 256)
	_, ok[2] = name(payload.members["reason"], 1, 256)
	r.scope, ok[3] = name(payload.members["scope"], 1, 256)
	times[0], ok[4] = natural(payload.members["iat"])
	times[1], ok[5] = natural(payload.members["exp"])
	r.exp = times[1]
	_, ok[6] = name(payload.members["jti"], 16, 128)
	r.letter, ok[7] = payload.members["letter"].(string)
	r.waive, ok[8] = headerNames(payload.members["waive"])
	for _, waived := range r.waive {
		ok[8] = ok[8] && slices.Contains(waivable, waived)
	}
	if slices.Contains(ok[:], false) || !letterForm.MatchString(r.letter) || !past(payload) {
		return nil, times, false
	}
	mqa, good := readBinding(payload.members["mqa"])
	if !good || mqa.size > 0 || payload.members["tok"] != any(digest([]byte(producer.text))) {
		return nil, times, false
	}
	return r, times, slices.Equal(mqa.hdr, found.mqa.hdr) && mqa.bound(m) == ""
}

func past(payload *object) bool {
	value, there := payload.members["past"]
	if !there {
		return true
	}
	found, ok := value.(*object)
	if !ok || !only(found, "count", "hops") || len(found.names) != 2 {
		return false
	}
	n, whole := natural(found.members["count"])
	hops, list := found.members["hops"].([]any)
	if !whole || n < 1 || n > 1000000 || !list || len(hops) > 8 || int64(len(hops)) > n {
		return false
	}
	for _, hop := range hops {
		one, is := hop.(*object)
		if !is || len(one.names) != 3 || !only(one, "letter", "reason", "time") {
			return false
		}
		letter, is := one.members["letter"].(string)
		at, timed := natural(one.members["time"])
		why, named := one.members["reason"].(string)
		timed = timed && at <= 253402300799
		named = named && slices.Contains(reasons, why)
		if !is || !letterForm.MatchString(letter) || !timed || !named && one.members["reason"] != nil {
			return false
		}
	}
	return true
}
