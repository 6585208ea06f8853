package bothways

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
)

// asked is a call of the server, with a limit in ms.
func asked(method, number, id, limit string) *protocol.Message {
	pairs := map[string]string{"_bw.call": number, "__ServerTimeout": limit}
	if id != "" {
		pairs["_bw.id"] = id
	}
	return word("Device", method, pairs)
}

func TestAnswersAreKeptWithinBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var results results
		ended := func(id string, bytes int) *running {
			call, isFirst := results.begin(t.Context(), id, time.Minute)
			if isFirst {
				call.value = make(encoded, bytes)
				results.end(call)
			}
			return call
		}
		for i := range 6 {
			ended(fmt.Sprint("large ", i), 1<<20)
		}
		if results.bytes != answerBytesMax {
			t.Error(results.bytes)
		}
		if call := ended("large 1", 1); call.err == nil || call.value != nil {
			t.Error("what was let go runs again, or is kept")
		}
		if call := ended("large 5", 1); call.err != nil || len(call.value) != 1<<20 {
			t.Error("what is kept is not given", call.err, len(call.value))
		}
		if call := ended("huge", 5<<20); results.of("huge") != call {
			t.Error("the newest was let go")
		}

		for i := range 3 * answersMax {
			ended(fmt.Sprint("small ", i), 100)
			ended("", 1000)
			ended(fmt.Sprintf("%65d", i), 1000)
		}
		results.mutex.Lock()
		if len(results.runs) != answersMax || len(results.over) != answersMax || results.bytes != 100*answersMax {
			t.Error(len(results.runs), len(results.over), results.bytes)
		}
		results.mutex.Unlock()

		// Nobody asks for them any more.
		time.Sleep(2 * time.Minute)
		results.mutex.Lock()
		defer results.mutex.Unlock()
		if len(results.runs) != 0 || results.bytes != 0 || results.sweeping != nil {
			t.Error(len(results.runs), results.bytes, results.sweeping)
		}
	})
}

// The context of a handler, and the timer that it has, end with the handler.
func TestACallThatIsOverHasNoTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &server{sends: []*protocol.Message{asked("Quick", "1", "a", "3600000")}}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
		defer stop()
		handlers := make(chan context.Context, 1)
		session := &Session{Handlers: map[string]func(context.Context, *protocol.Message) (any, error){
			"Device.Quick": func(ctx context.Context, _ *protocol.Message) (any, error) {
				handlers <- ctx
				return 1, nil
			},
		}}
		time.AfterFunc(time.Second, func() {
			if err := (<-handlers).Err(); err != context.Canceled {
				t.Error(err)
			}
		})
		_ = session.Run(ctx, "test", "")
		synctest.Wait()
		if len(server.said("Reply")) != 1 || session.calls.runs != nil || session.calls.sweeping != nil {
			t.Error(len(server.said("Reply")), session.calls.runs)
		}
		time.Sleep(time.Minute)
	})
}

func TestACallThatComesTwiceRunsOnceAndIsAnsweredTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &server{sends: []*protocol.Message{
			asked("Count", "1", "a", "5000"), asked("Count", "2", "a", "5000"), // of one call
			asked("Count", "3", "", "5000"), asked("Count", "4", "", "5000"), // of two
			asked("Count", "5", "b", "5000"), word("_bothways", "Cancel", map[string]string{"_bw.id": "b"}),
			asked("Count", "6", "c", "50"), // too late
		}}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
		defer stop()
		runs := make(chan struct{}, 10)
		session := &Session{Handlers: map[string]func(context.Context, *protocol.Message) (any, error){
			"Device.Count": func(ctx context.Context, _ *protocol.Message) (any, error) {
				runs <- struct{}{}
				select {
				case <-time.After(100 * time.Millisecond):
					return 1, nil
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			},
		}}
		_ = session.Run(ctx, "test", "")
		answered := map[string]int{}
		for _, reply := range server.said("Reply") {
			answered[reply.Metadata["_bw.call"]]++
		}
		if got := fmt.Sprint(answered, len(runs)); got != "map[1:1 2:1 3:1 4:1] 5" {
			t.Error(got)
		}
		time.Sleep(time.Minute)
	})
}

