// Package wire moves whole frames without interpreting them, for the cases that look at bits which the library hides.
package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/smallnest/rpcx/protocol"
)

// headerLen is the fixed header and the length field behind it.
const headerLen = 16

// frameBytesMax bounds what ReadFrame allocates for a peer's word. The largest payload of a case is 16 MiB.
const frameBytesMax = 64 << 20

// ReadFrame reads one frame and returns its bytes as they came. The error is io.EOF only between frames.
func ReadFrame(r io.Reader) ([]byte, error) {
	frame := make([]byte, headerLen)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, err
	}
	if frame[0] != protocol.MagicNumber() {
		return nil, fmt.Errorf("a frame starts with %#02x", frame[0])
	}
	length := binary.BigEndian.Uint32(frame[12:])
	if length > frameBytesMax {
		return nil, fmt.Errorf("a frame of %d bytes", length)
	}
	frame = append(frame, make([]byte, length)...)
	if _, err := io.ReadFull(r, frame[headerLen:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return frame, nil
}

// Decode decodes a frame with rpcx's own decoder.
func Decode(frame []byte) (*protocol.Message, error) {
	return protocol.Read(bytes.NewReader(frame))
}

// Request returns a request without a payload, for the caller to change.
func Request(seq uint64, serialize protocol.SerializeType, path, method string) *protocol.Message {
	m := protocol.NewMessage()
	m.SetMessageType(protocol.Request)
	m.SetSeq(seq)
	m.SetSerializeType(serialize)
	m.ServicePath = path
	m.ServiceMethod = method
	return m
}
