// Command bench_server is Go's side of the benchmarks: the service Bench, which the Rust benchmark server offers as
// well, so that one load generator measures both. Everything is raw bytes (serialize type 0).
//
//	Echo       answers its payload
//	Join       this connection gets broadcasts from now on; empty reply
//	Broadcast  payload "COUNT SIZE": COUNT pushes of SIZE bytes (at least 8) to every joined connection, path Bench,
//	           method Tick, each beginning with the wall clock in nanoseconds as 8 bytes big-endian; empty reply when
//	           all are written
package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"bothways.dev/interop/internal/peer"
	"github.com/smallnest/rpcx/server"
)

// Bench is the service.
type Bench struct {
	server *server.Server

	mu     sync.Mutex
	joined map[net.Conn]struct{}
}

// Echo answers its payload.
func (b *Bench) Echo(_ context.Context, args *[]byte, reply *[]byte) error {
	*reply = *args
	return nil
}

// Join adds the caller to those who get broadcasts.
func (b *Bench) Join(ctx context.Context, _ *[]byte, _ *[]byte) error {
	conn := ctx.Value(server.RemoteConnContextKey).(net.Conn)
	b.mu.Lock()
	b.joined[conn] = struct{}{}
	b.mu.Unlock()
	return nil
}

// HandleConnClose forgets the connection; rpcx calls it because Bench is added as a plugin too.
func (b *Bench) HandleConnClose(conn net.Conn) bool {
	b.forget(conn)
	return true
}

func (b *Bench) forget(conn net.Conn) {
	b.mu.Lock()
	delete(b.joined, conn)
	b.mu.Unlock()
}

// Broadcast pushes to all at once, each connection from a goroutine of its own: SendMessage blocks while a client's
// socket is full, and one slow client must not hold up the others. This is how a careful application does it, for
// rpcx has no broadcast of its own.
func (b *Bench) Broadcast(_ context.Context, args *[]byte, _ *[]byte) error {
	var count, size int
	if _, err := fmt.Sscanf(string(*args), "%d %d", &count, &size); err != nil {
		return fmt.Errorf("the payload is %q, not COUNT SIZE: %w", *args, err)
	}
	b.mu.Lock()
	conns := make([]net.Conn, 0, len(b.joined))
	for conn := range b.joined {
		conns = append(conns, conn)
	}
	b.mu.Unlock()

	var group sync.WaitGroup
	for _, conn := range conns {
		group.Go(func() {
			payload := make([]byte, max(size, 8))
			for range count {
				// The clock is read for each message and connection, just before it is sent: what a client measures
				// leaves out the wait for a turn.
				binary.BigEndian.PutUint64(payload, uint64(time.Now().UnixNano()))
				if err := b.server.SendMessage(conn, "Bench", "Tick", nil, payload); err != nil {
					b.forget(conn)
					return
				}
			}
		})
	}
	group.Wait()
	return nil
}

func main() {
	addr := flag.String("addr", "tcp@127.0.0.1:0", "where to serve, tcp@HOST:PORT or unix@/path")
	attached := flag.Bool("attached", false, "end when standard input does, so that a benchmark leaves no server behind")
	flag.Parse()
	peer.LogToStderr()

	network, address, ok := strings.Cut(*addr, "@")
	if !ok {
		fail(fmt.Errorf("-addr %q is not NETWORK@ADDRESS", *addr))
	}
	s := server.NewServer()
	bench := &Bench{server: s, joined: make(map[net.Conn]struct{})}
	s.Plugins.Add(bench)
	if err := s.RegisterName("Bench", bench, ""); err != nil {
		fail(err)
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		fail(err)
	}
	if *attached {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
	}
	fmt.Printf("LISTENING %s@%s\n", network, ln.Addr())
	fail(s.ServeListener(network, ln))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "bench_server:", err)
	os.Exit(1)
}
