package bothways

import (
	"context"
	"strconv"

	"github.com/smallnest/rpcx/protocol"
)

// Position is the application's position in a topic with history; the zero value is no position.
type Position struct{ Epoch, Offset uint64 }

// Subscribed is the result of a subscription. Every message after Position will come. If Recovered is false, some
// between the requested position and this one may be missing.
type Subscribed struct {
	Recovered bool
	Position
}

// Call is a call of an ordinary method: Session.Call, or the Call of a client.
type Call func(ctx context.Context, path, method string, args, reply any) error

// Subscribe subscribes to a topic, or to all topics that match a pattern, and asks for the messages after a position.
// It works without Enable too, but then messages that are lost on their way do not come again.
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

// Member is somebody in a topic: a user, or the session of one without. Status is "online" or "reconnecting".
type Member struct{ User, Session, Status string }

// Roster gives who is in a topic that shows presence and to which the application is subscribed. Every change of an
// equal or smaller generation is in it.
func Roster(ctx context.Context, call Call, topic string) (members []Member, generation uint64, err error) {
	for first := true; ; first = false {
		args := struct{ Topic, AfterUser, AfterSession string }{Topic: topic}
		if last := len(members) - 1; 0 <= last {
			args.AfterUser, args.AfterSession = members[last].User, members[last].Session
		}
		var reply struct {
			Generation uint64
			Members    []Member
			More       bool
		}
		if err := call(ctx, "_bothways", "Roster", args, &reply); err != nil {
			return nil, 0, err
		}
		if first {
			generation = reply.Generation
		}
		members = append(members, reply.Members...)
		if !reply.More || len(reply.Members) == 0 {
			return members, generation, nil
		}
	}
}
