package main

import (
	"encoding/json"
	"slices"
)

// rulesForm is a policy: a list of rules, or by subject the destinations, whoever the issuer is.
type rulesForm []rule

func (f *rulesForm) UnmarshalJSON(raw []byte) error {
	var table map[string][]string
	if json.Unmarshal(raw, &table) != nil {
		return json.Unmarshal(raw, (*[]rule)(f))
	}
	*f = nil
	for sub, destinations := range table {
		*f = append(*f, rule{Subject: sub, Destinations: destinations})
	}
	return nil
}

// timeless are messages that can never have evidence of their append time (section 7): a time or offsets.
type timeless struct {
	Destination string
	Signed      int64
	Offsets     map[int64]int64
}

func (t *timeless) UnmarshalJSON(raw []byte) error {
	var form struct {
		Destination string
		Through     json.RawMessage
	}
	if err := json.Unmarshal(raw, &form); err != nil {
		return err
	}
	t.Destination = form.Destination
	if json.Unmarshal(form.Through, &t.Signed) == nil {
		return nil
	}
	return json.Unmarshal(form.Through, &t.Offsets)
}

func (t *timeless) names(m *message, issued int64) bool {
	if t.Destination != m.destination {
		return false
	}
	if t.Offsets == nil {
		return issued <= t.Signed
	}
	if m.origin == nil {
		return false
	}
	last, listed := t.Offsets[m.origin.partition]
	return listed && m.origin.offset >= 0 && m.origin.offset <= last
}

type authorityForm struct {
	JWKS  json.RawMessage
	Waive []string
}

// consumerForm is a consumer in a file of vectors.
type consumerForm struct {
	Issuer       string
	Audience     any
	Leeway       int64
	MaxLifetime  int64 `json:"max_lifetime"`
	Allow        rulesForm
	JWKS         json.RawMessage
	Others       map[string]json.RawMessage `json:"other_issuers"`
	UserID       json.RawMessage            `json:"user_id"`
	At           string
	MaxQueueAge  int64      `json:"max_queue_age"`
	Evidence     string     `json:"append_evidence"`
	Timeless     []timeless `json:"without_evidence"`
	Required     []string   `json:"require_headers"`
	Unsigned     string     `json:"unsigned_headers"`
	Subjects     map[string][]string
	Authorities  map[string]authorityForm
	Scope        string
	StoreEntries int    `json:"store_entries"`
	KeySet       string `json:"key_set"`
	Unavailable  []string
	TrustDomain  *string         `json:"trust_domain"`
	MaxIdentity  int64           `json:"max_identity_lifetime"`
	AuthoritySet json.RawMessage `json:"authority_jwks"`
}

func isNull(raw json.RawMessage) bool { return raw == nil || string(raw) == "null" }

func (f *consumerForm) consumer() *consumer {
	c := &consumer{
		leeway: f.Leeway, maxLifetime: f.MaxLifetime, maxQueueAge: f.MaxQueueAge,
		append: f.At == "append", interceptor: f.Evidence == "interceptor", timeless: f.Timeless, required: f.Required,
		strict: f.Unsigned == "reject", pins: f.Subjects, allow: f.Allow, scope: f.Scope,
		claims: map[string]*claimed{}, room: 1 << 30, issuers: map[string]map[string]*key{f.Issuer: nil},
	}
	switch audience := f.Audience.(type) {
	case string:
		c.audiences = []string{audience}
	case []any:
		for _, one := range audience {
			c.audiences = append(c.audiences, one.(string))
		}
	}
	if !isNull(f.JWKS) {
		c.issuers[f.Issuer] = must(loadSet(f.JWKS))
	}
	for iss, jwks := range f.Others {
		c.issuers[iss] = must(loadSet(jwks))
	}
	if f.StoreEntries > 0 {
		c.room = f.StoreEntries
	}
	if !isNull(f.UserID) {
		c.userID = true
		_ = json.Unmarshal(f.UserID, &c.users)
	}
	c.pending = slices.Contains(f.Unavailable, "key_pending")
	c.noPolicy = slices.Contains(f.Unavailable, "policy_unavailable")
	c.noStore = slices.Contains(f.Unavailable, "replay_store_unavailable")
	for iss, form := range f.Authorities {
		if c.authorities == nil {
			c.authorities = map[string]*authority{}
		}
		c.authorities[iss] = &authority{waive: form.Waive}
		if !isNull(form.JWKS) {
			c.authorities[iss].keys = must(loadSet(form.JWKS))
		}
	}
	if f.TrustDomain != nil {
		c.domains = map[string]*trustDomain{*f.TrustDomain: {longest: f.MaxIdentity}}
		if !isNull(f.AuthoritySet) {
			c.domains[*f.TrustDomain].turn(f.AuthoritySet)
		}
	}
	return c
}
