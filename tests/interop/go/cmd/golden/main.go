// Command golden writes the files of tests/interop/golden. Run it in the module's folder after a change of what is
// recorded or of rpcx's version, and read the difference: it is a change of the wire.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"bothways.dev/interop/internal/golden"
	"bothways.dev/interop/internal/peer"
)

func main() {
	out := flag.String("out", "../golden", "folder for the files")
	flag.Parse()
	peer.LogToStderr()
	if err := run(*out); err != nil {
		fmt.Fprintln(os.Stderr, "golden:", err)
		os.Exit(1)
	}
}

func run(out string) error {
	files, err := golden.Record()
	if err != nil {
		return err
	}
	// A file that is no longer recorded must not stay behind and look like a fixed point.
	old, err := filepath.Glob(filepath.Join(out, "*.hex"))
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(out, f.Name+".hex"), []byte(f.String()), 0o644); err != nil {
			return err
		}
	}
	fmt.Printf("%d files in %s\n", len(files), out)
	return nil
}
