package bothways

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/log"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
)

// Session is the application's session at a server, across its connections. Set the exported fields, then call Run.
type Session struct {
	Token    func() string                                                          // returns the token for each call, also to several goroutines at once; nil: no token
	TLS      *tls.Config                                                            // nil: that of client.DefaultOption
	Push     func(*protocol.Message) error                                          // each push once and in order; must not wait for the server; nil: pushes fail with no_handler
	Handlers map[string]func(ctx context.Context, m *protocol.Message) (any, error) // by Service.Method; each call in a goroutine
	Changed  func(lost string)                                                      // connected; lost is the reason if the session before is gone, else empty
	Failed   func(err error)                                                        // not connected, or refused: Run tries again
	Missed   func(pushes uint64)                                                    // this many were dropped before the next one: the application was too slow
	Silence  time.Duration                                                          // after which a connection counts as lost; 30 s if 0
	ReplyMax int                                                                    // bytes of an answer, below the server's limit of a frame; 8 MiB less 64 KiB if 0

	client  atomic.Pointer[client.Client]
	known   map[string]string // id and secret of the session
	handled uint64            // every push up to this offset is handled, or has failed
	failed  []failure         // those since the last connection began, oldest first: their Fails may be lost with this one
	missed  uint64            // pushes that the server has dropped since the session began
	tries   uint64            // to take this session to another connection
	keys    handledKeys
	calls   results
}

// failure is the outcome of several pushes in a row.
type failure struct {
	first, last uint64
	code        string
}

// failuresMax bounds the failures that are reported again on the next connection. Older ones count as handled there if
// their Fails were lost: a server may accept little metadata.
const failuresMax = 64

// encoded is a value in MessagePack.
type encoded []byte

// MarshalMsg makes it an rpcx value that is already encoded.
func (e encoded) MarshalMsg(to []byte) ([]byte, error) { return append(to, e...), nil }

// ErrKicked is returned by Run when the server has sent the application away for good.
var ErrKicked = errors.New("the server has sent the application away")

// Run connects, and connects again whenever the connection is lost, until the context is over or the server sends the
// application away. Then its session ends.
func (s *Session) Run(ctx context.Context, network, address string) error {
	defer s.calls.forget()
	for failures := 0; ; failures++ {
		connected, err := s.connect(ctx, network, address)
		switch {
		case errors.Is(err, ErrKicked):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && s.Failed != nil:
			s.Failed(err)
		}
		if connected {
			failures = 0
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause(failures)):
		}
	}
}

// pause is how long to wait after so many failures: 100 ms, twice as long each time up to 30 s, and of that at least half.
func pause(failures int) time.Duration {
	most := min(100*time.Millisecond<<min(failures, 10), 30*time.Second)
	return most/2 + rand.N(most/2+1)
}

// connect is one connection, until it is lost.
func (s *Session) connect(ctx context.Context, network, address string) (connected bool, err error) {
	silent, option := cmp.Or(s.Silence, 30*time.Second), client.DefaultOption
	option.SerializeType = protocol.MsgPack // of the answers, whatever codec the application's own clients use
	option.BidirectionalBlock = true        // or rpcx drops what finds the channel full
	// Its answers are what breaks the silence; how long one takes does not matter, as it may be behind pushes.
	option.Heartbeat, option.HeartbeatInterval, option.MaxWaitForHeartbeat = true, silent/3, 24*time.Hour
	if s.TLS != nil {
		option.TLSConfig = s.TLS
	}
	c, messages := client.NewClient(option), make(chan *protocol.Message)
	c.RegisterServerMessageChan(messages)
	c.Plugins = client.NewPluginContainer()
	c.Plugins.Add(silence(silent))
	if err := c.Connect(network, address); err != nil {
		return false, err // there is nothing to close
	}
	in := newInbox()
	go in.fill(messages)
	defer func() {
		c.Close()
		in.close()
	}()

	limited, done := context.WithTimeout(ctx, silent)
	defer done()
	why, err := s.enable(limited, c)
	if err != nil {
		return false, err
	}
	if why == "kicked" { // while it was away: it does not begin another session
		s.leave(c)
		return true, ErrKicked
	}
	switch lost, err := s.listen(ctx, c, in); {
	case err != nil:
		return false, err // and the pause before the next one grows, if that brings no more
	case !lost:
		s.leave(c)
	}
	return true, nil
}

// leave ends the session at the server, which has a second to hear of it.
func (s *Session) leave(c *client.Client) {
	ctx, done := context.WithTimeout(s.with(context.Background()), time.Second)
	defer done()
	said := map[string]string{"_bw.ack": fmt.Sprintf("%d,%d", s.handled, s.handled)}
	s.sayFailed(said)
	_, _ = ask(ctx, c, "Leave", said) // if it does not hear of it, the session runs out
}

