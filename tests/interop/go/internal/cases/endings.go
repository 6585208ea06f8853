package cases

import (
	"context"
	"errors"
	"fmt"
	"time"

	"bothways.dev/interop/internal/contract"
	"bothways.dev/interop/internal/wire"
	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
)

// waitForTest bounds how long a case waits for the test to stop or restart the server.
const waitForTest = 60 * time.Second

func runAuth(e *Env) (map[string]any, error) {
	if e.Auth == "" {
		return nil, errors.New("this case needs the token that the server takes")
	}
	x, _, err := e.xclient("Arith", client.Failfast, e.option(protocol.MsgPack), nil)
	if err != nil {
		return nil, err
	}
	var reply contract.Reply
	if err := x.Call(context.Background(), "Mul", &contract.Args{A: 10, B: 20}, &reply); err != nil {
		return nil, fmt.Errorf("the right token: %w", err)
	}
	if err := expect("10 * 20", reply.C, 200); err != nil {
		return nil, err
	}

	// From here on, each call says itself which token it sends.
	token := e.Auth
	e.Auth = ""
	for name, metadata := range map[string]map[string]string{
		"a wrong token":   {share.AuthKey: "not " + token},
		"an empty token":  {share.AuthKey: ""},
		"no token":        nil,
		"a token's start": {share.AuthKey: token[:len(token)-1]},
	} {
		c, err := e.msgpack()
		if err != nil {
			return nil, err
		}
		if err := expectErr(c.doWith(metadata, nil, "Arith", "Mul", &contract.Args{A: 1, B: 2}, &reply), contract.AuthRefusal); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := until("the end of the connection", 3*time.Second, c.IsShutdown); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if e.hasRaw() {
		if err := rawAuth(e); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// rawAuth checks that heartbeats need no token, and that a refused oneway call is answered by nothing but the end of
// the connection.
func rawAuth(e *Env) error {
	raw, err := e.rawConn()
	if err != nil {
		return err
	}
	m := wire.Request(1, protocol.MsgPack, "", "")
	m.SetHeartbeat(true)
	if _, err := raw.send(m.Encode()); err != nil {
		return fmt.Errorf("a heartbeat before any token: %w", err)
	}
	m = wire.Request(2, protocol.MsgPack, "Oneway", "Add")
	m.SetOneway(true)
	m.Payload = []byte("\x82\xa1A\x01\xa1B\x01")
	if _, err := raw.Write(m.Encode()); err != nil {
		return err
	}
	if err := raw.expectClosed(); err != nil {
		return fmt.Errorf("a oneway call without a token: %w", err)
	}
	return nil
}

func runLoss(e *Env) (map[string]any, error) {
	ch := make(chan *protocol.Message, 16)
	c, err := e.dial(e.option(protocol.MsgPack), func(c *client.Client) { c.RegisterServerMessageChan(ch) })
	if err != nil {
		return nil, err
	}
	if err := stillWorks(c); err != nil {
		return nil, err
	}
	pending := make(chan error, 1)
	go func() { pending <- c.do("Arith", "Sleep", &contract.Args{A: 20_000}, &contract.Reply{}) }()
	e.Note("ready", nil)
	if e.Kick {
		var reply contract.Reply
		if err := c.do("Conn", "Close", &contract.Args{A: 100}, &reply); err != nil {
			return nil, fmt.Errorf("Conn.Close: %w", err)
		}
		if err := expect("the reply of Conn.Close", reply.C, 100); err != nil {
			return nil, err
		}
	}

	var lost *protocol.Message
	select {
	case lost = <-ch:
	case <-time.After(waitForTest):
		return nil, errors.New("the connection did not end")
	}
	if err := expect("the status of the message", lost.MessageStatusType(), protocol.Error); err != nil {
		return nil, err
	}
	if lost.Metadata[protocol.ServiceError] == "" || lost.Metadata["server"] == "" {
		return nil, fmt.Errorf("the message has metadata %v", lost.Metadata)
	}
	select {
	case err = <-pending:
	case <-time.After(5 * time.Second):
		return nil, errors.New("a pending call outlived its connection")
	}
	if err == nil {
		return nil, errors.New("a pending call of 20 s succeeded")
	}
	fields := map[string]any{"metadata": lost.Metadata, "pending": err.Error()}
	return fields, expectErr(c.do("Arith", "Mul", &contract.Args{}, &contract.Reply{}), client.ErrShutdown.Error())
}

func runReconnect(e *Env) (map[string]any, error) {
	option := e.option(protocol.MsgPack)
	option.Retries = 3
	option.RetryInterval = 20 * time.Millisecond
	option.ConnectTimeout = time.Second
	x, w, err := e.xclient("Arith", client.Failtry, option, nil)
	if err != nil {
		return nil, err
	}
	call := func(a int) error {
		ctx, cancel := context.WithTimeout(e.context(nil, nil), 5*time.Second)
		defer cancel()
		var reply contract.Reply
		if err := x.Call(ctx, "Add", &contract.Args{A: a, B: 1}, &reply); err != nil {
			return err
		}
		return expect("the reply", reply.C, a+1)
	}
	if err := call(0); err != nil {
		return nil, err
	}
	e.Note("connected", nil)
	failed := 0
	var lastFailure string
	for start := time.Now(); time.Since(start) < waitForTest; time.Sleep(20 * time.Millisecond) {
		before := w.connections.Load()
		if err := call(failed + 1); err != nil {
			if failed++; failed == 1 {
				e.Note("down", map[string]any{"text": err.Error()})
			}
			lastFailure = err.Error()
			continue
		}
		// A Failtry call may ride out a short restart on its own: then only the second connection tells of it.
		if w.connections.Load() > 1 {
			e.Note("recovered", nil)
			fields := map[string]any{
				"failed": failed, "last_failure": lastFailure, "connections": w.connections.Load(),
				"during_a_call": before != w.connections.Load(), "ms": time.Since(start).Milliseconds(),
			}
			return fields, call(1)
		}
	}
	return nil, fmt.Errorf("the server was not restarted, or not found again after %d failed calls, the last: %q", failed, lastFailure)
}
