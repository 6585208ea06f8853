package bothways

import (
	"context"
	"strconv"

	"github.com/smallnest/rpcx/protocol"
)

// Position is how far the application is with a topic that has a history; the zero value is nowhere.
type Position struct{ Epoch, Offset uint64 }

// Subscribed is what came of subscribing. Everything behind Position is coming; if Recovered is false, something
// between the position that was asked from and this one may be missing.
type Subscribed struct {
	Recovered bool
	Position
}

// Call is a call of an ordinary method: Session.Call, or the Call of a client.
type Call func(ctx context.Context, path, method string, args, reply any) error

// Subscribe subscribes to a topic, or to all that match a pattern, and asks for what came behind a position. It works
// without Enable too: then nothing comes again that was lost on its way.
func Subscribe(ctx context.Context, call Call, topic string, from Position) (Subscribed, error) {
	args := struct {
		Topic         string
		Epoch, Offset uint64
	}{topic, from.Epoch, from.Offset}
	var reply struct {
		Recovered     bool
		Epoch, Offset uint64
	}
	err := call(ctx, "_bothways", "Subscribe", args, &reply)
	return Subscribed{reply.Recovered, Position{reply.Epoch, reply.Offset}}, err
}

// Unsubscribe ends it.
func Unsubscribe(ctx context.Context, call Call, topic string) error {
	var none struct{}
	return call(ctx, "_bothways", "Unsubscribe", struct{ Topic string }{topic}, &none)
}

// PositionOf is where a push stands in its topic: what to subscribe from later.
func PositionOf(m *protocol.Message) (topic string, at Position) {
	at.Epoch, _ = strconv.ParseUint(m.Metadata["_bw.te"], 10, 64)
	at.Offset, _ = strconv.ParseUint(m.Metadata["_bw.to"], 10, 64)
	return m.Metadata["_bw.t"], at
}