// However often its connection is lost while a call runs: it is answered on the connection of then.
func TestACallOutlivesTheConnectionsThatAreLostWhileItRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &server{again: []*protocol.Message{asked("Count", "1", "a", "60000"), asked("Count", "2", "a", "60000")}, brief: 8}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), 50*time.Second)
		defer stop()
		session := &Session{Handlers: map[string]func(context.Context, *protocol.Message) (any, error){
			"Device.Count": func(context.Context, *protocol.Message) (any, error) {
				time.Sleep(40 * time.Second)
				return 1, nil
			},
		}}
		_ = session.Run(ctx, "test", "")
		if len(server.began) != 9 {
			t.Errorf("%d connections", len(server.began))
		}
		said := server.said("Reply")
		if len(said) != 2 || said[0].Metadata["__rpcx_error__"] != "" || said[1].Metadata["__rpcx_error__"] != "" {
			t.Errorf("%d answers: %v", len(said), said)
		}
		time.Sleep(time.Minute)
	})
}

// Whatever codec the application's own clients use, its answers are what they say they are.
func TestAnswersAreMessagePackWhateverTheDefaultCodecIs(t *testing.T) {
	known := client.DefaultOption.SerializeType
	defer func() { client.DefaultOption.SerializeType = known }()
	for _, codec := range []protocol.SerializeType{protocol.JSON, protocol.ProtoBuffer, protocol.Thrift, protocol.SerializeNone} {
		client.DefaultOption.SerializeType = codec
		synctest.Test(t, func(t *testing.T) {
			server := &server{sends: []*protocol.Message{asked("Count", "1", "a", "5000")}}
			server.listen()
			ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
			defer stop()
			session := &Session{Handlers: map[string]func(context.Context, *protocol.Message) (any, error){
				"Device.Count": func(context.Context, *protocol.Message) (any, error) { return 7, nil },
			}}
			_ = session.Run(ctx, "test", "")
			said := server.said("Reply")
			if len(said) != 1 {
				t.Fatalf("%d answers with codec %d", len(said), codec)
			}
			var value int
			if err := Decode(said[0], &value); err != nil || value != 7 || said[0].SerializeType() != protocol.MsgPack {
				t.Errorf("codec %d: %v in %d, %v", codec, value, said[0].SerializeType(), err)
			}
			time.Sleep(time.Minute)
		})
	}
}

// An application that takes nothing: what the server does not keep is dropped and told, what it keeps waits outside,
// and neither takes memory beyond the bound.
func TestWhatASlowApplicationHasNotTakenIsBounded(t *testing.T) {
	const many = 40
	synctest.Test(t, func(t *testing.T) {
		server := &server{sends: []*protocol.Message{tracked(1, 1)}}
		for range many {
			server.sends = append(server.sends, tracked(0, 1<<20))
		}
		for offset := range uint64(many) {
			server.sends = append(server.sends, tracked(offset+2, 1<<20))
		}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
		defer stop()
		var missed, untracked, handled uint64
		session := &Session{
			Missed: func(pushes uint64) { missed += pushes },
			Push: func(m *protocol.Message) error {
				switch offset := Offset(m); offset {
				case 0:
					untracked++
				case handled + 1:
					handled++
				default:
					return errors.New("out of order")
				}
				if handled == 1 && untracked == 0 {
					time.Sleep(time.Minute)
				}
				return nil
			},
		}
		_ = session.Run(ctx, "test", "")
		if missed+untracked != many || missed < many-16 || handled != many+1 {
			t.Errorf("%d missed, %d untracked, %d tracked", missed, untracked, handled)
		}
		if len(server.began) != 1 {
			t.Error("its connection was lost", server.began)
		}
		time.Sleep(time.Minute)
	})
}

func TestTheInboxHoldsNoMoreThanItsBounds(t *testing.T) {
	in := newInbox()
	for range 3 * waitingMax {
		in.put(tracked(0, 1))
	}
	if len(in.waiting) != waitingMax || in.dropped != 2*waitingMax {
		t.Error(len(in.waiting), in.dropped)
	}
	for m, _ := in.take(t.Context()); !in.isEmpty(); m, _ = in.take(t.Context()) {
		if m == nil {
			t.Fatal("nil before it is empty")
		}
	}
	if _, missed := in.take(t.Context()); missed != 2*waitingMax || in.bytes != 0 {
		t.Error("what was dropped last is not told", missed, in.bytes)
	}
	for offset := range uint64(20) {
		in.put(tracked(offset+1, 1<<20))
	}
	large := asked("Mul", "1", "a", "50")
	large.Payload = make([]byte, 1<<20)
	if waitingBytesMax < in.bytes || in.put(tracked(21, 1<<20)) || in.put(large) {
		t.Error(in.bytes)
	}
	if in.close(); !in.put(tracked(22, 1<<20)) || !in.isEmpty() {
		t.Error("who is closed holds something")
	}
	one := newInbox()
	if !one.put(tracked(1, waitingBytesMax+1)) || one.put(tracked(2, 1)) {
		t.Error("one message of any size has room, and none beside it")
	}
}
