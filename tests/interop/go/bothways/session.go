package bothways

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
)

// Session is what the server keeps of this application across its connections. Set the exported fields, then Run it.
type Session struct {
	Token    string                                                                 // goes with every call, if not empty
	Push     func(*protocol.Message)                                                // each push once and in order; must not wait for the server
	Handlers map[string]func(ctx context.Context, m *protocol.Message) (any, error) // by Service.Method; each call in a goroutine
	Changed  func(lost string)                                                      // connected; if lost is not empty, why the session before is gone

	client  atomic.Pointer[client.Client]
	known   map[string]string // number and secret of the session
	handled uint64            // every push up to this offset is handled
	calls   sync.Map          // by id, so that a call that comes again after a lost connection runs once
}

type call struct {
	once   sync.Once
	ctx    context.Context
	cancel context.CancelFunc
	value  any
	err    error
}

// Run connects, and connects again whenever the connection is lost, until the context is over.
func (s *Session) Run(ctx context.Context, network, address string) {
	for ; ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		option := client.DefaultOption
		option.BidirectionalBlock = true // or rpcx drops what finds the channel full
		c, messages := client.NewClient(option), make(chan *protocol.Message, 4096)
		c.RegisterServerMessageChan(messages)
		if c.Connect(network, address) == nil && s.enable(ctx, c) == nil {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			s.listen(c, messages)
			stop()
		}
		c.Close()
	}
}

// Client is the connection of now, for calls of the application's own; nil before the first.
func (s *Session) Client() *client.Client { return s.client.Load() }

// Call calls the server on the connection of now.
func (s *Session) Call(ctx context.Context, path, method string, args, reply any) error {
	if c := s.Client(); c != nil {
		return c.Call(s.with(ctx), path, method, args, reply)
	}
	return client.ErrShutdown
}

// enable gets a session, or takes the one that is there to this connection: the first thing that is said on it.
func (s *Session) enable(ctx context.Context, c *client.Client) error {
	handles := strings.Join(slices.Sorted(maps.Keys(s.Handlers)), ",") // so that the server asks for nothing else
	said, answer, err := map[string]string{"_bw.fns": handles}, map[string]string(nil), error(nil)
	if s.known == nil {
		answer, err = Enable(with(s.with(ctx), said), c)
	} else {
		said["_bw.rcv"] = fmt.Sprint(s.handled) // what it has received it has handled; and it knows what a Skip is
		answer, err = Resume(with(s.with(ctx), said), c, s.known, s.handled)
	}
	if err != nil {
		return err
	}
	if s.known = answer; answer["_bw.res"] == "" { // a new session begins behind this offset
		s.handled, _ = strconv.ParseUint(answer["_bw.off"], 10, 64)
	}
	s.client.Store(c)
	if s.Changed != nil {
		s.Changed(answer["_bw.why"])
	}
	return nil
}

// listen takes what the server sends, until the connection is lost.
func (s *Session) listen(c *client.Client, messages <-chan *protocol.Message) {
	var running sync.Map // calls by their number on this connection
	acked := s.handled
	for m := range messages {
		switch number := m.Metadata["_bw.call"]; {
		case m.MessageStatusType() == protocol.Error: // rpcx's own word for a lost connection
			return
		case m.ServicePath == "_bothways" && m.ServiceMethod == "Cancel":
			if known, ok := running.LoadAndDelete(m.Metadata["_bw.seq"]); ok {
				known.(*call).cancel()
			}
			if known, ok := s.calls.Load(m.Metadata["_bw.id"]); ok { // of a connection before
				known.(*call).cancel()
			}
		case m.ServicePath == "_bothways" && m.ServiceMethod == "Skip": // what had this offset is too old to come
			s.handled = max(s.handled, Offset(m))
		case m.ServicePath == "_bothways" && m.ServiceMethod == "Gap": // _bw.missed pushes were dropped: it was too slow
		case number != "":
			id := cmp.Or(m.Metadata["_bw.id"], fmt.Sprintf("%p/%s", c, number))
			millis, _ := strconv.Atoi(m.Metadata["__ServerTimeout"])
			limit := time.Duration(cmp.Or(millis, 30_000)) * time.Millisecond
			fresh := new(call)
			fresh.ctx, fresh.cancel = context.WithTimeout(context.Background(), limit)
			known, again := s.calls.LoadOrStore(id, fresh)
			if again {
				fresh.cancel()
			}
			running.Store(number, known)
			context.AfterFunc(known.(*call).ctx, func() { s.calls.Delete(id); running.Delete(number) })
			go s.answer(c, m, known.(*call))
		default:
			// The offset is 0 if the server does not keep the push for us.
			if offset := Offset(m); offset == 0 || s.handled < offset {
				s.Push(m)
				s.handled = max(s.handled, offset)
			}
		}
		if acked != s.handled && (len(messages) == 0 || 32 <= s.handled-acked) {
			acked = s.handled
			Ack(s.with(context.Background()), c, acked)
		}
	}
}

// answer runs a call of the server, unless it ran already, and sends its value or its error.
func (s *Session) answer(c *client.Client, m *protocol.Message, call *call) {
	call.once.Do(func() {
		if handler := s.Handlers[m.ServicePath+"."+m.ServiceMethod]; handler != nil {
			call.value, call.err = handler(call.ctx, m)
		} else {
			call.err = fmt.Errorf("no handler for %s.%s", m.ServicePath, m.ServiceMethod)
		}
	})
	if call.ctx.Err() != nil { // cancelled or too late: nobody waits
		return
	}
	Reply(s.with(context.Background()), c, m, call.value, call.err)
}

// with is a context that makes rpcx send the token.
func (s *Session) with(ctx context.Context) context.Context {
	if s.Token == "" {
		return ctx
	}
	return with(ctx, map[string]string{share.AuthKey: s.Token})
}

// Handle makes a handler of a function with arguments and a value of its own types.
func Handle[A, R any](f func(context.Context, A) (R, error)) func(context.Context, *protocol.Message) (any, error) {
	return func(ctx context.Context, m *protocol.Message) (any, error) {
		var args A
		if err := share.Codecs[m.SerializeType()].Decode(m.Payload, &args); err != nil {
			return nil, err
		}
		return f(ctx, args)
	}
}
