package contract

import (
	"math"
	"time"
)

// Tagged has the tags that applications give their structs, and a struct embedded by pointer. rpcx looks at json tags
// in JSON only, and at msgpack tags in msgpack only.
type Tagged struct {
	FullName string `json:"full_name"`
	Value    int    `json:"value" msgpack:"v"`
	Data     []byte `json:"data,omitempty"`
	*Inner
	Hidden int `json:"-" msgpack:"-"`
}

// SampleTagged returns the values that Bare.Tagged sends.
func SampleTagged() Tagged {
	return Tagged{FullName: "Ada", Value: -6, Data: []byte{0, 255}, Inner: &Inner{Name: "within", Value: 7}}
}

// Lower is Args as a client has it that names its fields by json tags in lower case.
type Lower struct {
	A int `json:"a"`
	B int `json:"b"`
}

// Bare values, at the ends of their ranges.
var (
	BareBytes     = [][]byte{nil, {}, {0}, {0, 1, 254, 255}, Pattern(300)}
	BareTimes     = []time.Time{SampleTimes().Seconds, SampleTimes().Nanos, SampleTimes().Far, SampleTimes().Before, {}, time.Date(2024, 2, 29, 12, 0, 0, 0, time.FixedZone("", 5400))}
	BareDurations = []time.Duration{0, 1, 1500 * time.Millisecond, math.MaxInt64}
	BareFloats    = []float64{0, math.Copysign(0, -1), 0.1, math.MaxFloat64, math.SmallestNonzeroFloat64, 1e21, 1e-7, 1.0 / 3, 5e-324, 2.2250738585072014e-308, 9007199254740993}
	BareSingles   = []float32{0, 0.1, math.MaxFloat32, math.SmallestNonzeroFloat32, 16777217}
	WrittenFloats = []float64{7, -7, 0.5, 1e-5, 1e-6, 9.99e-7, -1.5e-7, 1e-10, 1e15, 1e16, 1e17, 1e20, 9.999999999999999e20, -1e21, 1.5e21, 1e100, 1.8446744073709552e19}
	BareUints     = []uint64{0, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64}
	BareInts      = []int64{0, -1, math.MinInt64, math.MaxInt64}
	NoNumbers     = []float64{math.NaN(), math.Inf(1), math.Inf(-1)}
)
