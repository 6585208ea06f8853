// Command optin is a Go application that a Bothways server can call, and that misses nothing when its connection is
// lost: an unmodified rpcx client with the helper of the package bothways. With -minimal it makes do with bothways.go,
// and with -plain with nothing.
//
//	optin -addr tcp@127.0.0.1:8972 [-token NAME] [-topic TOPIC] [-delay 1ms] [-minimal | -plain]
//
// It prints a line of JSON for each event, and ends when stdin closes. A line on stdin is a command:
//
//	cut                             breaks the connection as a network does
//	subscribe TOPIC [EPOCH OFFSET]  subscribes, from a position if one is given
//	unsubscribe TOPIC               ends that
//	roster TOPIC                    asks who is there
//	call A B                        calls Arith.Mul of the server, again until it answers
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"bothways.dev/interop/bothways"
	"bothways.dev/interop/internal/contract"
	"bothways.dev/interop/internal/peer"
	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
)

func main() {
	addr := flag.String("addr", "", "the server, NETWORK@ADDRESS")
	token := flag.String("token", "", "token to send with every call")
	topic := flag.String("topic", "", "topic to join by the server's Topics.Join, once connected")
	delay := flag.Duration("delay", 0, "how long the application takes for each push")
	minimal := flag.Bool("minimal", false, "an rpcx client with no more of the helper than bothways.go")
	plain := flag.Bool("plain", false, "an rpcx client without the helper")
	flag.Parse()
	peer.LogToStderr()
	network, address, ok := strings.Cut(*addr, "@")
	if !ok {
		fmt.Fprintf(os.Stderr, "optin: -addr %q is not NETWORK@ADDRESS\n", *addr)
		os.Exit(2)
	}
	run := runOptIn
	switch {
	case *minimal:
		run = runMinimal
	case *plain:
		run = runPlain
	}
	if err := run(network, address, *token, *topic, *delay); err != nil {
		fmt.Fprintln(os.Stderr, "optin:", err)
		os.Exit(1)
	}
}

func runOptIn(network, address, token, topic string, delay time.Duration) error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	connected, counted := make(chan struct{}, 1), atomic.Int64{}
	session := &bothways.Session{
		Token: func() string { return token },
		Push: func(m *protocol.Message) error {
			time.Sleep(delay)
			switch tellPush(m); string(m.Payload) {
			case "fail":
				return errors.New("it cannot")
			case "panic":
				panic("as it was told")
			}
			return nil
		},
		Failed: func(err error) { tell("failed", map[string]any{"why": err.Error()}) },
		Changed: func(lost string) {
			tell("connected", map[string]any{"lost": lost})
			select {
			case connected <- struct{}{}:
			default:
			}
		},
		Handlers: map[string]func(context.Context, *protocol.Message) (any, error){
			"Device.Mul": bothways.Handle(func(_ context.Context, args contract.Args) (contract.Reply, error) {
				return contract.Reply{C: args.A * args.B}, nil
			}),
			"Device.Fail": bothways.Handle(func(context.Context, contract.Args) (contract.Reply, error) {
				return contract.Reply{}, errors.New("the device is busy")
			}),
			// What the tests of many nodes call.
			"Numbers.Work": bothways.Handle(func(_ context.Context, number string) (string, error) { return number, nil }),
			"Device.Panic": func(context.Context, *protocol.Message) (any, error) { panic("as it was told") },
			"Device.Chan":  func(context.Context, *protocol.Message) (any, error) { return make(chan int), nil },
			// Answers with so many bytes.
			"Device.Big": bothways.Handle(func(_ context.Context, args contract.Args) ([]byte, error) {
				return make([]byte, args.A), nil
			}),
			// Waits for A ms, and counts its runs.
			"Device.Count": bothways.Handle(func(_ context.Context, args contract.Args) (contract.Reply, error) {
				runs := counted.Add(1)
				tell("counting", map[string]any{"runs": runs})
				time.Sleep(time.Duration(args.A) * time.Millisecond)
				return contract.Reply{C: int(runs)}, nil
			}),
			// Waits until nobody waits for it any more.
			"Device.Wait": bothways.Handle(func(ctx context.Context, _ contract.Args) (contract.Reply, error) {
				tell("waiting", nil)
				<-ctx.Done()
				tell("given-up", map[string]any{"why": ctx.Err().Error()})
				return contract.Reply{}, ctx.Err()
			}),
		},
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := session.Run(ctx, network, address); !errors.Is(err, context.Canceled) {
			tell("ended", map[string]any{"why": err.Error()})
		}
	})
	<-connected
	if err := join(session.Call, topic); err != nil {
		return err
	}
	obey(session.Call, func() net.Conn { return session.Client().Conn.(interface{ NetConn() net.Conn }).NetConn() })
	stop()
	running.Wait()
	return nil
}

