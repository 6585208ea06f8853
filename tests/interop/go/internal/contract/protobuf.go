package contract

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// ProtoArgs is `message ProtoArgs { int32 A = 1; int32 B = 2; }`. Marshal and Unmarshal are written by hand, so that the
// module needs no protobuf compiler; rpcx's codec takes any type that has the two methods.
type ProtoArgs struct {
	A int32
	B int32
}

// Marshal encodes the message; a field with its default value is left out, as proto3 wants it.
func (m *ProtoArgs) Marshal() ([]byte, error) {
	return appendInt32(appendInt32(nil, 1, m.A), 2, m.B), nil
}

// Unmarshal decodes the message and skips the fields it does not know.
func (m *ProtoArgs) Unmarshal(data []byte) error {
	*m = ProtoArgs{}
	return eachInt32(data, func(number protowire.Number, value int32) {
		switch number {
		case 1:
			m.A = value
		case 2:
			m.B = value
		}
	})
}

// ProtoReply is `message ProtoReply { int32 C = 1; }`.
type ProtoReply struct {
	C int32
}

// Marshal encodes the message.
func (m *ProtoReply) Marshal() ([]byte, error) {
	return appendInt32(nil, 1, m.C), nil
}

// Unmarshal decodes the message and skips the fields it does not know.
func (m *ProtoReply) Unmarshal(data []byte) error {
	*m = ProtoReply{}
	return eachInt32(data, func(number protowire.Number, value int32) {
		if number == 1 {
			m.C = value
		}
	})
}

func appendInt32(b []byte, number protowire.Number, value int32) []byte {
	if value == 0 {
		return b
	}
	b = protowire.AppendTag(b, number, protowire.VarintType)
	// Protobuf extends the sign of an int32 to 64 bits: a negative value has ten bytes.
	return protowire.AppendVarint(b, uint64(int64(value)))
}

func eachInt32(data []byte, set func(protowire.Number, int32)) error {
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
		if kind == protowire.VarintType {
			value, n := protowire.ConsumeVarint(data)
			if n < 0 {
				return protowire.ParseError(n)
			}
			set(number, int32(value))
			data = data[n:]
			continue
		}
		n = protowire.ConsumeFieldValue(number, kind, data)
		if n < 0 {
			return protowire.ParseError(n)
		}
		data = data[n:]
	}
	return nil
}
