package main

import (
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
	domains     map[string]*trustDomain
	pending     bool
	audiences   []string
	leeway      int64
	maxLifetime int64
	maxQueueAge int64
	append      bool
	interceptor bool
	timeless    []timeless
	required    []string
	strict      bool
	pins        map[string][]string
	userID      bool
	users       map[string]string
	allow       []rule
	noPolicy    bool
	authorities map[string]*authority
	scope       string
	claims      map[string]*claimed
	room        int
	noStore     bool
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
	var found *claims
	if r == "" {
		t, found, r = c.open(t.text)
	}
	if r != "" {
		return judged{verdict: rejected(r)}
	}
	k, v := c.vouched(t, found, received, c.moment(m))
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

// open is steps 2 to 4, in the form that the token has. Without a trust domain there is the direct form alone.
func (c *consumer) open(text string) (*token, *claims, reason) {
	if len(c.domains) > 0 && beginsAsWIT(text) {
		return openIdentity(text)
	}
	t, r := takeApart(text, "mqauth+jwt")
	if r != "" {
		return nil, nil, r
	}
	found, r := loadClaims(t)
	return t, found, r
}

// vouched is steps 5 to 7. The key is the one of whoever says who the producer is: an issuer, or an authority.
func (c *consumer) vouched(t *token, found *claims, received, appended int64) (*key, verdict) {
	if found.wit != nil {
		return c.identify(t, found, received, appended)
	}
	return c.authenticate(t, found.iss, c.issuers, received, appended)
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
	// On Kafka bytes that are no ASCII are no base64url, and fail where that is read.
	ascii := !strings.ContainsFunc(text, func(r rune) bool { return r > 0x7f })
	if !ascii && !m.kafka() {
		return "", 1, "token_malformed"
	}
	return text, 1, ""
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
	k, v := c.keyOf(t, keys, received, appended)
	if k != nil && !t.holds(k) {
		return nil, rejected("signature_invalid")
	}
	return k, v
}

// keyOf is step 6.
func (c *consumer) keyOf(t *token, keys map[string]*key, received, appended int64) (*key, verdict) {
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
		if found.wit == nil && k.expires >= 0 && found.iat >= k.expires && !slices.Contains(waived, "key_expired") {
			return rejected("key_expired")
		}
		if !slices.Contains(waived, "append_time_missing") {
			if slices.ContainsFunc(c.timeless, func(t timeless) bool { return t.names(m, found.iat) }) {
				return rejected("append_time_missing")
			}
			return deferred("append_time_unavailable")
		}
		// Nobody knows how long it waited.
		waived = append([]string{"expired"}, waived...)
	}
	for _, r := range c.allTimes(found, k, received*1000, at) {
		if !slices.Contains(waived, r) {
			return rejected(r)
		}
	}
	if !c.maySay(k, found) || c.contradicts(m, found.sub) {
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
	if !slices.ContainsFunc(c.allow, func(r rule) bool { return r.permits(found, m.destination) }) {
		return rejected("producer_forbidden")
	}
	return verdict{}
}

// allTimes is step 9: in the identity form the WIT's times first, and the key of a WIT has no end of its own.
func (c *consumer) allTimes(found *claims, k *key, received, at int64) []reason {
	if found.wit == nil {
		return c.times(found, k, received, at)
	}
	return append(c.witTimes(found, k, at), c.times(found, &key{expires: -1}, received, at)...)
}

// times is section 7, in the order of section 7's table; moments are in milliseconds.
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
		{found.exp*1000+late <= at || found.exp <= found.iat, "expired"},
		{found.exp-found.iat > c.maxLifetime, "lifetime_excessive"},
		{c.append && received-at > c.maxQueueAge*1000, "queue_age_exceeded"},
	} {
		if rule.fails {
			failed = append(failed, rule.reason)
		}
	}
	return failed
}

// maySay is step 10, but for the user_id.
func (c *consumer) maySay(k *key, found *claims) bool {
	if found.wit != nil {
		return c.vouches(k, found.sub)
	}
	return c.speaks(k, found.sub)
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
