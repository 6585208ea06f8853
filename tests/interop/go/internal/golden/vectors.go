package golden

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"

	"bothways.dev/interop/internal/contract"
	"github.com/smallnest/rpcx/codec"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
	"github.com/smallnest/rpcx/util"
)

// The structs whose treatment by msgpack and JSON differs from that of a plain one.
type (
	tagged struct {
		Renamed string `msgpack:"new_name" json:"json_name"`
		Omitted int    `msgpack:",omitempty" json:",omitempty"`
		Skipped int    `msgpack:"-" json:"-"`
		Last    int
	}
	asArray struct {
		_msgpack struct{} `msgpack:",as_array"`
		A        int
		B        string
	}
	embedded struct {
		contract.Inner
		Own int
	}
	hidden struct {
		Shown  int
		hidden int
	}
	pointers struct {
		Pointer *contract.Inner
		Nil     *contract.Inner
	}
	empty struct{}
)

// group is one file of values for one codec.
type group struct {
	name, about string
	values      []any
}

func recordVectors() ([]File, error) {
	var files []File
	for _, c := range []struct {
		prefix string
		codec  codec.Codec
		origin string
		groups []group
	}{
		{"msgpack_", share.Codecs[protocol.MsgPack], "codec.MsgpackCodec.Encode", msgpackGroups()},
		{"json_", share.Codecs[protocol.JSON], "codec.JSONCodec.Encode", jsonGroups()},
		{"protobuf_", share.Codecs[protocol.ProtoBuffer], "codec.PBCodec.Encode", protobufGroups()},
		{"thrift_", share.Codecs[protocol.Thrift], "codec.ThriftCodec.Encode", thriftGroups()},
	} {
		for _, g := range c.groups {
			file := File{
				Name:     c.prefix + g.name,
				Comments: []string{"origin: " + Version + ", " + c.origin, "meaning: " + g.about},
			}
			for _, v := range g.values {
				bytes, err := c.codec.Encode(v)
				if err != nil {
					return nil, fmt.Errorf("%s: %T: %w", file.Name, v, err)
				}
				file.Blocks = append(file.Blocks, Block{Comments: describe(v), Bytes: bytes})
			}
			files = append(files, file)
		}
	}
	gzip := File{Name: "gzip_streams", Comments: []string{"origin: " + Version + ", util.Zip", "meaning: what a payload becomes when it is compressed"}}
	for _, plain := range [][]byte{nil, []byte("a"), []byte(strings.Repeat("abc", 500)), contract.Pattern(1025)} {
		zipped, err := util.Zip(plain)
		if err != nil {
			return nil, err
		}
		// The library gives the buffer back to its pool before it returns it.
		gzip.Blocks = append(gzip.Blocks, Block{Comments: describe(plain), Bytes: append([]byte(nil), zipped...)})
	}
	return append(files, gzip), nil
}

// describe gives the value as Go prints it, and as JSON where JSON can hold it.
func describe(v any) []string {
	lines := []string{"go: " + goText(v)}
	if text, err := json.Marshal(v); err == nil {
		lines = append(lines, "json: "+string(text))
	}
	return lines
}

func goText(v any) string {
	switch v := v.(type) {
	case time.Time:
		return "time.Time " + v.Format(time.RFC3339Nano)
	case string:
		return fmt.Sprintf("string of %d bytes", len(v))
	case []byte:
		if v == nil {
			return "[]byte nil"
		}
		return fmt.Sprintf("[]byte of %d bytes", len(v))
	case contract.Types, contract.Times, pointers:
		// Printed, a pointer would be another address on every run; the JSON says what is behind it.
		return strings.NewReplacer("golden.", "", "contract.", "").Replace(fmt.Sprintf("%T", v))
	case float32, float64:
		return fmt.Sprintf("%T %v", v, v)
	}
	return strings.NewReplacer("golden.", "", "contract.", "").Replace(fmt.Sprintf("%T %+v", v, v))
}

