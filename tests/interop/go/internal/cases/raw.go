package cases

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"bothways.dev/interop/internal/contract"
	"bothways.dev/interop/internal/wire"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
)

// rawConn is a connection on which a case sends frames one by one.
type rawConn struct {
	net.Conn
	env *Env
	seq uint64
}

func (e *Env) rawConn() (*rawConn, error) {
	c, err := e.rawDial()
	if err != nil {
		return nil, err
	}
	return &rawConn{Conn: c, env: e, seq: 1000}, nil
}

// send writes bytes and reads one frame.
func (c *rawConn) send(b []byte) ([]byte, error) {
	if _, err := c.Write(b); err != nil {
		return nil, err
	}
	return wire.ReadFrame(c)
}

// exchange sends the request with the token and requires the next frame to be its reply.
func (c *rawConn) exchange(m *protocol.Message) (*protocol.Message, error) {
	c.env.sign(m)
	frame, err := c.send(m.Encode())
	if err != nil {
		return nil, err
	}
	reply, err := wire.Decode(frame)
	if err != nil {
		return nil, err
	}
	if err := expect("the message type", reply.MessageType(), protocol.Response); err != nil {
		return nil, err
	}
	if err := expect("the sequence number", reply.Seq(), m.Seq()); err != nil {
		return nil, err
	}
	if err := expect("the serialize type", reply.SerializeType(), m.SerializeType()); err != nil {
		return nil, err
	}
	return reply, expect("path and method", reply.ServicePath+" "+reply.ServiceMethod, m.ServicePath+" "+m.ServiceMethod)
}

// sign puts the token into the request.
func (e *Env) sign(m *protocol.Message) {
	if e.Auth == "" {
		return
	}
	if m.Metadata == nil {
		m.Metadata = make(map[string]string)
	}
	m.Metadata[share.AuthKey] = e.Auth
}

// stillWorks echoes a few bytes.
func (c *rawConn) stillWorks() error {
	c.seq++
	m := wire.Request(c.seq, protocol.SerializeNone, "Raw", "Echo")
	m.Payload = []byte("still here?")
	reply, err := c.exchange(m)
	if err != nil {
		return fmt.Errorf("the connection is of no use any more: %w", err)
	}
	return expect("the echo", string(reply.Payload), "still here?")
}

// expectClosed requires that the server closes the connection and sends nothing before.
func (c *rawConn) expectClosed() error {
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	frame, err := wire.ReadFrame(c)
	if err == nil && 16 <= len(frame) && frame[2]&0x83 == 0x81 {
		// A failed reply may say which limit the frame is beyond, before the end.
		frame, err = wire.ReadFrame(c)
	}
	var timeout net.Error
	switch {
	case err == nil:
		return fmt.Errorf("the server answered %x", frame[:min(len(frame), 80)])
	case errors.As(err, &timeout) && timeout.Timeout():
		return errors.New("the server kept the connection open")
	case errors.Is(err, io.EOF), errors.As(err, new(*net.OpError)):
		return nil
	default:
		return err
	}
}

// expectClosedOrRefused requires that the server closes the connection, or answers with an error and goes on.
func (c *rawConn) expectClosedOrRefused() (answered bool, err error) {
	_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
	frame, err := wire.ReadFrame(c)
	if err != nil {
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			return false, errors.New("the server neither answered nor closed the connection")
		}
		return false, err
	}
	reply, err := wire.Decode(frame)
	if err != nil {
		return true, err
	}
	if err := expect("the status", reply.MessageStatusType(), protocol.Error); err != nil {
		return true, err
	}
	if reply.Metadata[protocol.ServiceError] == "" {
		return true, errors.New("the error has no text")
	}
	return true, c.stillWorks()
}

// parts are the pieces of a frame, so that a case can put together one that no encoder makes.
type parts struct {
	magic    byte
	flags    byte // the third byte of the header
	path     string
	method   string
	metadata []byte // the block as it is on the wire
	payload  []byte

	// What is added to each length that the frame states.
	total, pathLen, methodLen, metadataLen, payloadLen int
	cut                                                int // bytes left off the end; the total length is that of the rest
}

func (p parts) encode() []byte {
	var body []byte
	body = appendLength(body, len(p.path)+p.pathLen)
	body = append(body, p.path...)
	body = appendLength(body, len(p.method)+p.methodLen)
	body = append(body, p.method...)
	body = appendLength(body, len(p.metadata)+p.metadataLen)
	body = append(body, p.metadata...)
	body = appendLength(body, len(p.payload)+p.payloadLen)
	body = append(body, p.payload...)
	body = body[:len(body)-p.cut]

	frame := []byte{p.magic, 0, p.flags, byte(protocol.SerializeNone) << 4, 0, 0, 0, 0, 0, 0, 0, 7}
	frame = appendLength(frame, len(body)+p.total)
	return append(frame, body...)
}

