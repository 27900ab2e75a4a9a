package main

import "slices"

// trustDomain is what a consumer trusts for one: the authority's keys, and how long a WIT may still live, in seconds.
type trustDomain struct {
	keys    map[string]*key
	cutoffs map[string]int64
	longest int64
}

// mostCutoffs is how many cut-offs a set may have.
const mostCutoffs = 1024

// turn takes a new set. Cut-offs that cannot be read leave those before as they were: a fault in one entry must not
// let a stolen subject in again.
func (d *trustDomain) turn(raw []byte) {
	set, _, err := readSet(raw)
	if err != nil {
		panic(err)
	}
	d.keys = must(loadSet(raw, "wit-svid"))
	value, there := set.members["mqauth_cutoff"]
	if found, ok := readCutoffs(value); ok || !there {
		d.cutoffs = found
	}
}

// readCutoffs returns the moment of each subject that is cut off, the latest where there are several.
func readCutoffs(value any) (map[string]int64, bool) {
	list, ok := value.([]any)
	found := map[string]int64{}
	for _, item := range list {
		sub, before, good := readCutoff(item)
		found[sub] = max(found[sub], before)
		ok = ok && good
	}
	return found, ok && len(list) <= mostCutoffs
}

func readCutoff(value any) (string, int64, bool) {
	entry, ok := value.(*object)
	if !ok {
		return "", 0, false
	}
	sub, text := name(entry.members["sub"], 1, 256)
	before, time := natural(entry.members["before"])
	reason, there := entry.members["reason"]
	_, word := name(reason, 0, 256)
	return sub, before, text && time && (word || !there)
}

// cutOff tells whether a WIT was made before its subject was cut off; evidence that puts the message before is heard.
func (d *trustDomain) cutOff(wit *identity, appended int64) bool {
	before, there := d.cutoffs[wit.sub]
	if !there || appended >= 0 && appended < before*1000 {
		return false
	}
	return wit.iat == nil || *wit.iat < before
}

// identify is steps 5 to 7 of the identity form, and returns the authority's key.
func (c *consumer) identify(t *token, found *claims, received, appended int64) (*key, verdict) {
	d := c.domains[found.iss]
	if d == nil {
		return nil, rejected("issuer_untrusted")
	}
	k, v := c.keyOf(found.wit.wit, d.keys, received, appended)
	if k == nil {
		return nil, v
	}
	if d.cutOff(found.wit, appended) {
		return nil, rejected("key_revoked")
	}
	if r := signedBoth(t, found.wit, k); r != "" {
		return nil, rejected(r)
	}
	return k, verdict{}
}

// signedBoth is step 7: the authority signed the WIT, and the WIT's key the proof.
func signedBoth(t *token, wit *identity, k *key) reason {
	if !wit.wit.holds(k) {
		return "signature_invalid"
	}
	own := &key{}
	if !own.loadPublic(wit.jwk) {
		return "identity_invalid"
	}
	// The text of the JWK counts: EdDSA and Ed25519 are one algorithm, but not one text.
	if t.alg != own.alg {
		return "algorithm_forbidden"
	}
	if !t.holds(own) {
		return "signature_invalid"
	}
	return ""
}

// witTimes are the times of the authority's key and of the WIT; the moment is in milliseconds.
func (c *consumer) witTimes(found *claims, k *key, at int64) []reason {
	var failed []reason
	wit, late, longest := found.wit, c.leeway*1000, c.domains[found.iss].longest*1000
	ahead := func(t *int64) bool { return t != nil && *t*1000 > at+late }
	// No product overflows: strict JSON has no integer beyond 2^53.
	ended := wit.exp*1000+late <= at || wit.iat != nil && wit.exp <= *wit.iat
	for _, rule := range []struct {
		fails  bool
		reason reason
	}{
		{k.expires >= 0 && at >= k.expires*1000, "key_expired"},
		{ahead(wit.iat), "issued_in_future"},
		{ahead(wit.nbf), "not_yet_valid"},
		{ended, "expired"},
		{wit.exp*1000-at > longest+late, "lifetime_excessive"},
	} {
		if rule.fails {
			failed = append(failed, rule.reason)
		}
	}
	return failed
}

// vouches tells whether an authority's key may say who a subject is: it may, unless somebody limits it to others. A
// configuration that limits keys and does not name this one leaves it nobody.
func (c *consumer) vouches(k *key, sub string) bool {
	limited, there := c.pins[k.kid]
	if !there {
		limited = c.pins["*"]
	}
	if len(c.pins) > 0 && !slices.Contains(limited, sub) {
		return false
	}
	return !k.named || slices.Contains(k.subjects, sub)
}

// rule is one of a policy: who may publish where. Without an issuer any may be meant; claims are the WIT's.
type rule struct {
	Subject, Issuer string
	Destinations    []string
	Claims          map[string]string
}

func (r rule) permits(found *claims, destination string) bool {
	if r.Subject != found.sub || r.Issuer != "" && r.Issuer != found.iss {
		return false
	}
	for claim, wanted := range r.Claims {
		if found.wit == nil || found.wit.claims[claim] != any(wanted) {
			return false
		}
	}
	return slices.Contains(r.Destinations, destination)
}