func msgpackGroups() []group {
	letters := func(sizes ...int) (all []any) {
		for _, n := range sizes {
			all = append(all, contract.Letters(n))
		}
		return all
	}
	patterns := func(sizes ...int) (all []any) {
		for _, n := range sizes {
			all = append(all, contract.Pattern(n))
		}
		return all
	}
	lists := func(sizes ...int) (all []any) {
		for _, n := range sizes {
			all = append(all, make([]bool, n))
		}
		return all
	}
	const minute = 60
	return []group{
		{"int", "int takes the shortest form; positive ones use the unsigned codes", []any{
			0, 1, 127, 128, 255, 256, 65535, 65536, math.MaxInt32, math.MaxUint32, math.MaxUint32 + 1, math.MaxInt64,
			-1, -32, -33, -128, -129, -32768, -32769, math.MinInt32, math.MinInt32 - 1, math.MinInt64,
		}},
		{"uint", "uint takes the shortest form", []any{
			uint(0), uint(127), uint(128), uint(255), uint(256), uint(65535), uint(65536), uint(math.MaxUint32), uint(math.MaxUint32 + 1), uint(math.MaxUint64),
		}},
		{"sized_ints", "ints with a size in their name always have that size", []any{
			int8(0), int8(1), int8(127), int8(-1), int8(-128),
			int16(1), int16(-1), int16(math.MaxInt16), int16(math.MinInt16),
			int32(1), int32(-1), int32(math.MaxInt32), int32(math.MinInt32),
			int64(1), int64(-1), int64(5), int64(math.MaxInt64), int64(math.MinInt64),
		}},
		{"sized_uints", "unsigned ones too", []any{
			uint8(0), uint8(1), uint8(255), uint16(1), uint16(math.MaxUint16),
			uint32(1), uint32(math.MaxUint32), uint64(1), uint64(math.MaxUint64),
		}},
		{"floats", "each keeps its width", []any{
			float32(0), float32(1.5), float32(math.MaxFloat32), float32(math.Inf(1)),
			0.0, -0.1, 1.5, math.MaxFloat64, math.SmallestNonzeroFloat64, math.Inf(-1), math.Copysign(0, -1),
		}},
		{"bools_and_nil", "", []any{true, false, nil, (*contract.Inner)(nil), (*int)(nil)}},
		{"strings", "length in the shortest form: fixstr to 31, str8 to 255, str16 to 65535", append(letters(0, 1, 31, 32, 255, 256), "Grüße <&> 世界", "a\x00b")},
		{"bytes", "bin8 to 255, bin16 to 65535; nil is not the empty one", append(patterns(0, 1, 255, 256), []byte(nil))},
		{"lists", "fixarray to 15, then array16; nil is not the empty one", append(lists(0, 1, 15, 16),
			[]int(nil), []int{}, []int{-1, 0, 1, 128, 70000}, []string{"a", "", "c"}, []int64{1}, []any{1, "a", nil, true}, [2]int{1, 2},
			[]contract.Inner{{Name: "x", Value: 1}, {Name: "y", Value: 2}}, [][]int{{1}, {}, nil})},
		{"maps", "one key only, because Go's order is random; nil is not the empty one", []any{
			map[string]string(nil), map[string]string{}, map[string]string{"k": "v"}, map[string]int{"k": 1}, map[string]any{"k": nil},
			map[int]string{1: "one"}, map[string][]int{"k": {1, 2}}, map[string]map[string]string{"a": {"b": "c"}},
		}},
		{"structs", "a map with the names of the fields as they are declared", []any{
			contract.Args{A: 10, B: 20}, &contract.Args{A: 10, B: 20}, contract.Reply{C: 200}, contract.Text{S: "s"},
			contract.MetaReply{Deadline: true, Millis: 1500}, empty{},
			pointers{Pointer: &contract.Inner{Name: "pointed", Value: -1}},
			embedded{Inner: contract.Inner{Name: "flat", Value: 1}, Own: 2}, hidden{Shown: 1, hidden: 2},
		}},
		{"tags", "msgpack tags count, json tags do not", []any{
			tagged{Renamed: "r", Omitted: 0, Skipped: 9, Last: 1}, tagged{Renamed: "r", Omitted: 5, Skipped: 9, Last: 1}, asArray{A: 1, B: "b"},
		}},
		{"times", "extension type -1, in 4, 8 or 12 bytes; the zone is lost", []any{
			time.Unix(0, 0).UTC(), time.Unix(math.MaxUint32, 0).UTC(), time.Unix(math.MaxUint32+1, 0).UTC(),
			contract.SampleTimes().Seconds, contract.SampleTimes().Nanos, contract.SampleTimes().Far, contract.SampleTimes().Before,
			time.Time{}, time.Date(2024, 2, 29, 12, 0, 0, 0, time.FixedZone("", 90*minute)),
		}},
		{"durations", "int64 nanoseconds", []any{time.Duration(0), 1500 * time.Millisecond, -time.Second}},
		{"types", "the struct that Codec.Sample sends", []any{contract.SampleTypes(), contract.Types{}}},
		{"sample_times", "the struct that Codec.SampleTimes sends", []any{contract.SampleTimes()}},
		{"rpcx_own", "the structs of rpcx's own services", []any{
			share.FileTransferArgs{FileName: "a", FileSize: 5, Meta: map[string]string{"k": "v"}},
			share.FileTransferReply{Token: make([]byte, 32), Addr: "x:1"},
			share.DownloadFileArgs{FileName: "a", Meta: map[string]string{"k": "v"}},
			share.StreamServiceArgs{}, share.StreamServiceReply{Token: make([]byte, 32), Addr: "x:1"},
		}},
	}
}

