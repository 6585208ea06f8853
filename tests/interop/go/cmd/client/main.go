// Command client runs one case of the interop tests, or all of them, as a Go rpcx client against a server. It prints
// one line of JSON for each case and exits with 1 if one has failed.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"bothways.dev/interop/internal/cases"
	"bothways.dev/interop/internal/peer"
)

func main() {
	addr := flag.String("addr", "", "the server, NETWORK@ADDRESS, such as tcp@127.0.0.1:8972")
	name := flag.String("case", "", "the case; \"all\" runs those that need nothing but a server, \"list\" lists every one")
	auth := flag.String("auth", "", "token to send with every call")
	ca := flag.String("tls-ca", "", "PEM file of the authority of the server's certificate; connects by TLS")
	serverName := flag.String("tls-name", "localhost", "name that the server's certificate must have")
	cert := flag.String("tls-cert", "", "PEM file of a client certificate")
	key := flag.String("tls-key", "", "PEM file of its key")
	n := flag.Int("n", 0, "how many calls or pushes, 0 for the case's own number")
	size := flag.Int("size", 0, "bytes of each payload, 0 for the case's own size")
	kick := flag.Bool("kick", false, "case loss: ask the server to close the connection, do not wait for it to go away")
	flag.Parse()
	peer.LogToStderr()

	if *name == "list" {
		for _, c := range cases.All() {
			fmt.Printf("%-18s %s\n", c.Name, strings.Join(nonEmpty(c.About, c.Alone, c.NotGo), "; "))
		}
		return
	}
	network, address, ok := strings.Cut(*addr, "@")
	if !ok {
		usage("-addr %q is not NETWORK@ADDRESS", *addr)
	}
	tlsConfig, err := peer.ClientTLS(*ca, *serverName, *cert, *key)
	if err != nil {
		usage("%v", err)
	}
	chosen := choose(*name)
	if len(chosen) == 0 {
		usage("no case %q; -case list lists them", *name)
	}

	failed := false
	for _, c := range chosen {
		env := &cases.Env{
			Network: network, Address: address, TLS: tlsConfig, Auth: *auth,
			N: *n, Size: *size, Kick: *kick,
			Note: func(state string, fields map[string]any) {
				print(fields, map[string]any{"case": c.Name, "state": state})
			},
		}
		start := time.Now()
		fields, err := c.Run(env)
		result := map[string]any{"case": c.Name, "ok": err == nil, "took_ms": time.Since(start).Milliseconds()}
		if err != nil {
			failed = true
			result["error"] = err.Error()
		}
		print(fields, result)
	}
	if failed {
		os.Exit(1)
	}
}

func choose(name string) []cases.Case {
	if name != "all" {
		c, ok := cases.Find(name)
		if !ok {
			return nil
		}
		return []cases.Case{c}
	}
	var chosen []cases.Case
	for _, c := range cases.All() {
		if c.Alone == "" {
			chosen = append(chosen, c)
		}
	}
	return chosen
}

// print writes both maps as one line of JSON; what the program itself says wins.
func print(fields, own map[string]any) {
	line := make(map[string]any, len(fields)+len(own))
	for k, v := range fields {
		line[k] = v
	}
	for k, v := range own {
		line[k] = v
	}
	text, err := json.Marshal(line)
	if err != nil {
		panic(err) // every field is a string, a number or a map of strings
	}
	fmt.Println(string(text))
}

func nonEmpty(texts ...string) []string {
	var kept []string
	for _, t := range texts {
		if t != "" {
			kept = append(kept, t)
		}
	}
	return kept
}

func usage(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "client: "+format+"\n", args...)
	os.Exit(2)
}
