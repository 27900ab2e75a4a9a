package main

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// reason is why a message is rejected; "" is none.
type reason = string

// token is a JWS that was taken apart, and not believed yet.
type token struct {
	text, jws, kid, alg string
	payload, signature  []byte
	proof               *string
}

// takeApart is steps 2 and 3 of the direct form.
func takeApart(text, typ string) (*token, reason) {
	jws, proof, there := strings.Cut(text, "~")
	t, header, r := segments(jws)
	if r != "" {
		return nil, r
	}
	t.text = text
	if there {
		t.proof = &proof
	}
	var ok bool
	if t.kid, ok = name(header.members["kid"], 1, 128); !ok {
		return nil, "token_malformed"
	}
	return t, t.judgeHeader(header, typ, algorithms, "alg", "typ", "kid")
}

// segments is what step 2 asks of any JWS: three canonical segments, the header an object in strict JSON.
func segments(jws string) (*token, *object, reason) {
	parts := strings.Split(jws, ".")
	if len(parts) != 3 {
		return nil, nil, "token_malformed"
	}
	var raw [3][]byte
	for i, part := range parts {
		var ok bool
		if raw[i], ok = unb64(part); !ok {
			return nil, nil, "token_malformed"
		}
	}
	found, err := parse(raw[0], 4, false)
	header, ok := found.(*object)
	if err != nil || !ok {
		return nil, nil, "token_malformed"
	}
	return &token{text: jws, jws: jws, payload: raw[1], signature: raw[2]}, header, ""
}

// judgeHeader is step 3: the type, no other parameter, and the algorithm, in this order.
func (t *token) judgeHeader(header *object, typ string, fits []string, parameters ...string) reason {
	if header.members["typ"] != any(typ) {
		return "token_type"
	}
	if !only(header, parameters...) {
		return "header_forbidden"
	}
	t.alg, _ = header.members["alg"].(string)
	if !slices.Contains(fits, t.alg) {
		return "algorithm_forbidden"
	}
	return ""
}

// holds is step 7. go-jose takes a PSS salt of any size and has no name Ed25519, so these two are checked here.
func (t *token) holds(k *key) bool {
	data := []byte(t.jws[:strings.LastIndexByte(t.jws, '.')])
	switch t.alg {
	case "Ed25519":
		return ed25519.Verify(k.public.(ed25519.PublicKey), data, t.signature)
	case "PS256":
		hashed := sha256.Sum256(data)
		salt := &rsa.PSSOptions{SaltLength: 32, Hash: crypto.SHA256}
		return rsa.VerifyPSS(k.public.(*rsa.PublicKey), crypto.SHA256, hashed[:], t.signature, salt) == nil
	}
	signed, err := jose.ParseSigned(t.jws, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(t.alg)})
	if err != nil {
		return false
	}
	_, err = signed.Verify(k.public)
	return err == nil
}

// binding is mqa (section 3); nil is null, and size 0 the single form.
type binding struct {
	dst      string
	bod, key *string
	hdr      []string
	hds      string
	root     []byte
	size     int64
}

// claims are those of a message's token.
type claims struct {
	iss, sub, aud, jti string
	iat, exp           int64
	nbf                *int64
	mqa                *binding
	index              int64
	path               []byte
	wit                *identity
	wth                string
}

// loadClaims is step 4 of the direct form.
func loadClaims(t *token) (*claims, reason) {
	payload, r := t.claimsWith("iss", "sub")
	if r != "" {
		return nil, r
	}
	c, good := readClaims(payload.members)
	iss, first := name(payload.members["iss"], 1, 256)
	sub, second := name(payload.members["sub"], 1, 256)
	if !good || !first || !second || others(payload, append(common, "iss", "sub")...) > 64 {
		return nil, "claims_malformed"
	}
	c.iss, c.sub = iss, sub
	if !c.readProof(t.proof) {
		return nil, "proof_invalid"
	}
	return c, ""
}

// common are the claims of a message's token in both forms; nbf alone may be left out.
var common = []string{"aud", "iat", "exp", "nbf", "jti", "mqa"}

// claimsWith returns the payload once nothing is missing in it: of what both forms ask for, and of these.
func (t *token) claimsWith(required ...string) (*object, reason) {
	found, err := parse(t.payload, 8, false)
	payload, ok := found.(*object)
	if err != nil || !ok {
		return nil, "claims_malformed"
	}
	for _, member := range append(required, common...) {
		if _, there := payload.members[member]; !there && member != "nbf" {
			return nil, "claim_missing"
		}
	}
	return payload, ""
}

