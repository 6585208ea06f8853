package cases

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bothways.dev/interop/internal/contract"
	"bothways.dev/interop/internal/wire"
	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
)

func runMetadata(e *Env) (map[string]any, error) {
	c, err := e.msgpack()
	if err != nil {
		return nil, err
	}
	many := make(map[string]string)
	for i := range 100 {
		many["key"+strconv.Itoa(i)] = strings.Repeat(strconv.Itoa(i), i)
	}
	for name, sent := range map[string]map[string]string{
		"one key":                   {"k": "v"},
		"no text, no key, no ASCII": {"empty": "", "": "no key", "Grüße": "世界", "nul": "a\x00b"},
		"100 keys":                  many,
	} {
		back := make(map[string]string)
		var reply contract.MetaReply
		if err := c.doWith(sent, back, "Meta", "Echo", &contract.Args{}, &reply); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for k, v := range sent {
			got, ok := back[contract.GotPrefix+k]
			if !ok {
				return nil, fmt.Errorf("%s: key %q did not come back", name, k)
			}
			if err := expect(fmt.Sprintf("%s: the value of %q", name, k), got, v); err != nil {
				return nil, err
			}
		}
		if reply.Deadline {
			return nil, fmt.Errorf("%s: the handler saw a deadline that nobody sent", name)
		}
	}
	return nil, stillWorks(c)
}

func runErrors(e *Env) (map[string]any, error) {
	c, err := e.msgpack()
	if err != nil {
		return nil, err
	}
	partial := contract.Reply{}
	err = all(
		check{"Arith.Err", func() error {
			return expectErr(c.do("Arith", "Err", &contract.Args{A: 1, B: 2}, &contract.Reply{}), contract.ErrText)
		}},
		check{"it is a service error", func() error {
			var service client.ServiceError
			if err := c.do("Arith", "Err", &contract.Args{}, &contract.Reply{}); !errors.As(err, &service) {
				return fmt.Errorf("%v is not one", err)
			}
			return nil
		}},
		check{"Arith.ErrPartial", func() error {
			return expectErr(c.do("Arith", "ErrPartial", &contract.Args{A: 3, B: 4}, &partial), contract.PartialText)
		}},
		check{"unknown service", func() error {
			return expectErr(c.do("Nope", "Mul", &contract.Args{}, &contract.Reply{}), "rpcx: can't find service Nope")
		}},
		check{"unknown method", func() error {
			return expectErr(c.do("Arith", "Nope", &contract.Args{}, &contract.Reply{}), "rpcx: can't find method Nope")
		}},
		check{"after the errors", func() error { return stillWorks(c) }},
	)
	if err != nil || !e.hasRaw() {
		return nil, err
	}
	// Go sends what the handler had filled in; a server whose handlers return either a reply or an error need not.
	return map[string]any{"partial_reply": partial.C == 12}, runUnusable(e)
}

