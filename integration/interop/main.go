// A verifier and signer of wire profile 1, written from docs/wire-profile.md alone.
package main

import (
	"bufio"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
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
		for _, m := range signed(os.Args[2:8]) {
			text, _, _ := m.carried("mqauth-token")
			fmt.Println(text)
		}
	case "sign-and-send":
		send(os.Args[8], signed(os.Args[2:8]))
	case "send":
		send(os.Args[2], messages())
	case "receive":
		receive(os.Args[2], os.Args[3], must(strconv.Atoi(os.Args[4])))
	case "bury":
		bury(os.Args[2], os.Args[3], os.Args[4], os.Args[5], must(strconv.Atoi(os.Args[6])))
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

func messages() []*message {
	var found []*message
	for _, line := range lines() {
		found = append(found, must(fromForm(line)))
	}
	return found
}

// signed returns the messages on standard input with their tokens; a batch has one signature.
func signed(arguments []string) []*message {
	key := ed25519.NewKeyFromSeed(must(hex.DecodeString(arguments[0])))
	s := &signer{iss: arguments[2], sub: arguments[3], aud: arguments[4], kid: arguments[1], lifetime: 600, key: key}
	found := messages()
	if arguments[5] == "batch" {
		if err := s.sealAll(found); err != nil {
			panic(err)
		}
		return found
	}
	for _, m := range found {
		if err := s.seal(m); err != nil {
			panic(err)
		}
	}
	return found
}