// others counts the values of the claims that this page does not name.
func others(payload *object, known ...string) int {
	n := 0
	for _, member := range payload.names {
		if !slices.Contains(known, member) {
			n += values(payload.members[member])
		}
	}
	return n
}

func values(value any) int {
	n := 1
	switch v := value.(type) {
	case []any:
		for _, item := range v {
			n += values(item)
		}
	case *object:
		for _, item := range v.members {
			n += values(item)
		}
	}
	return n
}

func readClaims(members map[string]any) (*claims, bool) {
	c, ok := &claims{}, [5]bool{}
	c.aud, ok[0] = name(members["aud"], 1, 256)
	c.jti, ok[1] = name(members["jti"], 16, 128)
	c.iat, ok[2] = natural(members["iat"])
	c.exp, ok[3] = natural(members["exp"])
	c.mqa, ok[4] = readBinding(members["mqa"])
	nbf, good := optionalTime(members, "nbf")
	c.nbf = nbf
	return c, good && !slices.Contains(ok[:], false)
}

// optionalTime returns a time that may be left out, nil where it is.
func optionalTime(members map[string]any, claim string) (*int64, bool) {
	value, there := members[claim]
	if !there {
		return nil, true
	}
	found, ok := natural(value)
	return &found, ok
}

func readBinding(value any) (*binding, bool) {
	mqa, ok := value.(*object)
	if !ok || mqa.members["v"] != any(number("1")) {
		return nil, false
	}
	names := slices.Sorted(slices.Values(mqa.names))
	if _, batch := mqa.members["tree"]; batch {
		return readTree(mqa, names)
	}
	if !slices.Equal(names, []string{"bod", "dst", "hdr", "hds", "key", "v"}) {
		return nil, false
	}
	b, good := &binding{}, [5]bool{}
	b.dst, good[0] = mqa.members["dst"].(string)
	if good[0] {
		_, good[0] = placeNames(b.dst)
	}
	b.bod, good[1] = digestOrNull(mqa.members["bod"])
	b.key, good[2] = digestOrNull(mqa.members["key"])
	b.hdr, good[3] = headerNames(mqa.members["hdr"])
	b.hds, good[4] = digestText(mqa.members["hds"])
	return b, !slices.Contains(good[:], false)
}

func readTree(mqa *object, names []string) (*binding, bool) {
	b, ok := &binding{}, slices.Equal(names, []string{"tree", "v"})
	if slices.Equal(names, []string{"hdr", "tree", "v"}) {
		b.hdr, ok = headerNames(mqa.members["hdr"])
		ok = ok && len(b.hdr) > 0
	}
	tree, is := mqa.members["tree"].(*object)
	if !ok || !is || len(tree.names) != 2 {
		return nil, false
	}
	root, ok := digestText(tree.members["root"])
	if !ok {
		return nil, false
	}
	b.root, _ = unb64(root)
	b.size, ok = natural(tree.members["size"])
	return b, ok && b.size >= 1 && b.size <= 1024
}

func headerNames(value any) ([]string, bool) {
	list, ok := value.([]any)
	names := []string{}
	for _, item := range list {
		text, is := item.(string)
		ok = ok && is && !slices.Contains(names, text)
		names = append(names, text)
	}
	return names, ok
}

func digestText(value any) (string, bool) {
	text, ok := value.(string)
	raw, canonical := unb64(text)
	return text, ok && canonical && len(raw) == 32
}

func digestOrNull(value any) (*string, bool) {
	if value == nil {
		return nil, true
	}
	text, ok := digestText(value)
	return &text, ok
}

var proofForm = regexp.MustCompile(`\A(0|[1-9][0-9]{0,3})\.([A-Za-z0-9_-]+)\z`)

// readProof reads what stands behind the tilde (section 13).
func (c *claims) readProof(proof *string) bool {
	if c.mqa.size == 0 || proof == nil {
		return c.mqa.size == 0 && proof == nil
	}
	found := proofForm.FindStringSubmatch(*proof)
	if found == nil {
		return false
	}
	c.index, _ = strconv.ParseInt(found[1], 10, 64)
	var ok bool
	c.path, ok = unb64(found[2])
	return ok && c.index < c.mqa.size && len(c.path) == 12+32*pathLength(c.index, c.mqa.size)
}

func pathLength(index, size int64) int {
	n := 0
	for last := size - 1; last > 0; index, last = index/2, last/2 {
		if index%2 == 1 || index < last {
			n++
		}
	}
	return n
}