// runUnusable sends requests that reach a method but cannot be decoded for it.
func runUnusable(e *Env) error {
	for i, r := range []struct {
		name      string
		serialize protocol.SerializeType
		payload   string
		text      string // empty for any text
	}{
		{"a codec that nobody has", 9, "x", "can not find codec for 9"},
		{"msgpack without a byte", protocol.MsgPack, "", ""},
		{"a byte that msgpack does not define", protocol.MsgPack, "\xc1", ""},
		{"half a msgpack map", protocol.MsgPack, "\x82\xa1A\x0a\xa1", ""},
		{"half a JSON object", protocol.JSON, `{"A":10,`, ""},
		{"raw bytes for a struct", protocol.SerializeNone, "raw", ""},
		{"protobuf for a struct that has none", protocol.ProtoBuffer, "\x08\x01", ""},
	} {
		err := func() error {
			raw, err := e.rawConn()
			if err != nil {
				return err
			}
			m := wire.Request(uint64(i), r.serialize, "Arith", "Mul")
			m.Payload = []byte(r.payload)
			reply, err := raw.exchange(m)
			if err != nil {
				return err
			}
			if err := expect("the status", reply.MessageStatusType(), protocol.Error); err != nil {
				return err
			}
			text, ok := reply.Metadata[protocol.ServiceError]
			if !ok || text == "" {
				return errors.New("the error has no text")
			}
			if r.text != "" {
				if err := expect("the text", text, r.text); err != nil {
					return err
				}
			}
			return raw.stillWorks()
		}()
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

func runPanic(e *Env) (map[string]any, error) {
	c, err := e.msgpack()
	if err != nil {
		return nil, err
	}
	err = c.do("Arith", "Panic", &contract.Args{A: 987654321, B: 123456789}, &contract.Reply{})
	if err == nil {
		return nil, errors.New("the call succeeded")
	}
	text := err.Error()
	for _, secret := range []string{"987654321", "123456789", "stack", "goroutine", "thread", ".go:", ".rs", "panic on purpose"} {
		if strings.Contains(text, secret) {
			return nil, fmt.Errorf("the error gives away %q: %s", secret, shorten(text))
		}
	}
	return map[string]any{"text": text}, stillWorks(c)
}

func runOneway(e *Env) (map[string]any, error) {
	c, err := e.msgpack()
	if err != nil {
		return nil, err
	}
	total := func() (int, error) {
		var reply contract.Reply
		err := c.do("Oneway", "Total", &contract.Args{}, &reply)
		return reply.C, err
	}
	before, err := total()
	if err != nil {
		return nil, err
	}
	n := e.n(100)
	for range n {
		// Without a place for a reply, rpcx's client sends the call as oneway.
		if err := c.do("Oneway", "Add", &contract.Args{A: 3}, nil); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{"Err", "Nope"} {
		if err := c.do("Arith", name, &contract.Args{}, nil); err != nil {
			return nil, fmt.Errorf("oneway Arith.%s: %w", name, err)
		}
	}
	calls := int64(1)
	err = until("the sum", 10*time.Second, func() bool {
		now, failed := total()
		calls++
		return failed == nil && now == before+3*n
	})
	if err != nil {
		return nil, err
	}
	if err := stillWorks(c); err != nil {
		return nil, err
	}
	calls++
	return nil, expect("the number of replies, one for each call that wants one", c.responses.Load(), calls)
}

func runHeartbeat(e *Env) (map[string]any, error) {
	option := e.option(protocol.MsgPack)
	option.Heartbeat = true
	option.HeartbeatInterval = 20 * time.Millisecond
	option.MaxWaitForHeartbeat = 5 * time.Second
	c, err := e.dial(option, nil)
	if err != nil {
		return nil, err
	}
	slow := make(chan error, 1)
	go func() {
		var reply contract.Reply
		err := c.do("Arith", "Sleep", &contract.Args{A: 300, B: 7}, &reply)
		if err == nil {
			err = expect("the reply of a call that took ten heartbeats", reply.C, 7)
		}
		slow <- err
	}()
	beats := int64(e.n(10))
	if err := until("the heartbeats", 20*time.Second, func() bool { return c.heartbeats.Load() >= beats }); err != nil {
		return nil, err
	}
	if err := <-slow; err != nil {
		return nil, err
	}
	if c.IsShutdown() || c.IsClosing() {
		return nil, errors.New("the client gave the connection up")
	}
	if err := stillWorks(c); err != nil {
		return nil, err
	}
	if e.hasRaw() {
		if err := rawHeartbeats(e); err != nil {
			return nil, err
		}
	}
	return map[string]any{"heartbeats": c.heartbeats.Load()}, nil
}

// rawHeartbeats sends heartbeats unlike the client's own: each must come back as it was except for the bit that makes
// it a response. The first frame of the connection is one of them.
func rawHeartbeats(e *Env) error {
	raw, err := e.rawConn()
	if err != nil {
		return err
	}
	for i, change := range []func(*protocol.Message){
		func(m *protocol.Message) {},
		func(m *protocol.Message) { m.SetSerializeType(protocol.JSON); m.Payload = []byte("not JSON") },
		func(m *protocol.Message) { m.ServicePath = "No"; m.ServiceMethod = "Such" },
		func(m *protocol.Message) { m.Metadata = map[string]string{"k": "v"} },
		func(m *protocol.Message) { m.SetSeq(1<<64 - 1) },
		func(m *protocol.Message) { m.Payload = contract.Pattern(2000) },
	} {
		m := wire.Request(uint64(i), protocol.SerializeNone, "", "")
		m.SetHeartbeat(true)
		change(m)
		sent := m.Encode()
		got, err := raw.send(sent)
		if err != nil {
			return fmt.Errorf("heartbeat %d: %w", i, err)
		}
		want := append([]byte(nil), sent...)
		want[2] |= 0x80
		if string(got) != string(want) {
			return fmt.Errorf("heartbeat %d: sent %x, got %x, expected %x", i, sent[:min(64, len(sent))], got[:min(64, len(got))], want[:min(64, len(want))])
		}
	}
	return raw.stillWorks()
}

func runCompression(e *Env) (map[string]any, error) {
	option := e.option(protocol.SerializeNone)
	option.CompressType = protocol.Gzip
	c, err := e.dial(option, nil)
	if err != nil {
		return nil, err
	}
	for _, size := range []int{0, 1024, 1025, 100_000} {
		if err := echoRaw(c, contract.Pattern(size)); err != nil {
			return nil, fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	option.SerializeType = protocol.MsgPack
	if c, err = e.dial(option, nil); err != nil {
		return nil, err
	}
	var length contract.Reply
	if err := c.do("Big", "Len", &contract.Text{S: contract.Letters(200_000)}, &length); err != nil {
		return nil, err
	}
	if err := expect("Big.Len", length.C, 200_000); err != nil {
		return nil, err
	}
	var made contract.Text
	if err := c.do("Big", "Make", &contract.Args{A: 200_000}, &made); err != nil {
		return nil, err
	}
	if err := expect("Big.Make", made.S, contract.Letters(200_000)); err != nil {
		return nil, err
	}
	if !e.hasRaw() {
		return nil, nil
	}

	raw, err := e.rawConn()
	if err != nil {
		return nil, err
	}
	for i, r := range []struct {
		size    int
		request protocol.CompressType
		reply   protocol.CompressType
	}{
		{1025, protocol.Gzip, protocol.Gzip},
		{1024, protocol.Gzip, protocol.None},
		{1025, protocol.None, protocol.None},
		{0, protocol.Gzip, protocol.None},
	} {
		m := wire.Request(uint64(i), protocol.SerializeNone, "Raw", "Echo")
		m.SetCompressType(r.request)
		m.Payload = contract.Pattern(r.size)
		reply, err := raw.exchange(m)
		name := fmt.Sprintf("%d bytes, request compressed by %d", r.size, r.request)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := expect(name+": the reply's compress type", reply.CompressType(), r.reply); err != nil {
			return nil, err
		}
		if err := expectBytes(reply.Payload, m.Payload); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil, nil
}

func runTimeout(e *Env) (map[string]any, error) {
	// Only the XClient tells the server of a deadline.
	meta, _, err := e.xclient("Meta", client.Failfast, e.option(protocol.MsgPack), nil)
	if err != nil {
		return nil, err
	}
	var seen contract.MetaReply
	ctx, cancel := context.WithTimeout(e.context(nil, nil), 5*time.Second)
	defer cancel()
	if err := meta.Call(ctx, "Echo", &contract.Args{}, &seen); err != nil {
		return nil, err
	}
	if !seen.Deadline || seen.Millis <= 0 || seen.Millis > 5000 {
		return nil, fmt.Errorf("the handler saw %+v of a deadline in 5,000 ms", seen)
	}

	arith, w, err := e.xclient("Arith", client.Failfast, e.option(protocol.MsgPack), nil)
	if err != nil {
		return nil, err
	}
	var reply contract.Reply
	if err := arith.Call(e.context(nil, nil), "Mul", &contract.Args{A: 2, B: 3}, &reply); err != nil {
		return nil, err
	}
	start := time.Now()
	short, cancelShort := context.WithTimeout(e.context(nil, nil), 100*time.Millisecond)
	defer cancelShort()
	err = arith.Call(short, "Sleep", &contract.Args{A: 1500, B: 9}, &reply)
	if !errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("a call past its deadline ended with %v", err)
	}
	if took := time.Since(start); took > time.Second {
		return nil, fmt.Errorf("a deadline of 100 ms took %v", took)
	}
	// The late reply, if one comes at all, must go unnoticed.
	time.Sleep(1600 * time.Millisecond)
	if err := arith.Call(e.context(nil, nil), "Mul", &contract.Args{A: 4, B: 5}, &reply); err != nil {
		return nil, err
	}
	if err := expect("the call after a late reply", reply.C, 20); err != nil {
		return nil, err
	}
	if err := expect("the number of connections", w.connections.Load(), 1); err != nil {
		return nil, err
	}

	c, err := e.msgpack()
	if err != nil {
		return nil, err
	}
	var unseen contract.MetaReply
	if err := c.doWith(map[string]string{share.ServerTimeout: "soon"}, nil, "Meta", "Echo", &contract.Args{}, &unseen); err != nil {
		return nil, fmt.Errorf("a deadline that is no number: %w", err)
	}
	if unseen.Deadline {
		return nil, errors.New("a deadline that is no number was taken for one")
	}
	return map[string]any{"millis": seen.Millis}, nil
}

func runConcurrent(e *Env) (map[string]any, error) {
	c, err := e.msgpack()
	if err != nil {
		return nil, err
	}
	n := e.n(10_000)
	var group sync.WaitGroup
	var latest, overtakes, failed atomic.Int64
	var first atomic.Value
	start := time.Now()
	for i := range n {
		group.Go(func() {
			var reply contract.Reply
			err := c.do("Order", "Sleep", &contract.Args{A: i}, &reply)
			if err == nil {
				err = expect("the reply", reply.C, i)
			}
			if err != nil {
				failed.Add(1)
				first.CompareAndSwap(nil, err.Error())
			}
			if latest.Swap(int64(i)) > int64(i) {
				overtakes.Add(1)
			}
		})
	}
	group.Wait()
	if n := failed.Load(); n > 0 {
		return nil, fmt.Errorf("%d calls failed, one with: %v", n, first.Load())
	}
	fields := map[string]any{"calls": n, "overtakes": overtakes.Load(), "ms": time.Since(start).Milliseconds()}
	return fields, stillWorks(c)
}

func runLarge(e *Env) (map[string]any, error) {
	size := e.size(16 << 20)
	c, err := e.msgpack()
	if err != nil {
		return nil, err
	}
	var length contract.Reply
	if err := c.do("Big", "Len", &contract.Text{S: contract.Letters(size)}, &length); err != nil {
		return nil, err
	}
	if err := expect("Big.Len", length.C, size); err != nil {
		return nil, err
	}
	var made contract.Text
	if err := c.do("Big", "Make", &contract.Args{A: size}, &made); err != nil {
		return nil, err
	}
	if made.S != contract.Letters(size) {
		return nil, fmt.Errorf("Big.Make sent %d bytes, or others than promised", len(made.S))
	}
	raw, err := e.dial(e.option(protocol.SerializeNone), nil)
	if err != nil {
		return nil, err
	}
	return map[string]any{"size": size}, echoRaw(raw, contract.Pattern(size))
}
