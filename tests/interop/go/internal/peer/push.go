package peer

import (
	"context"
	"net"
	"strconv"
	"time"

	"bothways.dev/interop/internal/contract"
	"github.com/smallnest/rpcx/server"
)

// Push sends messages to its callers that they have not asked for one by one.
type Push struct {
	server *server.Server
	event  func(string, map[string]any)
}

// Start answers A and pushes, from another goroutine, A messages of B bytes numbered from 0.
func (p *Push) Start(ctx context.Context, args *contract.Args, reply *contract.Reply) error {
	conn := ctx.Value(server.RemoteConnContextKey).(net.Conn)
	go func(count, size int) {
		for n := range count {
			metadata := map[string]string{"n": strconv.Itoa(n)}
			payload := contract.NumberedPayload(uint64(n), size)
			err := p.server.SendMessage(conn, contract.PushPath, contract.PushMethod, metadata, payload)
			if err != nil {
				p.event("push-failed", map[string]any{"sent": n, "text": err.Error()})
				return
			}
		}
		p.event("pushed", map[string]any{"sent": count})
	}(args.A, args.B)
	reply.C = args.A
	return nil
}

// Tick answers A*B and pushes contract.PushPayload every B milliseconds until the connection fails, as the server of
// the documentation's example does every second.
func (p *Push) Tick(ctx context.Context, args *contract.Args, reply *contract.Reply) error {
	conn := ctx.Value(server.RemoteConnContextKey).(net.Conn)
	go func(interval time.Duration) {
		for sent := 0; ; sent++ {
			time.Sleep(interval)
			err := p.server.SendMessage(conn, contract.PushPath, contract.PushMethod, nil, []byte(contract.PushPayload))
			if err != nil {
				p.event("push-failed", map[string]any{"sent": sent, "text": err.Error()})
				return
			}
		}
	}(time.Duration(max(args.B, 1)) * time.Millisecond)
	reply.C = args.A * args.B
	return nil
}

// Then pushes contract.PushPayload before it answers A*B, so that the push is on the wire before the reply.
func (p *Push) Then(ctx context.Context, args *contract.Args, reply *contract.Reply) error {
	conn := ctx.Value(server.RemoteConnContextKey).(net.Conn)
	reply.C = args.A * args.B
	return p.server.SendMessage(conn, contract.PushPath, contract.PushMethod, nil, []byte(contract.PushPayload))
}
