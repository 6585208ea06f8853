// Package peer is the Go rpcx server of the interop tests. It runs inside a test or as the program cmd/server.
package peer

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"bothways.dev/interop/internal/contract"
	"github.com/smallnest/rpcx/log"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/server"
)

// Config says where and how the server serves.
type Config struct {
	Network, Address string // rpcx's network name (tcp, unix, http, ws) and the address; port 0 picks a free one
	TLS              *tls.Config
	AuthToken        string        // if not empty, every other token is refused with contract.AuthRefusal
	MaxMessage       int           // largest body in bytes, 0 for no limit; rpcx keeps it for the whole process
	ReadTimeout      time.Duration // 0 for none

	// OnEvent hears of what is worth a line in a test's log. It is called from many goroutines.
	OnEvent func(event string, fields map[string]any)
}

// Peer is a running server.
type Peer struct {
	Server *server.Server

	network, address string
	served           chan error
	closing          sync.Once
}

// LogToStderr moves rpcx's own log, which it writes to stdout, out of the way of what the programs print there.
func LogToStderr() {
	log.SetLogger(log.NewDefaultLogger(os.Stderr, "", 0, log.LvError))
}

// Start listens, serves in the background and returns when clients can connect.
func Start(config Config) (*Peer, error) {
	event := config.OnEvent
	if event == nil {
		event = func(string, map[string]any) {}
	}
	var options []server.OptionFn
	if config.TLS != nil {
		options = append(options, server.WithTLSConfig(config.TLS))
	}
	if config.ReadTimeout > 0 {
		options = append(options, server.WithReadTimeout(config.ReadTimeout))
	}
	if config.MaxMessage > 0 {
		// A server option for this came only after v1.9.4; the variable is what it would set.
		protocol.MaxMessageLength = config.MaxMessage
	}
	s := server.NewServer(options...)
	s.HandleServiceError = func(err error) { event("error", map[string]any{"text": err.Error()}) }
	if config.AuthToken != "" {
		s.AuthFunc = func(_ context.Context, _ *protocol.Message, token string) error {
			if token == config.AuthToken {
				return nil
			}
			event("auth-refused", map[string]any{"token": token})
			return errors.New(contract.AuthRefusal)
		}
	}
	s.Plugins.Add(&watcher{event: event})
	if err := register(s, event); err != nil {
		return nil, err
	}

	p := &Peer{Server: s, network: config.Network, served: make(chan error, 1)}
	if err := p.listen(config); err != nil {
		return nil, err
	}
	return p, nil
}

// Addr is where the server listens, in rpcx's form, such as tcp@127.0.0.1:8972.
func (p *Peer) Addr() string { return p.network + "@" + p.address }

// Served yields the error with which serving ended.
func (p *Peer) Served() <-chan error { return p.served }

// Close closes the listener and every connection at once.
func (p *Peer) Close() {
	p.closing.Do(func() { _ = p.Server.Close() })
}

func (p *Peer) listen(config Config) error {
	if config.Network == "http" || config.Network == "ws" || config.Network == "wss" {
		return p.listenHTTP(config)
	}
	ln, err := net.Listen(config.Network, config.Address)
	if err != nil {
		return err
	}
	p.address = ln.Addr().String()
	if config.TLS != nil {
		ln = tls.NewListener(ln, config.TLS)
	}
	go func() { p.served <- p.Server.ServeListener(config.Network, ln) }()
	select {
	case <-p.Server.Started:
		return nil
	case err := <-p.served:
		return fmt.Errorf("serving ended at once: %w", err)
	}
}

// listenHTTP serves http and ws, for which rpcx takes no listener and never says that it has started: the port is
// picked beforehand, and a connection tells when it is open.
func (p *Peer) listenHTTP(config Config) error {
	ln, err := net.Listen("tcp", config.Address)
	if err != nil {
		return err
	}
	p.address = ln.Addr().String()
	ln.Close()
	go func() { p.served <- p.Server.Serve(config.Network, p.address) }()
	for deadline := time.Now().Add(5 * time.Second); ; {
		conn, err := net.Dial("tcp", p.address)
		if err == nil {
			return conn.Close()
		}
		select {
		case err := <-p.served:
			return fmt.Errorf("serving ended at once: %w", err)
		default:
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// watcher reports connections and heartbeats, which no service sees.
type watcher struct {
	event func(string, map[string]any)
}

// HandleConnAccept reports a connection. Behind rpcx's multiplexer that is when its first byte has come.
func (w *watcher) HandleConnAccept(conn net.Conn) (net.Conn, bool) {
	w.event("accepted", map[string]any{"remote": conn.RemoteAddr().String()})
	return conn, true
}

// HandleConnClose reports the end of a connection. When the server is closed rpcx calls it twice for each.
func (w *watcher) HandleConnClose(conn net.Conn) bool {
	w.event("closed", map[string]any{"remote": conn.RemoteAddr().String()})
	return true
}

// HeartbeatRequest reports a heartbeat with all that distinguishes one, as it came in.
func (w *watcher) HeartbeatRequest(_ context.Context, req *protocol.Message) error {
	w.event("heartbeat", map[string]any{
		"seq":       req.Seq(),
		"serialize": req.SerializeType(),
		"path":      req.ServicePath,
		"method":    req.ServiceMethod,
		"metadata":  req.Metadata,
		"payload":   hex.EncodeToString(req.Payload),
	})
	return nil
}
