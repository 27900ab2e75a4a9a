// A verifier and signer of wire profile 1, written from docs/wire-profile.md alone.
package main

import (
	"fmt"
	"os"
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
	}
}
