package cases

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"bothways.dev/interop/internal/contract"
	"github.com/smallnest/rpcx/protocol"
)

func runBareMsgpack(e *Env) (map[string]any, error) { return nil, runBare(e, protocol.MsgPack) }

func runBareJSON(e *Env) (map[string]any, error) { return nil, runBare(e, protocol.JSON) }

// echoes sends each value to a method that answers what it got.
func echoes[T any](c *conn, method string, values []T, same func(sent, got T) bool) error {
	for _, sent := range values {
		var got T
		if err := c.do("Bare", method, &sent, &got); err != nil {
			return fmt.Errorf("%v: %w", sent, err)
		}
		if !same(sent, got) {
			return fmt.Errorf("%v was sent, and %v came back", sent, got)
		}
	}
	return nil
}

func equal[T comparable](sent, got T) bool { return sent == got }

func sameBits(sent, got float64) bool { return math.Float64bits(sent) == math.Float64bits(got) }

// runBare is for values that are no structs, for structs with tags, and for the ends of ranges.
func runBare(e *Env, serialize protocol.SerializeType) error {
	c, err := e.dial(e.option(serialize), nil)
	if err != nil {
		return err
	}
	return all(
		check{"Bare.Bytes", func() error { return echoes(c, "Bytes", contract.BareBytes, bytes.Equal) }},
		check{"Bare.Lists", func() error {
			return echoes(c, "Lists", [][][]byte{nil, {{1}, nil, {}}}, func(sent, got [][]byte) bool {
				return fmt.Sprint(sent) == fmt.Sprint(got)
			})
		}},
		check{"Bare.Time", func() error { return echoes(c, "Time", contract.BareTimes, time.Time.Equal) }},
		check{"Bare.Duration", func() error { return echoes(c, "Duration", contract.BareDurations, equal) }},
		check{"Bare.Float", func() error { return echoes(c, "Float", contract.BareFloats, sameBits) }},
		check{"Bare.Single", func() error { return echoes(c, "Single", contract.BareSingles, equal) }},
		check{"Bare.Uint", func() error { return echoes(c, "Uint", contract.BareUints, equal) }},
		check{"Bare.Int", func() error { return echoes(c, "Int", contract.BareInts, equal) }},
		check{"Bare.Map", func() error {
			values := []map[int]string{nil, {}, {-1: "a", math.MaxInt64: ""}}
			return echoes(c, "Map", values, func(sent, got map[int]string) bool { return maps.Equal(sent, got) })
		}},
		check{"Bare.Tagged", func() error {
			values := []contract.Tagged{contract.SampleTagged(), {FullName: "no pointer"}}
			return echoes(c, "Tagged", values, sameTagged)
		}},
		check{"numbers that are none", func() error { return noNumbers(c, serialize) }},
		check{"into any type", func() error {
			var got any
			args := map[string]any{"A": 10, "B": uint8(20), "Unknown": nil}
			if err := c.do("Arith", "Mul", args, &got); err != nil {
				return err
			}
			return expect("the reply", fmt.Sprint(got), "map[C:200]")
		}},
		check{"names in lower case", func() error {
			if serialize != protocol.JSON {
				return nil
			}
			var reply contract.Reply
			if err := c.do("Arith", "Mul", &contract.Lower{A: 6, B: 7}, &reply); err != nil {
				return err
			}
			return expect("C", reply.C, 42)
		}},
		check{"floats as text", func() error {
			if serialize != protocol.JSON {
				return nil
			}
			if err := asGoWrites(c, "Float", slices.Concat(contract.BareFloats, contract.WrittenFloats)); err != nil {
				return err
			}
			return asGoWrites(c, "Single", contract.BareSingles)
		}},
		check{"a whole float into an integer", func() error {
			if serialize != protocol.JSON {
				return nil
			}
			for sent, want := range map[float64]int{7: 7, -1e15: -1e15, 0: 0} {
				var got int
				if err := c.do("Bare", "Float", &sent, &got); err != nil {
					return err
				}
				if err := expect("the integer", got, want); err != nil {
					return err
				}
			}
			return nil
		}},
		check{"after all that", func() error { return stillWorks(c) }},
	)
}

// asGoWrites expects each float to come back in the very text that Go has for it.
func asGoWrites[T float32 | float64](c *conn, method string, values []T) error {
	for _, sent := range values {
		want, err := json.Marshal(sent)
		if err != nil {
			return err
		}
		var got json.RawMessage
		if err := c.do("Bare", method, &sent, &got); err != nil {
			return fmt.Errorf("%s: %w", want, err)
		}
		if err := expect("the text", string(got), string(want)); err != nil {
			return err
		}
	}
	return nil
}

// sameTagged lets a pointer to zeros stand for none: who has no pointers cannot tell them apart.
func sameTagged(sent, got contract.Tagged) bool {
	if sent.Inner == nil {
		sent.Inner = &contract.Inner{}
	}
	if got.Inner == nil {
		got.Inner = &contract.Inner{}
	}
	return reflect.DeepEqual(sent, got)
}

// noNumbers come back in msgpack; in JSON each is an error of its call.
func noNumbers(c *conn, serialize protocol.SerializeType) error {
	if serialize == protocol.MsgPack {
		return echoes(c, "Float", contract.NoNumbers, func(sent, got float64) bool {
			return sent == got || math.IsNaN(sent) && math.IsNaN(got)
		})
	}
	var got float64
	err := c.do("Bare", "NaN", &contract.Args{}, &got)
	if err == nil {
		return errors.New("a NaN came back in JSON")
	}
	if !strings.Contains(err.Error(), "unsupported value: NaN") {
		return fmt.Errorf("another error: %w", err)
	}
	return nil
}

// runNarrow sends integers that the server's types cannot hold.
func runNarrow(e *Env) (map[string]any, error) {
	for _, serialize := range []protocol.SerializeType{protocol.MsgPack, protocol.JSON} {
		c, err := e.dial(e.option(serialize), nil)
		if err != nil {
			return nil, err
		}
		for method, args := range map[string]any{"Int": uint64(math.MaxUint64), "Uint": int64(-1), "Duration": int64(-1)} {
			var got any
			if err := c.do("Bare", method, &args, &got); err == nil {
				return nil, fmt.Errorf("Bare.%s took %v for %v", method, args, got)
			}
		}
		if err := stillWorks(c); err != nil {
			return nil, err
		}
	}
	return nil, nil
}