func jsonGroups() []group {
	return []group{
		{"scalars", "", []any{0, -1, math.MaxInt64, uint64(math.MaxUint64), float32(1.5), -0.1, 1e21, 1e-7, true, false, nil}},
		{"strings", "characters that mean something in HTML are escaped", []any{"", "<a href=\"x\">&</a>", "Grüße 世界", "a\x00b\n\t\\", "\u2028", "bad \xff"}},
		{"bytes", "base64 with padding", []any{[]byte(nil), []byte{}, []byte{0}, []byte{0, 1, 254, 255}}},
		{"lists_and_maps", "nil is null, the empty one is not; keys are sorted", []any{
			[]int(nil), []int{}, []int{1, 2}, map[string]string(nil), map[string]string{}, map[string]string{"b": "2", "a": "1"}, map[int]string{1: "one"},
		}},
		{"structs", "the names of the fields, or of json tags", []any{
			contract.Args{A: 10, B: 20}, contract.Reply{C: 200}, embedded{Inner: contract.Inner{Name: "flat", Value: 1}, Own: 2},
			hidden{Shown: 1, hidden: 2}, tagged{Renamed: "r", Skipped: 9, Last: 1}, empty{},
		}},
		{"times", "RFC 3339 with as many digits as needed; durations are nanoseconds", []any{
			contract.SampleTimes().Seconds, contract.SampleTimes().Nanos, contract.SampleTimes().Before, time.Time{},
			time.Date(2024, 2, 29, 12, 0, 0, 0, time.FixedZone("", 5400)), 1500 * time.Millisecond,
		}},
		{"types", "the struct that Codec.Sample sends", []any{contract.SampleTypes(), contract.Types{}}},
		{"sample_times", "the struct that Codec.SampleTimes sends", []any{contract.SampleTimes()}},
	}
}

func protobufGroups() []group {
	return []group{{"structs", "fields 1 and 2 as int32; defaults are left out, negative values have ten bytes", []any{
		&contract.ProtoArgs{A: 200, B: 100}, &contract.ProtoArgs{}, &contract.ProtoArgs{A: -1, B: math.MaxInt32},
		&contract.ProtoArgs{B: math.MinInt32}, &contract.ProtoReply{C: 20000}, &contract.ProtoReply{},
	}}}
}

func thriftGroups() []group {
	return []group{{"structs", "the binary protocol, the bare struct without a message around it", []any{
		&contract.ThriftArgs{A: 200, B: 100}, &contract.ThriftArgs{}, &contract.ThriftArgs{A: -1, B: math.MaxInt32},
		&contract.ThriftReply{C: 20000}, &contract.ThriftReply{},
	}}}
}
