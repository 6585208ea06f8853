package cases

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"bothways.dev/interop/internal/contract"
	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
)

// expectPush checks what all pushes have in common.
func expectPush(m *protocol.Message) error {
	if err := expect("the message type", m.MessageType(), protocol.Request); err != nil {
		return err
	}
	if err := expect("the oneway bit", m.IsOneway(), true); err != nil {
		return err
	}
	if err := expect("the status", m.MessageStatusType(), protocol.Normal); err != nil {
		return err
	}
	if err := expect("the serialize type", m.SerializeType(), protocol.SerializeNone); err != nil {
		return err
	}
	if err := expect("the path", m.ServicePath, contract.PushPath); err != nil {
		return err
	}
	return expect("the method", m.ServiceMethod, contract.PushMethod)
}

func expectTick(m *protocol.Message) error {
	if err := expectPush(m); err != nil {
		return err
	}
	if err := expect("the number of metadata keys", len(m.Metadata), 0); err != nil {
		return err
	}
	return expect("the payload", string(m.Payload), contract.PushPayload)
}

func runPushBeforeReply(e *Env) (map[string]any, error) {
	var pushed atomic.Int64
	var wrong atomic.Value
	option := e.option(protocol.MsgPack)
	// Without a channel, rpcx hands pushes to this function inside its read loop: what came before the reply has been
	// through it when the call returns.
	option.NilCallServerMessageHandler = func(m *protocol.Message) {
		if err := expectTick(m); err != nil {
			wrong.CompareAndSwap(nil, err.Error())
		}
		pushed.Add(1)
	}
	c, err := e.dial(option, nil)
	if err != nil {
		return nil, err
	}
	n := e.n(200)
	for i := range n {
		var reply contract.Reply
		if err := c.do("Push", "Then", &contract.Args{A: i, B: 2}, &reply); err != nil {
			return nil, err
		}
		if err := expect("the reply", reply.C, 2*i); err != nil {
			return nil, err
		}
		if err := expect("the number of pushes when the call returned", pushed.Load(), int64(i+1)); err != nil {
			return nil, err
		}
	}
	if text := wrong.Load(); text != nil {
		return nil, errors.New(text.(string))
	}
	return map[string]any{"pushes": n}, nil
}

func runPushes(e *Env) (map[string]any, error) {
	n, size := e.n(100_000), max(e.size(64), 8)
	option := e.option(protocol.MsgPack)
	// By default rpcx drops what does not fit into the channel, and nobody would know whose fault a gap is.
	option.BidirectionalBlock = true
	ch := make(chan *protocol.Message, 1024)
	c, err := e.dial(option, func(c *client.Client) { c.RegisterServerMessageChan(ch) })
	if err != nil {
		return nil, err
	}
	// The reader must be there before the call: the reply may come behind more pushes than the channel holds.
	start := time.Now()
	read := make(chan error, 1)
	go func() { read <- readNumbered(ch, n, size) }()
	var reply contract.Reply
	if err := c.do("Push", "Start", &contract.Args{A: n, B: size}, &reply); err != nil {
		return nil, err
	}
	if err := expect("the reply", reply.C, n); err != nil {
		return nil, err
	}
	if err := <-read; err != nil {
		return nil, err
	}
	took := time.Since(start)

	// A server that sends more than was asked for does it now.
	select {
	case m := <-ch:
		return nil, fmt.Errorf("push %x came after the last", m.Payload)
	case <-time.After(100 * time.Millisecond):
	}
	fields := map[string]any{"pushes": n, "size": size, "ms": took.Milliseconds(), "per_second": int(float64(n) / took.Seconds())}
	return fields, stillWorks(c)
}

func readNumbered(ch <-chan *protocol.Message, n, size int) error {
	for i := range n {
		var m *protocol.Message
		select {
		case m = <-ch:
		case <-time.After(callTimeout):
			return fmt.Errorf("%d of %d pushes came", i, n)
		}
		if err := expectPush(m); err != nil {
			return fmt.Errorf("push %d: %w", i, err)
		}
		if got := m.Metadata["n"]; got != strconv.Itoa(i) || len(m.Metadata) != 1 {
			return fmt.Errorf("in place of push %d came metadata %v", i, m.Metadata)
		}
		if want := contract.NumberedPayload(uint64(i), size); !bytes.Equal(m.Payload, want) {
			return fmt.Errorf("in place of push %d came payload %s", i, shorten(m.Payload))
		}
	}
	return nil
}

func runBidirectional(e *Env) (map[string]any, error) {
	ch := make(chan *protocol.Message, 16)
	x, w, err := e.xclient("Push", client.Failtry, e.option(protocol.MsgPack), ch)
	if err != nil {
		return nil, err
	}
	var reply contract.Reply
	if err := x.Call(e.context(nil, nil), "Tick", &contract.Args{A: 10, B: 20}, &reply); err != nil {
		return nil, err
	}
	if err := expect("10 * 20", reply.C, 200); err != nil {
		return nil, err
	}
	n := e.n(5)
	for i := range n {
		select {
		case m := <-ch:
			if err := expectTick(m); err != nil {
				return nil, fmt.Errorf("push %d: %w", i, err)
			}
		case <-time.After(callTimeout):
			return nil, fmt.Errorf("%d of %d pushes came", i, n)
		}
	}
	return map[string]any{"pushes": n}, expect("the number of connections", w.connections.Load(), 1)
}
