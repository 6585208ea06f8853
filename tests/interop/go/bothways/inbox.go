package bothways

import (
	"context"
	"sync"

	"github.com/smallnest/rpcx/protocol"
)

// The most that waits for the application; rpcx holds two messages more.
const (
	waitingMax      = 4096
	waitingBytesMax = 16 << 20
)

// inbox holds the server's messages until the application takes them. Beyond its bounds nothing is read from the
// connection, except for pushes that the server does not keep: they are dropped, and counted.
type inbox struct {
	mutex   sync.Mutex
	waiting []waiting
	bytes   int
	dropped uint64 // after the last that waits
	closed  bool
	news    chan struct{} // has one if something came in
	room    chan struct{} // has one if something was taken
}

type waiting struct {
	m      *protocol.Message
	missed uint64 // so many were dropped before it
	bytes  int
}

func newInbox() *inbox {
	return &inbox{news: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// fill takes from rpcx's reader until that tells of the end of its connection.
func (i *inbox) fill(from <-chan *protocol.Message) {
	for m := range from {
		for !i.put(m) {
			<-i.room
		}
		if m.MessageStatusType() == protocol.Error {
			return
		}
	}
}

// put says whether it is done with a message: else it waits for room.
func (i *inbox) put(m *protocol.Message) bool {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	if i.closed {
		return true
	}
	size := sizeOf(m)
	isFull := waitingMax <= len(i.waiting) || 0 < i.bytes && waitingBytesMax < i.bytes+size
	switch {
	case m.MessageStatusType() == protocol.Error: // the last of all
	case isFull && isUntracked(m):
		i.dropped++
		return true
	case isFull:
		return false
	}
	i.waiting = append(i.waiting, waiting{m, i.dropped, size})
	i.bytes += size
	i.dropped = 0
	signal(i.news)
	return true
}

// take waits for the next message; nil at the end of the context, and where pushes were dropped and none has come since.
func (i *inbox) take(ctx context.Context) (m *protocol.Message, missed uint64) {
	for ctx.Err() == nil {
		if m, missed = i.next(); m != nil || 0 < missed {
			return m, missed
		}
		select {
		case <-ctx.Done():
		case <-i.news:
		}
	}
	return nil, 0
}

func (i *inbox) next() (m *protocol.Message, missed uint64) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	if len(i.waiting) == 0 {
		missed, i.dropped = i.dropped, 0
		return nil, missed
	}
	first := i.waiting[0]
	i.waiting[0] = waiting{} // or it lives as long as those behind it
	i.waiting = i.waiting[1:]
	i.bytes -= first.bytes
	signal(i.room)
	return first.m, first.missed
}

func (i *inbox) isEmpty() bool {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	return len(i.waiting) == 0
}

// close lets rpcx's reader go, which may wait for room: what comes is dropped.
func (i *inbox) close() {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	i.closed, i.waiting, i.bytes = true, nil, 0
	signal(i.room)
}

// isUntracked says that the server does not keep this: a push at most once.
func isUntracked(m *protocol.Message) bool {
	isWord := m.ServicePath == "_bothways" && m.ServiceMethod != "Presence"
	return !isWord && Offset(m) == 0 && m.Metadata["_bw.call"] == ""
}

// sizeOf is about what a message takes in memory.
func sizeOf(m *protocol.Message) int {
	size := 512 + len(m.ServicePath) + len(m.ServiceMethod) + len(m.Payload)
	for key, value := range m.Metadata {
		size += 64 + len(key) + len(value)
	}
	return size
}

func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
