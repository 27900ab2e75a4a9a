package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// signer signs messages with an Ed25519 key.
type signer struct {
	iss, sub, aud, kid string
	lifetime           int64
	key                ed25519.PrivateKey
}

// bind returns the mqa of a message in the single form; a producer refuses what no consumer could verify.
func (m *message) bind() (map[string]any, error) {
	names := m.application()
	raw, err := m.headersInput(names)
	if err != nil || m.twins(names) {
		return nil, errNoEncoding
	}
	found := map[string]any{
		"v": 1, "dst": m.destination, "bod": nil, "key": nil, "hdr": names, "hds": digest(raw),
	}
	if m.body != nil {
		found["bod"] = digest(m.body)
	}
	if m.key != nil {
		found["key"] = digest(m.key)
	}
	return found, nil
}

func (s *signer) token(mqa map[string]any) (string, error) {
	now, jti := time.Now().Unix(), make([]byte, 16)
	_, _ = rand.Read(jti)
	payload, err := json.Marshal(map[string]any{
		"iss": s.iss, "sub": s.sub, "aud": s.aud, "iat": now, "exp": now + s.lifetime, "jti": b64(jti), "mqa": mqa,
	})
	if err != nil {
		return "", err
	}
	options := (&jose.SignerOptions{}).WithType("mqauth+jwt").WithHeader("kid", s.kid)
	made, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.EdDSA, Key: s.key}, options)
	if err != nil {
		return "", err
	}
	signed, err := made.Sign(payload)
	if err != nil {
		return "", err
	}
	return signed.CompactSerialize()
}

// seal adds the token of a message to its headers.
func (s *signer) seal(m *message) error {
	mqa, err := m.bind()
	if err != nil {
		return err
	}
	text, err := s.token(mqa)
	if err != nil {
		return err
	}
	m.attach(text)
	return nil
}

func (m *message) attach(text string) {
	if m.kafka() {
		m.headers = append(m.headers, pair{"mqauth-token", []byte(text)})
	} else {
		m.headers = append(m.headers, pair{"mqauth-token", text})
	}
}

// sealAll puts one signature on messages; the names that any of them has are covered in all.
func (s *signer) sealAll(messages []*message) error {
	var names []string
	for _, m := range messages {
		for _, name := range m.application() {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	hashes, parts := make([][]byte, len(messages)), make([][4][]byte, len(messages))
	for i, m := range messages {
		found, err := m.leafParts(names)
		if err != nil || m.twins(names) {
			return errNoEncoding
		}
		parts[i], hashes[i] = found, leafHash(found)
	}
	root, paths := tree(hashes)
	mqa := map[string]any{"v": 1, "tree": map[string]any{"root": b64(root), "size": len(messages)}}
	if len(names) > 0 {
		mqa["hdr"] = names
	}
	text, err := s.token(mqa)
	if err != nil {
		return err
	}
	for i, m := range messages {
		var twelve []byte
		for _, part := range parts[i] {
			twelve = append(twelve, short(part)...)
		}
		m.attach(fmt.Sprintf("%s~%d.%s", text, i, b64(append(twelve, paths[i]...))))
	}
	return nil
}
