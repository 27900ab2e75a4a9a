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

// takeApart is steps 2 and 3.
func takeApart(text, typ string) (*token, reason) {
	t := &token{text: text, jws: text}
	if jws, proof, there := strings.Cut(text, "~"); there {
		t.jws, t.proof = jws, &proof
	}
	segments := strings.Split(t.jws, ".")
	if len(segments) != 3 {
		return nil, "token_malformed"
	}
	var raw [3][]byte
	for i, segment := range segments {
		var ok bool
		if raw[i], ok = unb64(segment); !ok {
			return nil, "token_malformed"
		}
	}
	t.payload, t.signature = raw[1], raw[2]
	found, err := parse(raw[0], 4, false)
	header, ok := found.(*object)
	if err != nil || !ok {
		return nil, "token_malformed"
	}
	if t.kid, ok = name(header.members["kid"], 1, 128); !ok {
		return nil, "token_malformed"
	}
	if header.members["typ"] != any(typ) {
		return nil, "token_type"
	}
	for _, parameter := range header.names {
		if !slices.Contains([]string{"alg", "typ", "kid"}, parameter) {
			return nil, "header_forbidden"
		}
	}
	t.alg, _ = header.members["alg"].(string)
	if !slices.Contains(algorithms, t.alg) {
		return nil, "algorithm_forbidden"
	}
	return t, ""
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
}

// loadClaims is step 4.
func loadClaims(t *token) (*claims, reason) {
	found, err := parse(t.payload, 8, false)
	payload, ok := found.(*object)
	if err != nil || !ok {
		return nil, "claims_malformed"
	}
	required := []string{"iss", "sub", "aud", "iat", "exp", "jti", "mqa"}
	for _, member := range required {
		if _, there := payload.members[member]; !there {
			return nil, "claim_missing"
		}
	}
	c, good := readClaims(payload.members)
	extra := 0
	for _, member := range payload.names {
		if member != "nbf" && !slices.Contains(required, member) {
			extra += values(payload.members[member])
		}
	}
	if !good || extra > 64 {
		return nil, "claims_malformed"
	}
	if !c.readProof(t.proof) {
		return nil, "proof_invalid"
	}
	return c, ""
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
	c, ok := &claims{}, [7]bool{}
	c.iss, ok[0] = name(members["iss"], 1, 256)
	c.sub, ok[1] = name(members["sub"], 1, 256)
	c.aud, ok[2] = name(members["aud"], 1, 256)
	c.jti, ok[3] = name(members["jti"], 16, 128)
	c.iat, ok[4] = natural(members["iat"])
	c.exp, ok[5] = natural(members["exp"])
	c.mqa, ok[6] = readBinding(members["mqa"])
	if value, there := members["nbf"]; there {
		nbf, good := natural(value)
		if !good {
			return nil, false
		}
		c.nbf = &nbf
	}
	return c, !slices.Contains(ok[:], false)
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
