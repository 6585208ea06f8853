package bothways

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// The most that is kept of calls that are over: an answer may have been lost with its connection.
const (
	answersMax     = 1024    // calls; those that run are not counted
	answerBytesMax = 4 << 20 // of their answers, except for the newest; older ones are let go
	callIDMax      = 64      // bytes of a call's id: a Bothways server gives 16
	sweepEvery     = 30 * time.Second
)

// results are the calls of the server by their ids, so that one that comes again after a lost connection runs once.
type results struct {
	mutex    sync.Mutex
	runs     map[string]*running
	over     []ended // oldest first
	bytes    int     // of the answers of over
	sweeping *time.Timer
}

type ended struct {
	id    string
	until time.Time
	bytes int
}

// running is a call of the server, which may come more than once.
type running struct {
	id      string    // empty: it is not kept
	until   time.Time // nobody waits any more
	ctx     context.Context
	cancel  context.CancelFunc
	over    chan struct{} // closed with its handler; then the last three are there
	sent    atomic.Int32
	givenUp atomic.Bool
	late    bool // nobody waited when its handler was over
	value   encoded
	err     error
}

// begin gives the call of this id, which may run or be over if it is not the first that came.
func (r *results) begin(ctx context.Context, id string, limit time.Duration) (call *running, isFirst bool) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if known := r.runs[id]; known != nil {
		return known, false
	}
	call = &running{until: time.Now().Add(limit), over: make(chan struct{})}
	call.ctx, call.cancel = context.WithDeadline(ctx, call.until)
	if id != "" && len(id) <= callIDMax {
		if r.runs == nil {
			r.runs = map[string]*running{}
		}
		call.id, r.runs[id] = id, call
	}
	return call, true
}

// of gives a call that is known, or nil.
func (r *results) of(id string) *running {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.runs[id]
}

// end notes that a handler is over, and lets go what is beyond the bounds.
func (r *results) end(call *running) {
	call.late = call.ctx.Err() != nil
	close(call.over)
	call.cancel() // ends its timer
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.runs[call.id] != call {
		return // not kept, or of a Run that is over
	}
	bytes := len(call.value)
	if call.err != nil {
		bytes += len(call.err.Error())
	}
	r.over = append(r.over, ended{call.id, call.until, bytes})
	r.bytes += bytes

	for i := 0; answerBytesMax < r.bytes && i < len(r.over)-1; i++ {
		if old := &r.over[i]; 0 < old.bytes {
			r.runs[old.id] = letGo(old.until)
			r.bytes -= old.bytes
			old.bytes = 0
		}
	}
	if answersMax < len(r.over) {
		r.bytes -= r.over[0].bytes
		delete(r.runs, r.over[0].id)
		r.over = r.over[1:]
	}
	if r.sweeping == nil {
		r.sweeping = time.AfterFunc(sweepEvery, r.sweep) // one for all
	}
}

// sweep forgets the calls for whose answers nobody waits.
func (r *results) sweep() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	var left []ended
	for _, old := range r.over {
		if time.Now().Before(old.until) {
			left = append(left, old)
			continue
		}
		r.bytes -= old.bytes
		delete(r.runs, old.id)
	}
	if r.over = left; r.sweeping == nil || len(left) == 0 {
		r.sweeping = nil
		return
	}
	r.sweeping.Reset(sweepEvery)
}

// forget ends it all.
func (r *results) forget() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.sweeping != nil {
		r.sweeping.Stop()
	}
	r.runs, r.over, r.bytes, r.sweeping = nil, nil, 0, nil
}

// letGo is a call that has run, and whose answer is not kept any more.
func letGo(until time.Time) *running {
	call := &running{until: until, over: make(chan struct{}), cancel: func() {}}
	call.err = errors.New("the call has run, and its answer is not kept any more")
	close(call.over)
	return call
}

// giveUp ends the context of the handler, and its answer is not sent.
func (c *running) giveUp() {
	c.givenUp.Store(true)
	c.cancel()
}

// isAwaited says whether somebody waits for the answer of a handler that is over.
func (c *running) isAwaited() bool {
	return !c.late && !c.givenUp.Load() && time.Now().Before(c.until)
}
