// Command traced is a Go rpcx server between two others of which a trace goes through it: Relay.Ask passes its text on to
// Text.Upper at -next. A plugin reads the context of a request and puts a span of its own in its place, as the
// OpenTelemetry plugin of rpcx does, and prints one line of JSON for each span. It ends when its standard input does.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"bothways.dev/interop/internal/peer"
	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/server"
	"github.com/smallnest/rpcx/share"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

var propagator = propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})

// tracer puts a span around each request.
type tracer struct{}

// PreHandleRequest replaces the context in the request's metadata by that of a span of its own.
func (tracer) PreHandleRequest(_ context.Context, r *protocol.Message) error {
	ctx := propagator.Extract(context.Background(), propagation.MapCarrier(r.Metadata))
	parent := trace.SpanContextFromContext(ctx)
	if !parent.IsValid() {
		return nil
	}
	var id trace.SpanID
	_, _ = rand.Read(id[:])
	propagator.Inject(trace.ContextWithSpanContext(ctx, parent.WithSpanID(id)), propagation.MapCarrier(r.Metadata))
	line, err := json.Marshal(map[string]string{
		"name":    "rpcx.service." + r.ServicePath + "." + r.ServiceMethod,
		"trace":   parent.TraceID().String(),
		"parent":  parent.SpanID().String(),
		"span":    id.String(),
		"state":   parent.TraceState().String(),
		"baggage": baggage.FromContext(ctx).String(),
	})
	if err == nil {
		fmt.Println(string(line))
	}
	return err
}

// Relay asks the next server.
type Relay struct {
	next client.XClient
}

// Ask passes the text on with the metadata of its request, in a map of its own: rpcx's client writes into it.
func (r *Relay) Ask(ctx context.Context, text *string, reply *string) error {
	metadata := map[string]string{}
	if of, ok := ctx.Value(share.ReqMetaDataKey).(map[string]string); ok {
		for _, key := range propagator.Fields() {
			if value, ok := of[key]; ok {
				metadata[key] = value
			}
		}
	}
	return r.next.Call(context.WithValue(ctx, share.ReqMetaDataKey, metadata), "Upper", text, reply)
}

func main() {
	next := flag.String("next", "", "the server to ask, NETWORK@ADDRESS")
	flag.Parse()
	peer.LogToStderr()
	if err := run(*next); err != nil {
		fmt.Fprintln(os.Stderr, "traced:", err)
		os.Exit(1)
	}
}

func run(next string) error {
	discovery, err := client.NewPeer2PeerDiscovery(next, "")
	if err != nil {
		return err
	}
	option := client.DefaultOption
	option.SerializeType = protocol.MsgPack
	x := client.NewXClient("Text", client.Failfast, client.RandomSelect, discovery, option)
	defer x.Close()

	s := server.NewServer()
	s.Plugins.Add(tracer{})
	if err := s.RegisterName("Relay", &Relay{next: x}, ""); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- s.ServeListener("tcp", ln) }()
	select {
	case <-s.Started:
	case err := <-served:
		return err
	}
	defer s.Close()
	fmt.Println("LISTENING", strings.Join([]string{"tcp", ln.Addr().String()}, "@"))
	_, _ = io.Copy(io.Discard, os.Stdin)
	return nil
}
