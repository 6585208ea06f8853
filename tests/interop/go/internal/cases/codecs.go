package cases

import (
	"bytes"
	"fmt"

	"bothways.dev/interop/internal/contract"
	"github.com/smallnest/rpcx/protocol"
)

// mulWith calls a method that multiplies two Args.
func mulWith(c *conn, path, method string) error {
	var reply contract.Reply
	if err := c.do(path, method, &contract.Args{A: 10, B: 20}, &reply); err != nil {
		return err
	}
	return expect(path+"."+method, reply.C, 200)
}

func runMsgpack(e *Env) (map[string]any, error) { return nil, runStructs(e, protocol.MsgPack) }

func runJSON(e *Env) (map[string]any, error) { return nil, runStructs(e, protocol.JSON) }

// runStructs is for the two codecs that encode any Go type.
func runStructs(e *Env, serialize protocol.SerializeType) error {
	c, err := e.dial(e.option(serialize), nil)
	if err != nil {
		return err
	}
	return all(
		check{"Arith.Mul", func() error { return mulWith(c, "Arith", "Mul") }},
		check{"negative numbers", func() error { return multiplyNegative(c) }},
		check{"Codec.Sample", func() error {
			var got contract.Types
			if err := c.do("Codec", "Sample", &contract.Args{}, &got); err != nil {
				return err
			}
			return expect("what arrived wrong", contract.DiffTypes(contract.SampleTypes(), got), "")
		}},
		check{"Codec.Diff", func() error { return expectText(c, "Diff", contract.SampleTypes()) }},
		check{"Codec.Echo", func() error { return echoTypes(c, contract.SampleTypes()) }},
		check{"Codec.Echo of zero values", func() error { return echoTypes(c, contract.Types{}) }},
		check{"Codec.SampleTimes", func() error {
			var got contract.Times
			if err := c.do("Codec", "SampleTimes", &contract.Args{}, &got); err != nil {
				return err
			}
			return expect("what arrived wrong", contract.DiffTimes(contract.SampleTimes(), got), "")
		}},
		check{"Codec.DiffTimes", func() error { return expectText(c, "DiffTimes", contract.SampleTimes()) }},
		check{"Codec.EchoTimes", func() error {
			var got contract.Times
			if err := c.do("Codec", "EchoTimes", contract.SampleTimes(), &got); err != nil {
				return err
			}
			return expect("what came back wrong", contract.DiffTimes(contract.SampleTimes(), got), "")
		}},
		check{"Codec.EchoString", func() error {
			sent, got := "bare <string>", ""
			if err := c.do("Codec", "EchoString", &sent, &got); err != nil {
				return err
			}
			return expect("the string", got, sent)
		}},
		check{"Codec.EchoStrings", func() error {
			var got []string
			if err := c.do("Codec", "EchoStrings", []string{"a", "", "c"}, &got); err != nil {
				return err
			}
			return expect("the list", fmt.Sprintf("%q", got), `["a" "" "c"]`)
		}},
	)
}

func multiplyNegative(c *conn) error {
	var reply contract.Reply
	if err := c.do("Arith", "Mul", &contract.Args{A: -70000, B: 70000}, &reply); err != nil {
		return err
	}
	return expect("C", reply.C, -4900000000)
}

func expectText(c *conn, method string, args any) error {
	var got contract.Text
	if err := c.do("Codec", method, args, &got); err != nil {
		return err
	}
	return expect("what arrived wrong at the server", got.S, "")
}

func echoTypes(c *conn, sent contract.Types) error {
	var got contract.Types
	if err := c.do("Codec", "Echo", &sent, &got); err != nil {
		return err
	}
	return expect("what came back wrong", contract.DiffTypes(sent, got), "")
}

func runProtobuf(e *Env) (map[string]any, error) {
	c, err := e.dial(e.option(protocol.ProtoBuffer), nil)
	if err != nil {
		return nil, err
	}
	for _, p := range [][3]int32{{200, 100, 20000}, {-7, 3, -21}, {0, 5, 0}} {
		var reply contract.ProtoReply
		if err := c.do("Proto", "Mul", &contract.ProtoArgs{A: p[0], B: p[1]}, &reply); err != nil {
			return nil, err
		}
		if err := expect("C", reply.C, p[2]); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func runThrift(e *Env) (map[string]any, error) {
	c, err := e.dial(e.option(protocol.Thrift), nil)
	if err != nil {
		return nil, err
	}
	for _, p := range [][3]int32{{200, 100, 20000}, {-7, 3, -21}, {0, 5, 0}} {
		var reply contract.ThriftReply
		if err := c.do("Thrift", "Mul", &contract.ThriftArgs{A: p[0], B: p[1]}, &reply); err != nil {
			return nil, err
		}
		if err := expect("C", reply.C, p[2]); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func runRaw(e *Env) (map[string]any, error) {
	c, err := e.dial(e.option(protocol.SerializeNone), nil)
	if err != nil {
		return nil, err
	}
	for _, size := range []int{0, 1, 255, 1024, 1025, 70000} {
		if err := echoRaw(c, contract.Pattern(size)); err != nil {
			return nil, fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	var got []byte
	if err := c.do("Raw", "Make", []byte("1000"), &got); err != nil {
		return nil, err
	}
	return nil, expectBytes(got, contract.Pattern(1000))
}

func echoRaw(c *conn, sent []byte) error {
	var got []byte
	if err := c.do("Raw", "Echo", sent, &got); err != nil {
		return err
	}
	return expectBytes(got, sent)
}

func expectBytes(got, want []byte) error {
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes came back for %d, or others than were sent", len(got), len(want))
	}
	return nil
}

func runFunction(e *Env) (map[string]any, error) {
	c, err := e.msgpack()
	if err != nil {
		return nil, err
	}
	return nil, all(
		check{"mul", func() error { return mulWith(c, contract.FunctionPath, "mul") }},
		check{"err", func() error {
			return expectErr(c.do(contract.FunctionPath, "err", &contract.Args{}, &contract.Reply{}), contract.FunctionErrText)
		}},
		check{"after the error", func() error { return stillWorks(c) }},
	)
}

func runRouter(e *Env) (map[string]any, error) {
	c, err := e.msgpack()
	if err != nil {
		return nil, err
	}
	return nil, all(
		check{"Router.Echo", func() error {
			sent, got := contract.Args{A: 1, B: -2}, contract.Args{}
			if err := c.do("Router", "Echo", &sent, &got); err != nil {
				return err
			}
			return expect("the echo", got, sent)
		}},
		check{"Router.Err", func() error {
			return expectErr(c.do("Router", "Err", &contract.Args{}, &contract.Args{}), contract.RouterErrText)
		}},
		check{"after the error", func() error { return stillWorks(c) }},
	)
}
