// Package contract holds what the test server and the test client agree on: names, argument and reply types, fixed
// texts and sample values. The table in README.md says the same in words, and the Rust test server is written from it.
package contract

import "time"

// Fixed texts, compared byte for byte by the cases.
const (
	// AuthRefusal is what a server started with a token says to every other token.
	AuthRefusal = "invalid token"
	// ErrText is the error of Arith.Err.
	ErrText = "boom"
	// PartialText is the error of Arith.ErrPartial, which fills its reply before it fails.
	PartialText = "partial boom"
	// FunctionErrText is the error of the function "err" under FunctionPath.
	FunctionErrText = "function boom"
	// RouterErrText is the error of the router handler Router.Err.
	RouterErrText = "router boom"
)

// Where pushes go, as in the documentation's example of rpcx.
const (
	PushPath    = "test_service_path"
	PushMethod  = "test_service_method"
	PushPayload = "abcde"
)

// FunctionPath is the path of the functions registered without a service type.
const FunctionPath = "a.fake.service"

// GotPrefix is put before each request metadata key when Meta.Echo sends it back.
const GotPrefix = "got-"

// Args and Reply are the pair of rpcx's own examples. Other services give A and B the meaning that the table states.
type Args struct {
	A int
	B int
}

// Reply is the answer to Args.
type Reply struct {
	C int
}

// Text is a single string.
type Text struct {
	S string
}

// MetaReply tells what Meta.Echo saw of its context.
type MetaReply struct {
	Deadline bool  // true if the context had a deadline
	Millis   int64 // milliseconds until it, 0 without one
}

// Inner is what Types nests.
type Inner struct {
	Name  string
	Value int
}

// Types has a field of each Go type that the msgpack and JSON codecs treat in their own way.
type Types struct {
	Bool       bool
	Int        int
	Int8       int8
	Int16      int16
	Int32      int32
	Int64      int64
	Uint       uint
	Uint8      uint8
	Uint16     uint16
	Uint32     uint32
	Uint64     uint64
	Float32    float32
	Float64    float64
	String     string
	Bytes      []byte
	NilBytes   []byte
	EmptyBytes []byte
	Nested     Inner
	Pointer    *Inner
	NilPointer *Inner
	Map        map[string]string
	NilMap     map[string]string
	EmptyMap   map[string]string
	Strings    []string
	Ints       []int
	NilSlice   []int
	EmptySlice []int
	Inners     []Inner
	Duration   time.Duration
}

// Times has an instant for each of the three forms of msgpack's timestamp: 4 bytes (Seconds), 8 bytes (Nanos) and
// 12 bytes (Far, Before). In JSON each is an RFC 3339 string.
type Times struct {
	Seconds time.Time
	Nanos   time.Time
	Far     time.Time
	Before  time.Time
}

// SampleTypes returns the values that Codec.Sample sends. They sit at the ends of their ranges, because that is where
// codecs differ.
func SampleTypes() Types {
	return Types{
		Bool:       true,
		Int:        -5,
		Int8:       -128,
		Int16:      -32768,
		Int32:      -2147483648,
		Int64:      -9223372036854775808,
		Uint:       300,
		Uint8:      255,
		Uint16:     65535,
		Uint32:     4294967295,
		Uint64:     18446744073709551615,
		Float32:    1.5,
		Float64:    -0.1,
		String:     "Grüße <&> 世界",
		Bytes:      []byte{0, 1, 254, 255},
		EmptyBytes: []byte{},
		Nested:     Inner{Name: "nested", Value: 7},
		Pointer:    &Inner{Name: "pointed", Value: -1},
		Map:        map[string]string{"k": "v"},
		EmptyMap:   map[string]string{},
		Strings:    []string{"a", "", "c"},
		Ints:       []int{-1, 0, 1, 128, 70000},
		EmptySlice: []int{},
		Inners:     []Inner{{Name: "x", Value: 1}, {Name: "y", Value: 2}},
		Duration:   1500 * time.Millisecond,
	}
}

// SampleTimes returns the instants that Codec.SampleTimes sends.
func SampleTimes() Times {
	return Times{
		Seconds: time.Date(2001, 9, 9, 1, 46, 40, 0, time.UTC),
		Nanos:   time.Date(2024, 2, 29, 12, 34, 56, 789012345, time.UTC),
		Far:     time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC),
		Before:  time.Date(1969, 12, 31, 23, 59, 59, 500000000, time.UTC),
	}
}

// Pattern returns size bytes that repeat with a period of 251, a prime, so that a shifted or a lost piece shows.
func Pattern(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

// Letters returns a string of size letters, "abc…z" over and over.
func Letters(size int) string {
	b := make([]byte, size)
	for i := range b {
		b[i] = 'a' + byte(i%26)
	}
	return string(b)
}

// NumberedPayload returns the payload of push number n of Push.Start: the number as 8 bytes big-endian, then byte i at
// each further place i. It has at least 8 bytes.
func NumberedPayload(n uint64, size int) []byte {
	b := make([]byte, max(size, 8))
	for i := range b {
		b[i] = byte(i)
	}
	for i := range 8 {
		b[i] = byte(n >> (56 - 8*i))
	}
	return b
}

// SleepMillis is how long Order.Sleep waits for argument a: 0 to 20 ms, scattered but always the same for the same
// argument.
func SleepMillis(a int) int {
	return (a*7919%21 + 21) % 21
}
