package contract

import (
	"context"

	"github.com/apache/thrift/lib/go/thrift"
)

// ThriftArgs is `struct ThriftArgs { 1: i32 A, 2: i32 B }`, written by hand in place of generated code.
type ThriftArgs struct {
	A int32
	B int32
}

// Write encodes the struct.
func (t *ThriftArgs) Write(ctx context.Context, p thrift.TProtocol) error {
	return writeInt32s(ctx, p, "ThriftArgs", []namedInt32{{"A", 1, t.A}, {"B", 2, t.B}})
}

// Read decodes the struct and skips the fields it does not know.
func (t *ThriftArgs) Read(ctx context.Context, p thrift.TProtocol) error {
	*t = ThriftArgs{}
	return readInt32s(ctx, p, func(id int16, value int32) {
		switch id {
		case 1:
			t.A = value
		case 2:
			t.B = value
		}
	})
}

// ThriftReply is `struct ThriftReply { 1: i32 C }`.
type ThriftReply struct {
	C int32
}

// Write encodes the struct.
func (t *ThriftReply) Write(ctx context.Context, p thrift.TProtocol) error {
	return writeInt32s(ctx, p, "ThriftReply", []namedInt32{{"C", 1, t.C}})
}

// Read decodes the struct and skips the fields it does not know.
func (t *ThriftReply) Read(ctx context.Context, p thrift.TProtocol) error {
	*t = ThriftReply{}
	return readInt32s(ctx, p, func(id int16, value int32) {
		if id == 1 {
			t.C = value
		}
	})
}

type namedInt32 struct {
	name  string
	id    int16
	value int32
}

func writeInt32s(ctx context.Context, p thrift.TProtocol, name string, fields []namedInt32) error {
	if err := p.WriteStructBegin(ctx, name); err != nil {
		return err
	}
	for _, f := range fields {
		if err := p.WriteFieldBegin(ctx, f.name, thrift.I32, f.id); err != nil {
			return err
		}
		if err := p.WriteI32(ctx, f.value); err != nil {
			return err
		}
		if err := p.WriteFieldEnd(ctx); err != nil {
			return err
		}
	}
	if err := p.WriteFieldStop(ctx); err != nil {
		return err
	}
	return p.WriteStructEnd(ctx)
}

func readInt32s(ctx context.Context, p thrift.TProtocol, set func(int16, int32)) error {
	if _, err := p.ReadStructBegin(ctx); err != nil {
		return err
	}
	for {
		_, kind, id, err := p.ReadFieldBegin(ctx)
		if err != nil {
			return err
		}
		if kind == thrift.STOP {
			break
		}
		if kind == thrift.I32 {
			value, err := p.ReadI32(ctx)
			if err != nil {
				return err
			}
			set(id, value)
		} else if err := p.Skip(ctx, kind); err != nil {
			return err
		}
		if err := p.ReadFieldEnd(ctx); err != nil {
			return err
		}
	}
	return p.ReadStructEnd(ctx)
}
