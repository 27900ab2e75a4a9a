package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"math/big"
	"reflect"
	"slices"
	"unicode/utf8"

	"filippo.io/edwards25519"
)

// key is a JWK that can be used; revokedAt and expires are -1 where the JWK does not say.
type key struct {
	kid, alg           string
	public             crypto.PublicKey
	subjects           []string
	named              bool
	expires, revokedAt int64
	reason             string
}

var algorithms = []string{"EdDSA", "Ed25519", "ES256", "ES384", "PS256", "RS256"}

var errNoSet = errors.New("no JWK Set")

func control(c rune) bool { return c < 0x20 || c >= 0x7f && c <= 0x9f }

// name tells whether a value is a text of some characters, none of them a control character.
func name(value any, least, most int) (string, bool) {
	text, ok := value.(string)
	n := utf8.RuneCountInString(text)
	return text, ok && n >= least && n <= most && !slices.ContainsFunc([]rune(text), control)
}

// natural returns an integer from 0.
func natural(value any) (int64, bool) {
	n, ok := value.(number)
	if !ok {
		return 0, false
	}
	v, whole := n.whole()
	return v, whole && v >= 0
}

// readSet reads the text of a JWK Set (section 6), whatever its keys are.
func readSet(raw []byte) (*object, []any, error) {
	if len(raw) > 262144 {
		return nil, nil, errNoSet
	}
	found, err := parse(raw, 8, false)
	set, ok := found.(*object)
	if err != nil || !ok {
		return nil, nil, errNoSet
	}
	list, ok := set.members["keys"].([]any)
	if !ok {
		return nil, nil, errNoSet
	}
	return set, list, nil
}

// loadSet reads a JWK Set (section 6); uses are those that its keys may have beside sig.
func loadSet(raw []byte, uses ...any) (map[string]*key, error) {
	_, list, err := readSet(raw)
	if err != nil {
		return nil, err
	}
	keys, none := map[string]*key{}, map[string]bool{}
	for _, jwk := range list {
		members, ok := jwk.(*object)
		if !ok {
			continue
		}
		k, ok := loadKey(members.members, uses)
		if !ok {
			continue
		}
		if other, twice := keys[k.kid]; twice && !k.is(other) {
			none[k.kid] = true
		}
		keys[k.kid] = k
	}
	for kid := range none {
		delete(keys, kid)
	}
	return keys, nil
}

// is tells whether two keys under one kid are one: both names of Ed25519 are one algorithm.
func (k *key) is(other *key) bool {
	one, two := *k, *other
	if one.allows(two.alg) {
		one.alg = two.alg
	}
	return reflect.DeepEqual(one, two)
}

func loadKey(jwk map[string]any, uses []any) (*key, bool) {
	k := &key{expires: -1, revokedAt: -1}
	var ok bool
	if k.kid, ok = name(jwk["kid"], 1, 128); !ok {
		return nil, false
	}
	for _, member := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k"} {
		if _, private := jwk[member]; private {
			return nil, false
		}
	}
	if use, there := jwk["use"]; there && use != any("sig") && !slices.Contains(uses, use) {
		return nil, false
	}
	if operations, there := jwk["key_ops"]; there {
		list, _ := operations.([]any)
		if !slices.Contains(list, any("verify")) {
			return nil, false
		}
	}
	if !k.loadPublic(jwk) || !k.loadSubjects(jwk) {
		return nil, false
	}
	k.loadEnds(jwk)
	return k, true
}

func (k *key) loadSubjects(jwk map[string]any) bool {
	value, there := jwk["mqauth_sub"]
	if !there {
		return true
	}
	list, ok := value.([]any)
	k.named = true
	for _, item := range list {
		subject, good := name(item, 1, 256)
		ok = ok && good
		k.subjects = append(k.subjects, subject)
	}
	slices.Sort(k.subjects)
	k.subjects = slices.Compact(k.subjects)
	return ok
}

func (k *key) loadEnds(jwk map[string]any) {
	if value, there := jwk["exp"]; there {
		var ok bool
		if k.expires, ok = natural(value); !ok {
			k.expires, k.revokedAt = -1, 0
		}
	}
	if value, there := jwk["revoked"]; there {
		at, ok := int64(0), false
		if members, is := value.(*object); is {
			at, ok = natural(members.members["revoked_at"])
			k.reason, _ = members.members["reason"].(string)
		}
		if !ok {
			at = 0
		}
		if k.revokedAt < 0 {
			k.revokedAt = at
		}
	}
}

func numberOf(jwk map[string]any, member string) []byte {
	text, _ := jwk[member].(string)
	raw, ok := unb64(text)
	if !ok {
		return nil
	}
	return raw
}

func (k *key) loadPublic(jwk map[string]any) bool {
	fits := []string{}
	switch jwk["kty"] {
	case any("OKP"):
		x := numberOf(jwk, "x")
		if jwk["crv"] != any("Ed25519") || len(x) != 32 {
			return false
		}
		point, err := new(edwards25519.Point).SetBytes(x)
		small := err == nil && new(edwards25519.Point).MultByCofactor(point).Equal(edwards25519.NewIdentityPoint()) == 1
		if err != nil || small {
			return false
		}
		k.public, fits = ed25519.PublicKey(x), []string{"EdDSA", "Ed25519"}
	case any("EC"):
		curve, size := elliptic.P256(), 32
		fits = []string{"ES256"}
		if jwk["crv"] == any("P-384") {
			curve, size, fits = elliptic.P384(), 48, []string{"ES384"}
		} else if jwk["crv"] != any("P-256") {
			return false
		}
		x, y := numberOf(jwk, "x"), numberOf(jwk, "y")
		if len(x) != size || len(y) != size {
			return false
		}
		public, err := ecdsa.ParseUncompressedPublicKey(curve, append(append([]byte{4}, x...), y...))
		if err != nil {
			return false
		}
		k.public = public
	case any("RSA"):
		modulus, exponent := numberOf(jwk, "n"), numberOf(jwk, "e")
		if len(modulus) == 0 || len(exponent) == 0 || modulus[0] == 0 || exponent[0] == 0 {
			return false
		}
		n, e := new(big.Int).SetBytes(modulus), new(big.Int).SetBytes(exponent)
		if n.BitLen() < 2048 || n.BitLen() > 8192 || e.Bit(0) == 0 || e.BitLen() > 64 || e.Cmp(big.NewInt(65537)) < 0 {
			return false
		}
		// crypto/rsa has exponents of 31 bits: a larger one makes a key whose signatures do not hold here
		k.public, fits = &rsa.PublicKey{N: n, E: int(e.Int64())}, []string{"PS256", "RS256"}
	default:
		return false
	}
	alg, there := jwk["alg"]
	if !there {
		alg = fits[0]
	}
	text, _ := alg.(string)
	k.alg = text
	return slices.Contains(fits, text) && (there || jwk["kty"] != any("RSA"))
}

// allows tells whether a token may have an algorithm: the key's, and Ed25519 takes both names.
func (k *key) allows(alg string) bool {
	if _, edwards := k.public.(ed25519.PublicKey); edwards {
		return alg == "EdDSA" || alg == "Ed25519"
	}
	return alg == k.alg
}
