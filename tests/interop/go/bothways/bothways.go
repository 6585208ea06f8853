// Package bothways gives an application on the unmodified rpcx client more than plain rpcx with a Bothways server: the
// server can call it, knows which pushes it has handled, and repeats the pushes that it missed when its connection was
// lost.
//
// It needs only rpcx. This file alone is enough for an application that manages its connection by itself; session.go
// manages the connection, and topics.go subscribes. Copy what you need. docs/protocol.md describes the messages.
package bothways

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
)

// Enable must be the first call on a connection. From then on the server may call the application, and keeps each push
// until it is acknowledged. The returned metadata names the session, for Resume.
func Enable(ctx context.Context, c *client.Client) (session map[string]string, err error) {
	return ask(ctx, c, "Enable", nil)
}

// Resume must be the first call on the next connection: the pushes after this offset come again. If the session is
// gone, the returned metadata names a new one, and "_bw.why" is the reason.
func Resume(ctx context.Context, c *client.Client, session map[string]string, handled uint64) (map[string]string, error) {
	said := map[string]string{"_bw.sid": session["_bw.sid"], "_bw.key": session["_bw.key"], "_bw.off": fmt.Sprint(handled)}
	return ask(ctx, c, "Resume", said)
}

// Offset is the number of a push in its session; 0 if the server does not keep this push.
func Offset(m *protocol.Message) uint64 { return m.Seq() &^ (1 << 63) }

// Ack reports every push up to this offset as handled. It returns when it is written, so that reports arrive in order.
func Ack(ctx context.Context, c *client.Client, offset uint64) error {
	return tell(ctx, c, "Ack", map[string]string{"_bw.ack": fmt.Sprintf("%d,%d", offset, offset)}, struct{}{})
}

// Fail is Ack for the one push of this offset, which the application could not handle: before an Ack of a later one,
// which would cover it. The code is "no_handler", "bad_arguments", "error" or "panicked". The push does not come again,
// and its sender learns why.
func Fail(ctx context.Context, c *client.Client, offset uint64, code string) error {
	said := map[string]string{"_bw.ack": fmt.Sprintf("%d,%d", offset, offset), "_bw.nack": fmt.Sprintf("%d:%s", offset, code)}
	return tell(ctx, c, "Ack", said, struct{}{})
}

// Reply answers a call of the server: a message with "_bw.call" in its metadata. A value that cannot be sent is an error.
// The text of an error is cut at 16 KiB: a server takes no call with more than 64 KiB of metadata.
func Reply(ctx context.Context, c *client.Client, call *protocol.Message, value any, err error) error {
	said := map[string]string{"_bw.call": call.Metadata["_bw.call"]}
	if err == nil {
		if err = tell(ctx, c, "Reply", said, value); err == nil {
			return nil
		}
	}
	said["__rpcx_error__"] = text(err)
	return tell(ctx, c, "Reply", said, struct{}{})
}

// textMax is how many bytes of an error's text are sent, beside those that say how long it was.
const textMax = 16 << 10

// text is that of an error, in UTF-8, and cut if it is long.
func text(err error) string {
	text := strings.ToValidUTF8(err.Error(), "\ufffd")
	if long := len(text); textMax+64 < long {
		text = strings.ToValidUTF8(text[:textMax], "") + fmt.Sprintf(" ... (%d bytes)", long)
	}
	return text
}

// Decode decodes the payload of a message. A payload of another kind is an error, where rpcx's codecs may panic.
func Decode(m *protocol.Message, to any) (err error) {
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("a payload of serialize type %d is no %T", m.SerializeType(), to)
		}
	}()
	return share.Codecs[m.SerializeType()].Decode(m.Payload, to)
}

func ask(ctx context.Context, c *client.Client, method string, said map[string]string) (map[string]string, error) {
	none := struct{}{}
	return call(ctx, c, method, said, none, &none)
}

// tell returns when it is written: rpcx sends each call in a goroutine of its own, in any order.
func tell(ctx context.Context, c *client.Client, method string, said map[string]string, value any) error {
	_, err := call(ctx, c, method, said, value, nil) // no reply: oneway
	return err
}

// call waits no longer than its context: rpcx waits for ever until a oneway call is written.
func call(ctx context.Context, c *client.Client, method string, said map[string]string, args, reply any) (map[string]string, error) {
	done := make(chan *client.Call, 1)
	c.Go(with(ctx, said), "_bothways", method, args, reply, done)
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case answer := <-done:
		pairs := map[string]string{}
		maps.Copy(pairs, answer.ResMetadata)
		return pairs, answer.Error
	}
}

// with adds pairs to those that the application itself sends, such as its token.
func with(ctx context.Context, said map[string]string) context.Context {
	pairs := map[string]string{}
	if own, ok := ctx.Value(share.ReqMetaDataKey).(map[string]string); ok {
		maps.Copy(pairs, own)
	}
	maps.Copy(pairs, said)
	return context.WithValue(ctx, share.ReqMetaDataKey, pairs)
}
