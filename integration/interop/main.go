// A verifier and signer of wire profile 1, written from docs/wire-profile.md alone.
package main

import (
	"bufio"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

func main() {
	switch os.Args[1] {
	case "vectors":
		found := vectors(os.Args[2])
		for _, failed := range found.failed {
			fmt.Println(failed)
		}
		fmt.Printf("%d passed, %d failed\n", found.passed, len(found.failed))
		if len(found.failed) > 0 {
			os.Exit(1)
		}
	case "verify":
		verifyLines()
	case "sign":
		key := ed25519.NewKeyFromSeed(must(hex.DecodeString(os.Args[2])))
		s := &signer{iss: os.Args[4], sub: os.Args[5], aud: os.Args[6], kid: os.Args[3], lifetime: 600, key: key}
		s.signLines(os.Args[7] == "batch")
	}
}

func lines() [][]byte {
	var found [][]byte
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return found
		}
		found = append(found, line)
	}
}

// verifyLines judges the messages on standard input, by the consumer on its first line, and prints a verdict for each.
func verifyLines() {
	read := lines()
	var form consumerForm
	if err := json.Unmarshal(read[0], &form); err != nil {
		panic(err)
	}
	c := form.consumer()
	for _, line := range read[1:] {
		found := c.deliver(&vector{Message: line}, time.Now().Unix())
		fmt.Println(strings.TrimSpace(found.verdict + " " + found.reason + found.cause))
	}
}

// signLines prints the token of each message on standard input; a batch has one signature.
func (s *signer) signLines(batch bool) {
	var messages []*message
	for _, line := range lines() {
		m := must(fromForm(line))
		messages = append(messages, m)
		if !batch && s.seal(m) != nil {
			fmt.Println("refused")
			return
		}
	}
	if batch && s.sealAll(messages) != nil {
		fmt.Println("refused")
		return
	}
	for _, m := range messages {
		text, _, _ := m.carried("mqauth-token")
		fmt.Println(text)
	}
}
