// Command bidirectional_client is the example of rpcx's documentation for messages from the server. It calls Arith.Mul
// once and then prints each message:
//
//	10 * 20 = 200
//	received: abcde
//	received: abcde
//
// The client in Rust prints exactly these lines too, and tests compare them: keep the format.
//
//	bidirectional_client [-n COUNT] [ADDRESS]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"bothways.dev/interop/internal/contract"
	"bothways.dev/interop/internal/peer"
	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
)

func main() {
	n := flag.Int("n", 0, "end after so many messages, 0 for never")
	flag.Parse()
	peer.LogToStderr()
	address := "127.0.0.1:8972"
	if flag.NArg() > 0 {
		address = flag.Arg(0)
	}
	if err := run(address, *n); err != nil {
		fmt.Fprintln(os.Stderr, "bidirectional_client:", err)
		os.Exit(1)
	}
}

func run(address string, n int) error {
	discovery, err := client.NewPeer2PeerDiscovery("tcp@"+address, "")
	if err != nil {
		return err
	}
	// The documentation has a channel without room; this has some, because rpcx drops a message that finds no reader.
	ch := make(chan *protocol.Message, 16)
	x := client.NewBidirectionalXClient("Arith", client.Failtry, client.RandomSelect, discovery, client.DefaultOption, ch)
	defer x.Close()

	args := contract.Args{A: 10, B: 20}
	var reply contract.Reply
	if err := x.Call(context.Background(), "Mul", &args, &reply); err != nil {
		return err
	}
	// Go does not buffer stdout: each line is out when Printf returns.
	fmt.Printf("%d * %d = %d\n", args.A, args.B, reply.C)
	for received := 0; n == 0 || received < n; received++ {
		message := <-ch
		if message.MessageStatusType() == protocol.Error {
			return fmt.Errorf("connection lost: %s", message.Metadata[protocol.ServiceError])
		}
		fmt.Printf("received: %s\n", message.Payload)
	}
	return nil
}