// runMinimal answers calls of Device.Mul and acknowledges pushes. It does not come back.
func runMinimal(network, address, token, topic string, delay time.Duration) error {
	c, messages, err := connect(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := context.WithValue(context.Background(), share.ReqMetaDataKey, map[string]string{share.AuthKey: token})
	if _, err := bothways.Enable(ctx, c); err != nil {
		return err
	}
	tell("connected", map[string]any{"lost": ""})
	go func() {
		for m := range messages {
			switch {
			case m.MessageStatusType() == protocol.Error:
				return
			case m.Metadata["_bw.call"] != "":
				var args contract.Args
				err := bothways.Decode(m, &args)
				if err == nil && m.ServiceMethod != "Mul" {
					err = errors.New("only Mul")
				}
				_ = bothways.Reply(ctx, c, m, contract.Reply{C: args.A * args.B}, err)
			case m.ServicePath != "_bothways":
				time.Sleep(delay)
				tellPush(m)
				if string(m.Payload) == "fail" {
					_ = bothways.Fail(ctx, c, bothways.Offset(m), "error")
					continue
				}
				_ = bothways.Ack(ctx, c, bothways.Offset(m))
			}
		}
	}()
	return finish(c, token, topic)
}

func runPlain(network, address, token, topic string, delay time.Duration) error {
	c, messages, err := connect(network, address)
	if err != nil {
		return err
	}
	defer c.Close()
	go func() {
		for m := range messages {
			if m.MessageStatusType() == protocol.Error {
				return
			}
			time.Sleep(delay)
			tellPush(m)
		}
	}()
	return finish(c, token, topic)
}

func connect(network, address string) (*client.Client, <-chan *protocol.Message, error) {
	option := client.DefaultOption
	option.BidirectionalBlock = true
	c, messages := client.NewClient(option), make(chan *protocol.Message, 16)
	c.RegisterServerMessageChan(messages)
	return c, messages, c.Connect(network, address)
}

// finish does what is left for a client without a session that comes back.
func finish(c *client.Client, token, topic string) error {
	call := func(ctx context.Context, path, method string, args, reply any) error {
		pairs := map[string]string{share.AuthKey: token}
		return c.Call(context.WithValue(ctx, share.ReqMetaDataKey, pairs), path, method, args, reply)
	}
	if err := join(call, topic); err != nil {
		return err
	}
	obey(call, func() net.Conn { return c.Conn })
	return nil
}

func join(call bothways.Call, topic string) error {
	if topic == "" {
		return nil
	}
	var none struct{}
	if err := call(context.Background(), "Topics", "Join", topic, &none); err != nil {
		return err
	}
	tell("joined", nil)
	return nil
}

// obey does what stdin says until it closes.
func obey(call bothways.Call, conn func() net.Conn) {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		words := strings.Fields(lines.Text())
		number := func(at int) (n uint64) {
			if at < len(words) {
				n, _ = strconv.ParseUint(words[at], 10, 64)
			}
			return n
		}
		switch words[0] {
		case "cut":
			if tcp, ok := conn().(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // what is on its way is lost, in both directions
				_ = tcp.Close()
			}
		case "subscribe":
			from := bothways.Position{Epoch: number(2), Offset: number(3)}
			got, err := bothways.Subscribe(context.Background(), call, words[1], from)
			if err != nil {
				tell("refused", map[string]any{"why": err.Error()})
				continue
			}
			tell("subscribed", map[string]any{"recovered": got.Recovered, "epoch": got.Epoch, "offset": got.Offset})
		case "unsubscribe":
			if err := bothways.Unsubscribe(context.Background(), call, words[1]); err != nil {
				tell("refused", map[string]any{"why": err.Error()})
				continue
			}
			tell("unsubscribed", nil)
		case "roster":
			members, _, err := bothways.Roster(context.Background(), call, words[1])
			if err != nil {
				tell("refused", map[string]any{"why": err.Error()})
				continue
			}
			tell("roster", map[string]any{"members": members})
		case "call":
			args, reply := contract.Args{A: int(number(1)), B: int(number(2))}, contract.Reply{}
			go func() {
				for call(context.Background(), "Arith", "Mul", &args, &reply) != nil {
					time.Sleep(10 * time.Millisecond) // it multiplies: to ask again does no harm
				}
				tell("answered", map[string]any{"a": args.A, "b": args.B, "c": reply.C})
			}()
		default:
			tell("refused", map[string]any{"why": "no such command: " + lines.Text()})
		}
	}
}

func tellPush(m *protocol.Message) {
	if m.ServicePath == "_bothways" && m.ServiceMethod == "Presence" {
		var change struct{ Topic, User, Status string }
		if err := share.Codecs[m.SerializeType()].Decode(m.Payload, &change); err != nil {
			panic(err) // the test waits for it
		}
		tell("presence", map[string]any{"topic": change.Topic, "user": change.User, "status": change.Status})
		return
	}
	topic, at := bothways.PositionOf(m)
	tell("push", map[string]any{
		"method": m.ServicePath + "." + m.ServiceMethod, "text": string(m.Payload),
		"offset": bothways.Offset(m), "metadata": m.Metadata, "topic": topic, "epoch": at.Epoch, "at": at.Offset,
	})
}

var telling sync.Mutex

func tell(event string, fields map[string]any) {
	line := map[string]any{"event": event}
	for key, value := range fields {
		line[key] = value
	}
	text, err := json.Marshal(line)
	if err != nil {
		panic(err) // every field is a string, a number or a map of strings
	}
	telling.Lock()
	defer telling.Unlock()
	fmt.Println(string(text))
}