// Client returns the current connection, for the application's own calls; nil before the first one.
func (s *Session) Client() *client.Client { return s.client.Load() }

// Call calls the server on the current connection.
func (s *Session) Call(ctx context.Context, path, method string, args, reply any) error {
	if c := s.Client(); c != nil {
		return c.Call(s.with(ctx), path, method, args, reply)
	}
	return client.ErrShutdown
}

// enable gets a session, or takes the one that is there to this connection: the first thing that is said on it.
func (s *Session) enable(ctx context.Context, c *client.Client) (why string, err error) {
	handles := strings.Join(slices.Sorted(maps.Keys(s.Handlers)), ",") // so that the server asks for nothing else
	said, answer := map[string]string{"_bw.fns": handles}, map[string]string(nil)
	if s.known == nil {
		answer, err = Enable(with(s.with(ctx), said), c)
	} else {
		s.tries++
		said["_bw.try"] = fmt.Sprint(s.tries)   // so that of two that are under way, to two nodes perhaps, the later one counts
		said["_bw.rcv"] = fmt.Sprint(s.handled) // what it has received it has handled; and it knows what a Skip is
		s.sayFailed(said)                       // their Fails may be lost with the connection before
		answer, err = Resume(with(s.with(ctx), said), c, s.known, s.handled)
	}
	if err != nil {
		return "", err
	}
	s.failed = nil                                 // the server has heard of them
	if s.known = answer; answer["_bw.res"] == "" { // a new session begins behind this offset
		s.handled, _ = strconv.ParseUint(answer["_bw.off"], 10, 64)
		s.missed, s.tries = 0, 0
	}
	s.client.Store(c)
	if s.Changed != nil {
		s.Changed(answer["_bw.why"])
	}
	return answer["_bw.why"], nil
}

// listen takes what the server sends, until the connection is lost or the context is over. An error means that an offset was
// left out: what had it comes on the next connection, as nothing after it was taken.
func (s *Session) listen(ctx context.Context, c *client.Client, in *inbox) (lost bool, err error) {
	var calls sync.Map // those that run, by their number on this connection
	acked := s.handled
	for {
		m, missed := in.take(ctx)
		if 0 < missed && s.Missed != nil {
			s.Missed(missed)
		}
		switch {
		case m == nil && missed == 0:
			return false, nil
		case m == nil:
		case m.MessageStatusType() == protocol.Error: // rpcx's own word for a lost connection
			return true, nil
		case s.handled+1 < Offset(m): // an Ack of this one would cover what did not come
			return true, fmt.Errorf("offset %d came after %d", Offset(m), s.handled)
		case m.ServicePath == "_bothways" && m.ServiceMethod != "Presence":
			s.word(m, &calls)
		case m.Metadata["_bw.call"] != "":
			s.run(ctx, c, m, &calls)
		default:
			// The offset is 0 if the server does not keep the push for us.
			if offset := Offset(m); offset == 0 || s.handled < offset {
				code := s.pushOnce(m)
				s.handled = max(s.handled, offset)
				if code != "" && offset != 0 {
					acked = s.handled
					s.fail(offset, code)
					_ = Fail(s.with(context.Background()), c, offset, code) // before an Ack that covers it
				}
			}
		}
		if acked != s.handled && (in.isEmpty() || 32 <= s.handled-acked) {
			acked = s.handled
			_ = Ack(s.with(context.Background()), c, acked)
		}
	}
}

// word takes what the framework itself says.
func (s *Session) word(m *protocol.Message, calls *sync.Map) {
	switch m.ServiceMethod { // any other is a word of a later server
	case "Cancel":
		if known, ok := calls.Load(m.Metadata["_bw.seq"]); ok {
			known.(*running).giveUp()
		}
		if known := s.calls.of(m.Metadata["_bw.id"]); known != nil { // of a connection before
			known.giveUp()
		}
	case "Skip": // what had this offset is too old to come
		s.handled = max(s.handled, Offset(m))
	case "Gap":
		// It counts from the beginning of the session, and comes again on each connection.
		missed, err := strconv.ParseUint(m.Metadata["_bw.missed"], 10, 64)
		if err != nil || missed <= s.missed {
			return
		}
		news := missed - s.missed
		if s.missed = missed; s.Missed != nil {
			s.Missed(news)
		}
	}
}

// run has a call of the server run and answered.
func (s *Session) run(ctx context.Context, c *client.Client, m *protocol.Message, calls *sync.Map) {
	number := m.Metadata["_bw.call"]
	call, isFirst := s.calls.begin(ctx, m.Metadata["_bw.id"], limit(m))
	calls.Store(number, call)
	go func() {
		if isFirst {
			call.value, call.err = s.handle(call.ctx, m)
			s.calls.end(call)
		}
		<-call.over
		s.answer(c, m, call)
		calls.Delete(number)
	}()
}

