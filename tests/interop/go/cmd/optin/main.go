// Command optin is a Go application that a Bothways server can call, and that misses nothing when its connection is
// lost: an unmodified rpcx client with the helper of the package bothways. With -plain it does without the helper.
//
//	optin -addr tcp@127.0.0.1:8972 [-token NAME] [-topic TOPIC] [-delay 1ms] [-plain]
//
// It prints a line of JSON for each event, and ends when stdin closes. The line "cut" on stdin breaks the connection as
// a network does.
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
	plain := flag.Bool("plain", false, "an rpcx client without the helper")
	flag.Parse()
	peer.LogToStderr()
	network, address, ok := strings.Cut(*addr, "@")
	if !ok {
		fmt.Fprintf(os.Stderr, "optin: -addr %q is not NETWORK@ADDRESS\n", *addr)
		os.Exit(2)
	}
	run := runOptIn
	if *plain {
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
		Token: token,
		Push: func(m *protocol.Message) {
			time.Sleep(delay)
			tellPush(m)
		},
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
	running.Go(func() { session.Run(ctx, network, address) })
	<-connected
	if err := join(session.Call, topic); err != nil {
		return err
	}
	obey(func() net.Conn { return session.Client().Conn })
	stop()
	running.Wait()
	return nil
}

func runPlain(network, address, token, topic string, delay time.Duration) error {
	option := client.DefaultOption
	option.BidirectionalBlock = true
	c, messages := client.NewClient(option), make(chan *protocol.Message, 16)
	c.RegisterServerMessageChan(messages)
	if err := c.Connect(network, address); err != nil {
		return err
	}
	defer c.Close()
	call := func(ctx context.Context, path, method string, args, reply any) error {
		pairs := map[string]string{share.AuthKey: token}
		return c.Call(context.WithValue(ctx, share.ReqMetaDataKey, pairs), path, method, args, reply)
	}
	go func() {
		for m := range messages {
			if m.MessageStatusType() == protocol.Error {
				return
			}
			time.Sleep(delay)
			tellPush(m)
		}
	}()
	if err := join(call, topic); err != nil {
		return err
	}
	obey(func() net.Conn { return c.Conn })
	return nil
}

func join(call func(context.Context, string, string, any, any) error, topic string) error {
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
func obey(conn func() net.Conn) {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if tcp, ok := conn().(*net.TCPConn); ok && lines.Text() == "cut" {
			_ = tcp.SetLinger(0) // what is on its way is lost, in both directions
			_ = tcp.Close()
		}
	}
}

func tellPush(m *protocol.Message) {
	tell("push", map[string]any{
		"method": m.ServicePath + "." + m.ServiceMethod, "text": string(m.Payload),
		"offset": m.Seq() &^ (1 << 63), "metadata": m.Metadata,
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
