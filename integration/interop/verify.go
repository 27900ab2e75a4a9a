package main

import (
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
	"strings"
)

// verdict is what section 8 calls one; reason and cause are empty where there is none.
type verdict struct {
	verdict string
	reason  reason
	cause   string
}

func rejected(r reason) verdict { return verdict{verdict: "rejected", reason: r} }
func deferred(c string) verdict { return verdict{verdict: "deferred", cause: c} }

// authority may release dead letters; its keys are nil where they are out of reach.
type authority struct {
	keys  map[string]*key
	waive []string
}

// consumer is what a consumer trusts, and what it remembers. Keys of an issuer are nil where they are out of reach.
type consumer struct {
	issuers     map[string]map[string]*key
	pending     bool
	audiences   []string
	leeway      int64
	maxLifetime int64
	maxQueueAge int64
	append      bool
	interceptor bool
	required    []string
	strict      bool
	pins        map[string][]string
	userID      bool
	users       map[string]string
	allow       map[string][]string
	noPolicy    bool
	authorities map[string]*authority
	scope       string
	claims      map[string]*claimed
	room        int
	noStore     bool
}

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

// judged is a verdict with the claims that a consumer confirms once its handler has returned.
type judged struct {
	verdict
	claims *claims
	taken  []*claimed
}

// judge takes steps 1 to 13 for a message received at a moment.
func (c *consumer) judge(m *message, received int64) judged {
	t, r := m.token()
	if r == "" {
		t, r = takeApart(t.text, "mqauth+jwt")
	}
	if r != "" {
		return judged{verdict: rejected(r)}
	}
	found, r := loadClaims(t)
	if r != "" {
		return judged{verdict: rejected(r)}
	}
	k, v := c.authenticate(t, found.iss, c.issuers, received, c.moment(m))
	if k == nil {
		return judged{verdict: v}
	}
	waived, release, v := c.release(m, t, found, received)
	if v.verdict != "" {
		return judged{verdict: v}
	}
	if release != nil && release.scope != c.scopeOf(m) {
		return judged{verdict: verdict{verdict: "duplicate"}, claims: found}
	}
	if v := c.believe(m, found, k, received, waived); v.verdict != "" {
		return judged{verdict: v}
	}
	c.forget(received)
	return c.claim(m, found, release, waived)
}

func (c *consumer) scopeOf(m *message) string {
	if c.scope == "" && m.origin != nil {
		return m.origin.scope + m.origin.queue
	}
	return c.scope
}

// token is step 1.
func (m *message) token() (*token, reason) {
	text, n, r := m.carried("mqauth-token")
	if n > 1 {
		return nil, "token_repeated"
	}
	if n == 0 {
		return nil, "token_missing"
	}
	return &token{text: text}, r
}

// carried returns the one header that carries a token; twice in any case counts 2, another spelling 0.
func (m *message) carried(name string) (string, int, reason) {
	var found []pair
	for _, header := range m.headers {
		if fold(header.name) == name {
			found = append(found, header)
		}
	}
	if len(found) > 1 {
		return "", 2, ""
	}
	if len(found) == 0 || found[0].name != name {
		return "", 0, ""
	}
	var text string
	var ok bool
	if m.kafka() {
		var raw []byte
		raw, ok = found[0].value.([]byte)
		text = string(raw)
	} else {
		text, ok = found[0].value.(string)
	}
	if !ok {
		return "", 1, "token_malformed"
	}
	if len(text) > 8192 {
		return "", 1, "token_oversize"
	}
	for _, b := range []byte(text) {
		if b > 0x7f {
			return "", 1, notASCII(m, text)
		}
	}
	return text, 1, ""
}

func notASCII(m *message, text string) reason {
	if !m.kafka() {
		return "token_malformed"
	}
	_, r := takeApart(text, "mqauth+jwt")
	if r == "" {
		return "proof_invalid"
	}
	return r
}

// moment returns the append time in milliseconds, -1 without evidence or where the consumer does not ask for it.
func (c *consumer) moment(m *message) int64 {
	if !c.append {
		return -1
	}
	if m.kafka() {
		if m.origin != nil && m.origin.append {
			return m.origin.timestampMS
		}
		return -1
	}
	if c.interceptor && m.origin != nil && m.origin.append {
		return m.origin.timestampMS
	}
	return -1
}

// authenticate is steps 5 to 7.
func (c *consumer) authenticate(
	t *token, iss string, issuers map[string]map[string]*key, received, appended int64,
) (*key, verdict) {
	keys, known := issuers[iss]
	if !known {
		return nil, rejected("issuer_untrusted")
	}
	if keys == nil {
		return nil, deferred("keys_unavailable")
	}
	k := keys[t.kid]
	if k == nil && c.pending {
		return nil, deferred("key_pending")
	}
	if k == nil {
		return nil, rejected("key_unknown")
	}
	before := appended >= 0 && appended/1000 < k.revokedAt
	if k.revokedAt >= 0 && k.revokedAt <= received && !before {
		return nil, rejected("key_revoked")
	}
	if !k.allows(t.alg) {
		return nil, rejected("algorithm_forbidden")
	}
	if !t.holds(k) {
		return nil, rejected("signature_invalid")
	}
	return k, verdict{}
}