// fail notes what to say again on the next connection.
func (s *Session) fail(offset uint64, code string) {
	if last := len(s.failed) - 1; 0 <= last && s.failed[last].code == code && s.failed[last].last+1 == offset {
		s.failed[last].last = offset
		return
	}
	s.failed = append(s.failed, failure{offset, offset, code})
	if failuresMax < len(s.failed) {
		s.failed = s.failed[1:]
	}
}

// sayFailed adds the failed pushes as an acknowledgement names them.
func (s *Session) sayFailed(to map[string]string) {
	var said []string
	for _, failed := range s.failed {
		offsets := fmt.Sprint(failed.first)
		if failed.first < failed.last {
			offsets += fmt.Sprintf("-%d", failed.last)
		}
		said = append(said, offsets+":"+failed.code)
	}
	if 0 < len(said) {
		to["_bw.nack"] = strings.Join(said, ",")
	}
}

// limit is how long the server waits for the answer to its call: 30 s if it does not say so, and never beyond counting.
func limit(m *protocol.Message) time.Duration {
	millis, err := strconv.ParseInt(m.Metadata["__ServerTimeout"], 10, 64)
	if err != nil || millis <= 0 {
		millis = 30_000
	}
	return time.Duration(min(millis, int64(math.MaxInt64/time.Millisecond))) * time.Millisecond
}

// pushOnce has the application handle a push, unless it has handled one with the same key: a server that was killed may not
// have noted how far it was with a mailbox, and sends what behind that is again, in another session.
func (s *Session) pushOnce(m *protocol.Message) (code string) {
	key := m.Metadata["_bw.ik"]
	if s.keys.has(key) {
		return ""
	}
	if code = s.push(m); code == "" {
		s.keys.add(key)
	}
	return code
}

// push has the application handle a push, and gives the code of why it did not.
func (s *Session) push(m *protocol.Message) (code string) {
	defer func() {
		if what := recover(); what != nil {
			log.Errorf("a push to %s.%s panicked: %v\n%s", m.ServicePath, m.ServiceMethod, what, debug.Stack())
			code = "panicked"
		}
	}()
	if s.Push == nil {
		return "no_handler"
	}
	if s.Push(m) != nil {
		return "error"
	}
	return ""
}

// answer sends the value or the error of a call that has run.
func (s *Session) answer(c *client.Client, m *protocol.Message, call *running) {
	if !call.isAwaited() || c != s.Client() || c.IsClosing() || c.IsShutdown() {
		return // or the call comes again on another connection, which answers
	}
	err := call.err
	if call.sent.Add(1) > 3 { // the server may close each connection on which it comes
		err = fmt.Errorf("the connection was lost with each of 3 answers of %d bytes", len(call.value))
	}
	_ = Reply(s.with(context.Background()), c, m, call.value, err) // lost with the connection: the call comes again
}

// handle has the application handle a call. A panic, and a value that cannot be sent, are errors of the call.
func (s *Session) handle(ctx context.Context, m *protocol.Message) (value encoded, err error) {
	defer func() {
		if what := recover(); what != nil {
			log.Errorf("the handler of %s.%s panicked: %v\n%s", m.ServicePath, m.ServiceMethod, what, debug.Stack())
			err = fmt.Errorf("the handler of %s.%s panicked", m.ServicePath, m.ServiceMethod)
		}
	}()
	handler := s.Handlers[m.ServicePath+"."+m.ServiceMethod]
	if handler == nil {
		return nil, fmt.Errorf("no handler for %s.%s", m.ServicePath, m.ServiceMethod)
	}
	answer, err := handler(ctx, m)
	if err != nil {
		return nil, errors.New(text(err)) // made here: it may panic, too
	}
	value, err = share.Codecs[protocol.MsgPack].Encode(answer)
	if most := cmp.Or(s.ReplyMax, 8<<20-64<<10); err == nil && most < len(value) {
		return nil, fmt.Errorf("the reply has %d bytes, above the limit of %d", len(value), most)
	}
	return value, err
}

// with is a context that makes rpcx send the token.
func (s *Session) with(ctx context.Context) context.Context {
	if s.Token == nil {
		return ctx
	}
	return with(ctx, map[string]string{share.AuthKey: s.Token()})
}

// Handle makes a handler of a function with typed arguments and a typed result.
func Handle[A, R any](f func(context.Context, A) (R, error)) func(context.Context, *protocol.Message) (any, error) {
	return func(ctx context.Context, m *protocol.Message) (any, error) {
		var args A
		if err := Decode(m, &args); err != nil {
			return nil, err
		}
		return f(ctx, args)
	}
}
