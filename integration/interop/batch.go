package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
)

func octets(tag string, raw []byte, there bool) []byte {
	if !there {
		return []byte(tag + "n")
	}
	return append(binary.BigEndian.AppendUint64([]byte(tag+"v"), uint64(len(raw))), raw...)
}

// leafParts returns the four parts of a leaf (section 13).
func (m *message) leafParts(names []string) ([4][]byte, error) {
	headers, err := m.headersInput(names)
	return [4][]byte{
		append([]byte("mqauth-leaf-1"), octets("d", []byte(m.destination), true)...),
		octets("k", m.key, m.kafka() && m.key != nil),
		octets("b", m.body, m.body != nil),
		octets("h", headers, true),
	}, err
}

func leafHash(parts [4][]byte) []byte {
	data := []byte{0}
	for _, part := range parts[:3] {
		digest := sha256.Sum256(part)
		data = append(data, digest[:]...)
	}
	found := sha256.Sum256(append(data, parts[3]...))
	return found[:]
}

func nodeHash(left, right []byte) []byte {
	found := sha256.Sum256(bytes.Join([][]byte{{1}, left, right}, nil))
	return found[:]
}

func rootOf(node []byte, index, size int64, path []byte) []byte {
	for last := size - 1; last > 0; index, last = index/2, last/2 {
		if index%2 == 0 && index >= last {
			continue
		}
		sibling := path[:32]
		path = path[32:]
		if index%2 == 1 {
			node = nodeHash(sibling, node)
		} else {
			node = nodeHash(node, sibling)
		}
	}
	return node
}

var mismatches = []reason{"destination_mismatch", "record_key_mismatch", "body_mismatch", "headers_mismatch"}

func short(part []byte) []byte {
	found := sha256.Sum256(part)
	return found[:3]
}

// proves is step 11 of a message in a batch.
func (c *claims) proves(m *message) reason {
	parts, err := m.leafParts(c.mqa.hdr)
	if err != nil || m.twins(c.mqa.hdr) {
		return "headers_mismatch"
	}
	if bytes.Equal(rootOf(leafHash(parts), c.index, c.mqa.size, c.path[12:]), c.mqa.root) {
		return ""
	}
	for i, mismatch := range mismatches {
		if !bytes.Equal(short(parts[i]), c.path[3*i:3*i+3]) {
			return mismatch
		}
	}
	return "proof_invalid"
}

// tree returns the root over the hashes of leaves, and the path of each.
func tree(leaves [][]byte) ([]byte, [][]byte) {
	paths, places := make([][]byte, len(leaves)), make([]int, len(leaves))
	for i := range places {
		places[i] = i
	}
	level := leaves
	for len(level) > 1 {
		for leaf, place := range places {
			if sibling := place ^ 1; sibling < len(level) {
				paths[leaf] = append(paths[leaf], level[sibling]...)
			}
			places[leaf] = place / 2
		}
		var next [][]byte
		for i := 0; i+1 < len(level); i += 2 {
			next = append(next, nodeHash(level[i], level[i+1]))
		}
		if len(level)%2 == 1 {
			next = append(next, level[len(level)-1])
		}
		level = next
	}
	return level[0], paths
}
