// Command bidirectional_server is the example of rpcx's documentation for messages from the server: a client that has
// called Arith.Mul gets one every second from then on. Bothways has the same pair of programs in Rust, and either
// server works with either client.
//
//	bidirectional_server [-interval 1s] [ADDRESS]
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"time"

	"bothways.dev/interop/internal/contract"
	"bothways.dev/interop/internal/peer"
	"github.com/smallnest/rpcx/server"
)

// Arith pushes to every client that has called it.
type Arith struct {
	server   *server.Server
	interval time.Duration
}

// Mul answers A*B and starts the messages.
func (a *Arith) Mul(ctx context.Context, args *contract.Args, reply *contract.Reply) error {
	conn := ctx.Value(server.RemoteConnContextKey).(net.Conn)
	reply.C = args.A * args.B
	go a.push(conn)
	return nil
}

func (a *Arith) push(conn net.Conn) {
	for {
		time.Sleep(a.interval)
		err := a.server.SendMessage(conn, contract.PushPath, contract.PushMethod, nil, []byte(contract.PushPayload))
		if err != nil {
			fmt.Fprintf(os.Stderr, "the client at %s has gone: %v\n", conn.RemoteAddr(), err)
			return
		}
	}
}

func main() {
	interval := flag.Duration("interval", time.Second, "time between two messages")
	flag.Parse()
	peer.LogToStderr()
	address := "127.0.0.1:8972"
	if flag.NArg() > 0 {
		address = flag.Arg(0)
	}

	s := server.NewServer()
	if err := s.Register(&Arith{server: s, interval: *interval}, ""); err != nil {
		fail(err)
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		fail(err)
	}
	// The same line as the other servers print, so that a test can have a free port.
	fmt.Printf("LISTENING tcp@%s\n", ln.Addr())
	fail(s.ServeListener("tcp", ln))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "bidirectional_server:", err)
	os.Exit(1)
}
