package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

func (r *report) trees(folder string) {
	var found struct {
		Inputs []string `json:"leaf_inputs_hex"`
		Trees  []struct {
			Size    int
			RootHex string `json:"root_hex"`
			Paths   []struct {
				Index  int64
				Hashes []string `json:"hashes_hex"`
			}
		}
		Leaves []struct {
			Name    string
			Message json.RawMessage
			Hdr     []string
			Parts   []string `json:"parts_hex"`
			Hash    string   `json:"hash_hex"`
			Shorts  string   `json:"shorts_hex"`
		}
	}
	load(folder, "batch.json", &found)
	for _, t := range found.Trees {
		var hashes [][]byte
		for _, input := range found.Inputs[:t.Size] {
			hash := sha256.Sum256(append([]byte{0}, must(hex.DecodeString(input))...))
			hashes = append(hashes, hash[:])
		}
		root, paths := tree(hashes)
		r.check(hex.EncodeToString(root) == t.RootHex, "batch.json: the root of %d", t.Size)
		for _, p := range t.Paths {
			path := bytes.Join(each(p.Hashes), nil)
			holds := bytes.Equal(path, paths[p.Index]) && len(path) == 32*pathLength(p.Index, int64(t.Size))
			led := rootOf(hashes[p.Index], p.Index, int64(t.Size), path)
			r.check(holds && bytes.Equal(led, root), "batch.json: path %d of %d", p.Index, t.Size)
		}
	}
	for _, leaf := range found.Leaves {
		parts, err := must(fromForm(leaf.Message)).leafParts(leaf.Hdr)
		shorts := bytes.Join([][]byte{short(parts[0]), short(parts[1]), short(parts[2]), short(parts[3])}, nil)
		holds := err == nil && hex.EncodeToString(leafHash(parts)) == leaf.Hash && hex.EncodeToString(shorts) == leaf.Shorts
		for i, part := range each(leaf.Parts) {
			holds = holds && bytes.Equal(part, parts[i])
		}
		r.check(holds, "batch.json: leaf %s", leaf.Name)
	}
}

func each(texts []string) [][]byte {
	var found [][]byte
	for _, text := range texts {
		found = append(found, must(hex.DecodeString(text)))
	}
	return found
}