// believe is steps 8 to 12.
func (c *consumer) believe(m *message, found *claims, k *key, received int64, waived []string) verdict {
	if !slices.Contains(c.audiences, found.aud) {
		return rejected("audience_mismatch")
	}
	at, appended := received*1000, c.moment(m)
	if appended >= 0 {
		at = appended
	}
	if c.append && appended < 0 {
		if k.expires >= 0 && found.iat >= k.expires && !slices.Contains(waived, "key_expired") {
			return rejected("key_expired")
		}
		return deferred("append_time_unavailable")
	}
	for _, r := range c.times(found, k, received*1000, at) {
		if !slices.Contains(waived, r) {
			return rejected(r)
		}
	}
	if !c.speaks(k, found.sub) || c.contradicts(m, found.sub) {
		return rejected("subject_mismatch")
	}
	if r := found.bound(m); r != "" {
		return rejected(r)
	}
	for _, required := range c.required {
		holds := slices.Contains(found.mqa.hdr, required) && m.occurrences(required) != nil
		if slices.Contains(seven, required) {
			holds = m.property(required) != nil
		}
		if !holds {
			return rejected("coverage_insufficient")
		}
	}
	uncovered := func(name string) bool { return !slices.Contains(found.mqa.hdr, name) }
	if c.strict && slices.ContainsFunc(m.application(), uncovered) {
		return rejected("coverage_insufficient")
	}
	if slices.Contains(waived, "producer_forbidden") {
		return verdict{}
	}
	if c.noPolicy {
		return deferred("policy_unavailable")
	}
	if !slices.Contains(c.allow[found.sub], m.destination) {
		return rejected("producer_forbidden")
	}
	return verdict{}
}

// times is step 9, in the order of section 7's table; moments are in milliseconds.
func (c *consumer) times(found *claims, k *key, received, at int64) []reason {
	var failed []reason
	lived := found.iat
	if c.append {
		lived = at / 1000
	}
	late := c.leeway * 1000
	for _, rule := range []struct {
		fails  bool
		reason reason
	}{
		{k.expires >= 0 && lived >= k.expires, "key_expired"},
		{found.iat*1000 > at+late, "issued_in_future"},
		{found.nbf != nil && *found.nbf*1000 > at+late, "not_yet_valid"},
		{found.exp > math.MaxInt64/2000 || found.exp*1000+late <= at || found.exp <= found.iat, "expired"},
		{found.exp-found.iat > c.maxLifetime, "lifetime_excessive"},
		{c.append && received-at > c.maxQueueAge*1000, "queue_age_exceeded"},
	} {
		if rule.fails {
			failed = append(failed, rule.reason)
		}
	}
	return failed
}

// speaks tells whether a key speaks for a subject: by its JWK, and by what the consumer says of its kid.
func (c *consumer) speaks(k *key, sub string) bool {
	pinned, there := c.pins[k.kid]
	if there && !slices.Contains(pinned, sub) {
		return false
	}
	if k.named {
		return slices.Contains(k.subjects, sub)
	}
	return there || slices.Contains(c.pins["*"], sub)
}

var transports = []string{
	"x-death", "x-delivery-count", "x-acquired-count", "x-delay", "timestamp_in_ms", "traceparent", "tracestate", "baggage",
	"b3", "sentry-trace", "uber-trace-id", "x-amzn-trace-id", "x-cloud-trace-context", "newrelic", "elastic-apm-traceparent",
	"x-shovelled", "x-shovelled-timestamp", "x-received-from", "x-original-exchange", "x-original-routing-key",
}

// application returns the names of the headers that transports do not add, each once, in order of appearance.
func (m *message) application() []string {
	names := []string{}
	for _, h := range m.headers {
		added := h.name == "BCC" || slices.Contains(transports, fold(h.name)) || m.kafka() && slices.Contains(seven, h.name)
		for _, prefix := range []string{"x-first-death-", "x-last-death-", "x-stream-", "x-opt-", "x-b3-", "x-datadog-", "uberctx-", "mqauth-"} {
			added = added || strings.HasPrefix(fold(h.name), prefix)
		}
		if !added && !slices.Contains(names, h.name) {
			names = append(names, h.name)
		}
	}
	return names
}

func (c *consumer) contradicts(m *message, sub string) bool {
	user, there := m.properties["user-id"]
	if !c.userID || !there {
		return false
	}
	if c.users != nil {
		user, there = c.users[user]
		return !there || user != sub
	}
	return user != sub
}

func same(expected *string, raw []byte) bool {
	if expected == nil || raw == nil {
		return expected == nil && raw == nil
	}
	return *expected == digest(raw)
}

// bound is step 11.
func (c *claims) bound(m *message) reason {
	if c.mqa.size > 0 {
		return c.proves(m)
	}
	return c.mqa.bound(m)
}

func (b *binding) bound(m *message) reason {
	if b.dst != m.destination {
		return "destination_mismatch"
	}
	if !same(b.key, m.key) {
		return "record_key_mismatch"
	}
	if !same(b.bod, m.body) {
		return "body_mismatch"
	}
	raw, err := m.headersInput(b.hdr)
	if err != nil || m.twins(b.hdr) || digest(raw) != b.hds {
		return "headers_mismatch"
	}
	return ""
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
