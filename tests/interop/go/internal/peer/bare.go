package peer

import (
	"context"
	"math"
	"time"

	"bothways.dev/interop/internal/contract"
)

// Bare has arguments and replies that are no structs.
type Bare struct{}

// Bytes answers what it got.
func (Bare) Bytes(_ context.Context, args *[]byte, reply *[]byte) error {
	*reply = *args
	return nil
}

// Lists answers what it got.
func (Bare) Lists(_ context.Context, args *[][]byte, reply *[][]byte) error {
	*reply = *args
	return nil
}

// Time answers what it got.
func (Bare) Time(_ context.Context, args *time.Time, reply *time.Time) error {
	*reply = *args
	return nil
}

// Duration answers what it got.
func (Bare) Duration(_ context.Context, args *time.Duration, reply *time.Duration) error {
	*reply = *args
	return nil
}

// Float answers what it got.
func (Bare) Float(_ context.Context, args *float64, reply *float64) error {
	*reply = *args
	return nil
}

// Single answers what it got.
func (Bare) Single(_ context.Context, args *float32, reply *float32) error {
	*reply = *args
	return nil
}

// Uint answers what it got.
func (Bare) Uint(_ context.Context, args *uint64, reply *uint64) error {
	*reply = *args
	return nil
}

// Int answers what it got.
func (Bare) Int(_ context.Context, args *int64, reply *int64) error {
	*reply = *args
	return nil
}

// Map answers what it got.
func (Bare) Map(_ context.Context, args *map[int]string, reply *map[int]string) error {
	*reply = *args
	return nil
}

// Tagged answers what it got.
func (Bare) Tagged(_ context.Context, args *contract.Tagged, reply *contract.Tagged) error {
	*reply = *args
	return nil
}

// NaN answers a float that is no number, which JSON cannot hold.
func (Bare) NaN(_ context.Context, _ *contract.Args, reply *float64) error {
	*reply = math.NaN()
	return nil
}