func appendLength(b []byte, n int) []byte {
	return append(b, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// echoParts is a well-formed call of Raw.Echo, for a case to spoil.
func (e *Env) echoParts() parts {
	p := parts{magic: 8, path: "Raw", method: "Echo", payload: []byte("payload")}
	if e.Auth != "" {
		p.metadata = appendLength(p.metadata, len(share.AuthKey))
		p.metadata = append(p.metadata, share.AuthKey...)
		p.metadata = appendLength(p.metadata, len(e.Auth))
		p.metadata = append(p.metadata, e.Auth...)
	}
	return p
}

type spoiled struct {
	name  string
	spoil func(*parts)
}

func runMalformed(e *Env) (map[string]any, error) {
	return expectAllClosed(e, []spoiled{
		{"another magic number", func(p *parts) { p.magic = 9 }},
		{"two stray bytes in the metadata", func(p *parts) { p.metadata = append(p.metadata, 0, 0) }},
		{"a metadata value longer than the block", func(p *parts) { p.metadata = append(p.metadata, "\x00\x00\x00\x01k\x00\x00\x00\x63v"...) }},
		{"a metadata key without a value", func(p *parts) { p.metadata = append(p.metadata, "\x00\x00\x00\x01k"...) }},
	}, []spoiled{
		{"a compression that nobody has", func(p *parts) { p.flags = 2 << 2 }},
		{"gzip that is none", func(p *parts) { p.flags = 1 << 2 }},
		{"gzip without a byte", func(p *parts) { p.flags = 1 << 2; p.payload = nil }},
	})
}

func runStrict(e *Env) (map[string]any, error) {
	return expectAllClosed(e, []spoiled{
		{"a body without a byte", func(p *parts) { *p = parts{magic: 8, cut: 16} }},
		{"a body of 15 bytes", func(p *parts) { *p = parts{magic: 8, cut: 1} }},
		{"a path longer than the body", func(p *parts) { p.pathLen = 1000 }},
		{"a path of 4 GiB", func(p *parts) { p.pathLen = 0xffffffff - len(p.path) }},
		{"a method longer than the body", func(p *parts) { p.methodLen = 1000 }},
		{"metadata longer than the body", func(p *parts) { p.metadataLen = 1000 }},
		{"no payload length", func(p *parts) { p.payload = nil; p.cut = 4 }},
		{"a payload length of 0 before a payload", func(p *parts) { p.payloadLen = -len(p.payload) }},
		{"a payload length beyond the body", func(p *parts) { p.payloadLen = 9999 }},
		{"a body of 4 GiB, of which only the length is sent", func(p *parts) { *p = parts{magic: 8, cut: 16, total: 0xffffffff} }},
	}, nil)
}

// expectAllClosed sends each frame on a connection of its own, behind a call that works, while another connection is
// to notice nothing. The frame of closed must end its connection; that of refused may be answered with an error in
// place of that, because only its payload is of no use, and then the connection must go on. The answer tells how many
// were.
func expectAllClosed(e *Env, closed, refused []spoiled) (map[string]any, error) {
	if !e.hasRaw() {
		return nil, fmt.Errorf("this case needs tcp or unix, not %s", e.Network)
	}
	bystander, err := e.msgpack()
	if err != nil {
		return nil, err
	}
	answered := 0
	for i, f := range append(closed, refused...) {
		p := e.echoParts()
		f.spoil(&p)
		err := func() error {
			raw, err := e.rawConn()
			if err != nil {
				return err
			}
			defer raw.Close()
			if err := raw.stillWorks(); err != nil {
				return err
			}
			if _, err := raw.Write(p.encode()); err != nil {
				return err
			}
			if i < len(closed) {
				return raw.expectClosed()
			}
			wasAnswered, err := raw.expectClosedOrRefused()
			if wasAnswered {
				answered++
			}
			return err
		}()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	var reply contract.Reply
	if err := bystander.do("Arith", "Add", &contract.Args{A: 1, B: 2}, &reply); err != nil {
		return nil, fmt.Errorf("the connection that did nothing wrong: %w", err)
	}
	return map[string]any{"answered": answered}, expect("1+2", reply.C, 3)
}
