// Command server is a Go rpcx server for the interop tests: the services of README.md, one line when it serves, and
// one line of JSON for each event. It ends when its standard input does, so that it never outlives the test that
// started it.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"bothways.dev/interop/internal/peer"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func run() error {
	addr := flag.String("addr", "tcp@127.0.0.1:0", "where to serve, NETWORK@ADDRESS; port 0 picks a free one")
	cert := flag.String("tls-cert", "", "PEM file of the certificate; serves TLS")
	key := flag.String("tls-key", "", "PEM file of its key")
	clientCA := flag.String("tls-client-ca", "", "PEM file of the authority of client certificates; clients must show one")
	auth := flag.String("auth", "", "refuse every token but this one")
	maxMessage := flag.Int("max-message", 0, "largest frame body in bytes, 0 for no limit")
	readTimeout := flag.Duration("read-timeout", 0, "close a connection that sends nothing for this long, 0 for never")
	flag.Parse()
	peer.LogToStderr()

	network, address, ok := strings.Cut(*addr, "@")
	if !ok {
		return fmt.Errorf("-addr %q has no network", *addr)
	}
	tlsConfig, err := peer.ServerTLS(*cert, *key, *clientCA)
	if err != nil {
		return err
	}
	out := &lines{}
	p, err := peer.Start(peer.Config{
		Network:     network,
		Address:     address,
		TLS:         tlsConfig,
		AuthToken:   *auth,
		MaxMessage:  *maxMessage,
		ReadTimeout: *readTimeout,
		OnEvent:     out.event,
	})
	if err != nil {
		return err
	}
	defer p.Close()
	out.listening(p.Addr())

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	orphaned := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(orphaned)
	}()
	select {
	case <-stop:
	case <-orphaned:
	case err := <-p.Served():
		return err
	}
	return nil
}

// lines writes whole lines to stdout. It holds events back until the line that says where the server listens is out,
// because that one is promised to be the first.
type lines struct {
	mu     sync.Mutex
	opened bool
	early  [][]byte
}

func (l *lines) listening(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Println("LISTENING", addr)
	l.opened = true
	for _, line := range l.early {
		os.Stdout.Write(line)
	}
}

func (l *lines) event(event string, fields map[string]any) {
	object := map[string]any{"event": event}
	for k, v := range fields {
		object[k] = v
	}
	line, err := json.Marshal(object)
	if err != nil {
		return
	}
	line = append(line, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.opened {
		l.early = append(l.early, line)
		return
	}
	os.Stdout.Write(line)
}
