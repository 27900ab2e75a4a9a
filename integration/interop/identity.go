package main

import (
	"regexp"
	"slices"
	"strings"
)

// The identity form (section 16), as a consumer reads it. What an authority does (it checks credentials and DPoP proofs,
// and signs WITs) is no part of the wire profile, and is not written here.

// identity is a WIT that was read, and not believed yet.
type identity struct {
	wit      *token
	sub      string
	exp      int64
	iat, nbf *int64
	jwk      map[string]any
	claims   map[string]any
}

// atMostWIT is what a WIT may have, in bytes.
const atMostWIT = 4096

var (
	subjectForm     = regexp.MustCompile(`\A((?:wimse|spiffe)://[a-z0-9._-]+)((?:/[A-Za-z0-9._-]+)+)\z`)
	proofAlgorithms = []string{"EdDSA", "Ed25519", "ES256", "ES384"}
	witClaims       = []string{"sub", "exp", "cnf", "iat", "nbf", "jti", "iss"}
)

// beginsAsWIT tells whether something stands behind a first part whose header says that it is a WIT, and names a key.
func beginsAsWIT(text string) bool {
	wit, _, more := strings.Cut(text, "~")
	segment, _, _ := strings.Cut(wit, ".")
	raw, ok := unb64(segment)
	found, err := parse(raw, 4, false)
	header, is := found.(*object)
	if !more || !ok || err != nil || !is || len(segment) > atMostWIT {
		return false
	}
	_, named := name(header.members["kid"], 1, 128)
	return named && header.members["typ"] == any("wit+jwt")
}

// openIdentity is steps 1 to 4 of a token that begins as a WIT does.
func openIdentity(text string) (*token, *claims, reason) {
	parts := strings.Split(text, "~")
	if len(parts) > 3 {
		return nil, nil, "token_malformed"
	}
	if len(parts[0]) > atMostWIT {
		return nil, nil, "token_oversize"
	}
	wit, header, r := segments(parts[0])
	if r != "" {
		return nil, nil, r
	}
	wit.kid, _ = header.members["kid"].(string)
	t, r := takeProof(text, parts[1:])
	if r != "" {
		return nil, nil, r
	}
	found, r := loadProof(t)
	if r != "" {
		return nil, nil, r
	}
	return t, found, found.carry(wit, header)
}

// takeProof is steps 2 and 3 of the proof. It has no kid: its key is the WIT's.
func takeProof(text string, parts []string) (*token, reason) {
	t, header, r := segments(parts[0])
	if r != "" {
		return nil, r
	}
	t.text = text
	if len(parts) == 2 {
		t.proof = &parts[1]
	}
	return t, t.judgeHeader(header, "mqauth-pop+jwt", proofAlgorithms, "alg", "typ")
}

// loadProof is step 4 of the proof. Who speaks is the WIT's to say, so a proof with iss or sub is none.
func loadProof(t *token) (*claims, reason) {
	payload, r := t.claimsWith("wth")
	if r != "" {
		return nil, r
	}
	c, good := readClaims(payload.members)
	wth, ok := digestText(payload.members["wth"])
	_, iss := payload.members["iss"]
	_, sub := payload.members["sub"]
	if !good || !ok || iss || sub || others(payload, append(common, "wth")...) > 64 {
		return nil, "claims_malformed"
	}
	c.wth = wth
	if !c.readProof(t.proof) {
		return nil, "proof_invalid"
	}
	return c, ""
}

// carry reads the WIT, and takes its trust domain and subject for iss and sub.
func (c *claims) carry(wit *token, header *object) reason {
	if wit.judgeHeader(header, "wit+jwt", algorithms, "alg", "typ", "kid") != "" {
		return "identity_invalid"
	}
	found, ok := readWIT(wit)
	if !ok {
		return "identity_invalid"
	}
	if c.wth != digest([]byte(wit.jws)) {
		return "identity_mismatch"
	}
	c.wit, c.sub, c.iss = found, found.sub, subjectForm.FindStringSubmatch(found.sub)[1]
	return ""
}

func readWIT(wit *token) (*identity, bool) {
	value, err := parse(wit.payload, 8, false)
	payload, ok := value.(*object)
	if err != nil || !ok {
		return nil, false
	}
	members, good := payload.members, [5]bool{}
	found := &identity{wit: wit, claims: members}
	found.sub, good[0] = subject(members["sub"])
	found.exp, good[1] = natural(members["exp"])
	found.iat, good[2] = optionalTime(members, "iat")
	found.nbf, good[3] = optionalTime(members, "nbf")
	found.jwk, good[4] = confirmation(members["cnf"])
	_, aud := members["aud"]
	texts := optionalName(members, "jti", 128) && optionalName(members, "iss", 256)
	return found, !slices.Contains(good[:], false) && texts && !aud && others(payload, witClaims...) <= 64
}

func optionalName(members map[string]any, claim string, most int) bool {
	value, there := members[claim]
	_, ok := name(value, 1, most)
	return ok || !there
}

// subject returns a trust domain with one or more segments behind it.
func subject(value any) (string, bool) {
	text, _ := name(value, 1, 256)
	found := subjectForm.FindStringSubmatch(text)
	if found == nil || len(text) > 256 {
		return "", false
	}
	dots := func(segment string) bool { return segment == "." || segment == ".." }
	return text, !slices.ContainsFunc(strings.Split(found[2], "/"), dots)
}

// curve is what the JWK of a WIT may be: the bytes of a coordinate, and the algorithms that fit.
type curve struct {
	kty  string
	size int
	fits []string
}

var curves = map[string]curve{
	"Ed25519": {"OKP", 32, []string{"EdDSA", "Ed25519"}},
	"P-256":   {"EC", 32, []string{"ES256"}},
	"P-384":   {"EC", 48, []string{"ES384"}},
}

// confirmation returns the JWK in cnf. Whether its point is on its curve is judged at step 7.
func confirmation(value any) (map[string]any, bool) {
	cnf, ok := value.(*object)
	if !ok || len(cnf.names) != 1 {
		return nil, false
	}
	jwk, ok := cnf.members["jwk"].(*object)
	if !ok {
		return nil, false
	}
	return jwk.members, plainKey(jwk)
}

// plainKey tells whether a JWK has the members that it must have, and none beside them but kid and use.
func plainKey(jwk *object) bool {
	crv, _ := jwk.members["crv"].(string)
	kind, known := curves[crv]
	required := []string{"x"}
	if kind.kty == "EC" {
		required = []string{"x", "y"}
	}
	for _, member := range required {
		known = known && len(numberOf(jwk.members, member)) == kind.size
	}
	alg, _ := jwk.members["alg"].(string)
	known = known && jwk.members["kty"] == any(kind.kty) && slices.Contains(kind.fits, alg)
	use, used := jwk.members["use"]
	known = known && (!used || use == any("sig")) && optionalName(jwk.members, "kid", 128)
	return known && only(jwk, append(required, "kty", "crv", "alg", "kid", "use")...)
}
