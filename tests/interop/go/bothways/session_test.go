package bothways

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
)

// isRace says that the tests look for races.
var isRace bool

// server is the other end of connections in memory, so that time is that of the test.
type server struct {
	began   []time.Duration     // when each connection began
	refuses string              // with this text, if not empty
	silent  bool                // answers Enable and Resume, and nothing else
	sends   []*protocol.Message // on the first connection, behind its first answer
	left    int
	cuts    string              // ends the first connection where this method comes
	again   []*protocol.Message // on each connection, behind its first answer
	brief   int                 // so many connections end after a second
	hearing sync.Mutex          // a connection may end while the next one begins
	heard   []*protocol.Message
}

// listen is the network "test" from here on.
func (s *server) listen() {
	start := time.Now()
	client.ConnFactories["test"] = func(*client.Client, string, string) (net.Conn, error) {
		s.began = append(s.began, time.Since(start))
		here, there := net.Pipe()
		sends := append(s.sends, s.again...)
		s.sends = nil
		if 0 < s.brief {
			s.brief--
			time.AfterFunc(time.Second, func() { there.Close() })
		}
		go s.serve(there, sends, len(s.began) == 1)
		return here, nil
	}
}

func (s *server) serve(c net.Conn, sends []*protocol.Message, isFirst bool) {
	out := make(chan []byte, 10_000)
	defer close(out)
	go func() { // reads whether or not it is read
		for frame := range out {
			_, _ = c.Write(frame)
		}
	}()
	defer c.Close()
	for {
		m := protocol.NewMessage()
		if m.Decode(c) != nil {
			return
		}
		s.hear(m)
		first := m.ServiceMethod == "Enable" || m.ServiceMethod == "Resume"
		if isFirst && s.cuts != "" && m.ServiceMethod == s.cuts {
			return
		}
		if m.IsOneway() || s.silent && !first {
			continue
		}
		answer := protocol.NewMessage()
		*answer.Header = *m.Header
		answer.SetMessageType(protocol.Response)
		answer.ServicePath, answer.ServiceMethod, answer.Payload = m.ServicePath, m.ServiceMethod, m.Payload
		answer.Metadata = map[string]string{"_bw.sid": "1", "_bw.key": "k", "_bw.off": "0", "_bw.res": "1"}
		if s.refuses != "" {
			answer.SetMessageStatusType(protocol.Error)
			answer.Metadata = map[string]string{protocol.ServiceError: s.refuses}
		}
		out <- answer.Encode()
		for _, message := range sends {
			out <- message.Encode()
		}
		sends = nil
	}
}

func (s *server) hear(m *protocol.Message) {
	s.hearing.Lock()
	defer s.hearing.Unlock()
	s.heard = append(s.heard, m)
	if m.ServiceMethod == "Leave" {
		s.left++
	}
}

// said are the messages of a method that came, on all connections.
func (s *server) said(method string) (said []*protocol.Message) {
	s.hearing.Lock()
	defer s.hearing.Unlock()
	for _, m := range s.heard {
		if m.ServiceMethod == method {
			said = append(said, m)
		}
	}
	return said
}

func TestARefusedApplicationAsksLessAndLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &server{refuses: "who is it"}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
		defer stop()
		failed := 0
		session := &Session{Failed: func(err error) {
			if failed++; err.Error() != "who is it" {
				t.Error(err)
			}
		}}
		if err := session.Run(ctx, "test", ""); err != context.DeadlineExceeded {
			t.Error(err)
		}
		if n := len(server.began); n < 20 || 60 < n || failed < n-1 {
			t.Errorf("%d connections, %d failures told: %v", n, failed, server.began)
		}
		for i, at := range server.began[1:] {
			if gap := at - server.began[i]; gap > 30*time.Second || i > 10 && gap < 15*time.Second {
				t.Errorf("%s after %d failures", gap, i)
			}
		}
		time.Sleep(time.Minute) // of the test's time: rpcx ends its heartbeats at the next one
	})
}

func TestASilentConnectionIsLost(t *testing.T) {
	if isRace {
		t.Skip("rpcx 1.9.4 has a race with itself: Client.Close writes to calls that Client.call reads")
	}
	synctest.Test(t, func(t *testing.T) {
		server := &server{silent: true}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), 100*time.Second)
		defer stop()
		_ = (&Session{}).Run(ctx, "test", "")
		if len(server.began) != 4 {
			t.Errorf("connected at %v", server.began)
		}
		time.Sleep(time.Minute)
	})
}

func TestAConnectionWithoutPushesIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &server{}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
		defer stop()
		_ = (&Session{}).Run(ctx, "test", "")
		if len(server.began) != 1 || server.left != 1 {
			t.Errorf("connected at %v, left %d times", server.began, server.left)
		}
		time.Sleep(time.Minute)
	})
}

func TestALongFrameOnASlowConnectionIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		c := &conn{Conn: here, silence: 30 * time.Second}
		reading := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			reading <- err
		}()
		frame, got := make([]byte, 1<<20), 0
		go func() {
			for part := make([]byte, 64<<10); got < len(frame); {
				time.Sleep(20 * time.Second)
				n, _ := there.Read(part)
				got += n
			}
			_, _ = there.Write([]byte{1})
		}()
		if n, err := c.Write(frame); n != len(frame) || err != nil {
			t.Error(n, err)
		}
		if err := <-reading; err != nil {
			t.Error(err)
		}
		// Nobody takes the next.
		if _, err := c.Write(frame); err == nil {
			t.Error("it was written to nobody")
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a connection with half a frame goes on")
		}
	})
}

func TestAPayloadOfAnotherKindIsAnError(t *testing.T) {
	for serialized := range 16 {
		var args struct{ A int }
		m := protocol.NewMessage()
		m.SetSerializeType(protocol.SerializeType(serialized))
		m.Payload = []byte("hello")
		if err := Decode(m, &args); err == nil {
			t.Errorf("serialize type %d", serialized)
		}
	}
}

func TestAnAnswerThatCannotBeSentIsAnError(t *testing.T) {
	answers := map[string]func() any{
		"D.chan":  func() any { return make(chan int) },
		"D.panic": func() any { panic("as it was told") },
		"D.large": func() any { return make([]byte, 1001) },
		"D.codec": func() any { return panics{} },
		"D.good":  func() any { return make([]byte, 900) },
	}
	session := &Session{ReplyMax: 1000, Handlers: map[string]func(context.Context, *protocol.Message) (any, error){}}
	for name, answer := range answers {
		session.Handlers[name] = func(context.Context, *protocol.Message) (any, error) { return answer(), nil }
	}
	for name, text := range map[string]string{
		"chan": "unsupported", "panic": "panicked", "large": "limit of 1000", "codec": "panicked", "none": "no handler", "good": "",
	} {
		value, err := session.handle(t.Context(), &protocol.Message{ServicePath: "D", ServiceMethod: name})
		if err == nil && text != "" || err != nil && (text == "" || !strings.Contains(err.Error(), text)) {
			t.Errorf("%s: %v", name, err)
		}
		again, _ := share.Codecs[protocol.MsgPack].Encode(value)
		if err == nil && !bytes.Equal(again, value) {
			t.Errorf("%s is encoded twice", name)
		}
	}
}

func TestAnyDeadlineOfTheServerIsADuration(t *testing.T) {
	limits := map[string]time.Duration{
		"": 30 * time.Second, "nonsense": 30 * time.Second, "0": 30 * time.Second, "-5": 30 * time.Second, "250": 250 * time.Millisecond,
		"9223372036854775807": math.MaxInt64 / time.Millisecond * time.Millisecond, "9223372036854775808": 30 * time.Second,
	}
	for text, want := range limits {
		m := &protocol.Message{Metadata: map[string]string{"__ServerTimeout": text}}
		if got := limit(m); got != want {
			t.Errorf("%q: %s", text, got)
		}
	}
}

func TestWhatTheServerSaysOfItselfIsNoPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &server{sends: []*protocol.Message{
			word("_bothways", "Gap", map[string]string{"_bw.missed": "7"}),
			word("_bothways", "Gap", map[string]string{"_bw.missed": "7"}),
			word("_bothways", "Gap", map[string]string{"_bw.missed": "10"}),
			word("_bothways", "Gap", nil),
			word("_bothways", "Later", nil),
			word("_bothways", "Presence", nil),
			word("Chat", "Say", nil),
		}}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		var missed []uint64
		var pushes []string
		session := &Session{
			Missed: func(n uint64) { missed = append(missed, n) },
			Push: func(m *protocol.Message) error {
				pushes = append(pushes, m.ServiceMethod)
				return nil
			},
		}
		_ = session.Run(ctx, "test", "")
		if fmt.Sprint(missed, pushes) != "[7 3] [Presence Say]" {
			t.Error(missed, pushes)
		}
		time.Sleep(time.Minute)
	})
}

// word is a message that the server begins, and does not keep.
func word(path, method string, metadata map[string]string) *protocol.Message {
	m := protocol.NewMessage()
	m.SetMessageType(protocol.Request)
	m.SetOneway(true)
	m.SetSeq(1 << 63)
	m.ServicePath, m.ServiceMethod, m.Metadata = path, method, metadata
	return m
}

func TestAnApplicationWithoutPushTakesNone(t *testing.T) {
	if code := (&Session{}).push(word("Chat", "Say", nil)); code != "no_handler" {
		t.Error(code)
	}
	fails := &Session{Push: func(*protocol.Message) error { return errors.New("no") }}
	if code := fails.push(word("Chat", "Say", nil)); code != "error" {
		t.Error(code)
	}
	panics := &Session{Push: func(*protocol.Message) error { panic("as it was told") }}
	if code := panics.push(word("Chat", "Say", nil)); code != "panicked" {
		t.Error(code)
	}
}

// rpcx does not look at the context of a oneway call: a peer that reads nothing would hold it for ever.
func TestWhatCannotBeWrittenWaitsNoLongerThanItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		client.ConnFactories["stuck"] = func(*client.Client, string, string) (net.Conn, error) { return here, nil }
		c := client.NewClient(client.DefaultOption)
		if err := c.Connect("stuck", ""); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		if err := Ack(ctx, c, 7); err != context.DeadlineExceeded {
			t.Error(err)
		}
		if _, err := Enable(ctx, c); err != context.DeadlineExceeded {
			t.Error(err)
		}
		_ = there.Close()
		_ = c.Close()
	})
}

// A wrong value as the error of a handler must not end the application, nor may a long text be one that is never sent.
func TestAnyErrorOfAHandlerHasATextThatIsSent(t *testing.T) {
	var none *noError
	handlers := map[string]func(context.Context, *protocol.Message) (any, error){
		"D.none": func(context.Context, *protocol.Message) (any, error) { return nil, none },
		"D.long": func(context.Context, *protocol.Message) (any, error) {
			return nil, errors.New(strings.Repeat("€", 70_000))
		},
		"D.bytes": func(context.Context, *protocol.Message) (any, error) { return nil, errors.New("a\xffb") },
	}
	for name, want := range map[string]string{
		"none": "the handler of D.none panicked", "bytes": "a\ufffdb",
		"long": strings.Repeat("€", 5461) + " ... (210000 bytes)",
	} {
		s := &Session{Handlers: handlers}
		_, err := s.handle(t.Context(), &protocol.Message{ServicePath: "D", ServiceMethod: name})
		if err == nil || text(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type noError struct{ why string }

func (e *noError) Error() string { return e.why }

// What failed must not be called handled because the word of it was lost: the next connection says it again.
func TestWhatFailedIsSaidAgainOnTheNextConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &server{cuts: "Ack"}
		for offset := range uint64(3) {
			server.sends = append(server.sends, tracked(offset+1, 1))
		}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		session := &Session{Push: func(*protocol.Message) error { return errors.New("it cannot") }}
		_ = session.Run(ctx, "test", "")
		resumed := server.said("Resume")
		if len(resumed) != 1 {
			t.Fatal(resumed)
		}
		// The cut may come after one of them, or after all.
		upto, said := resumed[0].Metadata["_bw.off"], resumed[0].Metadata["_bw.nack"]
		if upto == "0" || (said != "1-"+upto+":error" && (upto != "1" || said != "1:error")) {
			t.Errorf("failed up to %s, said %s", upto, said)
		}
		if left := server.said("Leave"); len(left) != 1 || left[0].Metadata["_bw.nack"] != "" {
			t.Error("it was heard, and is said again", left)
		}
		time.Sleep(time.Minute)
	})
}

func TestAKeyIsHandledOnceOverAllSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &server{brief: 2}
		for offset, key := range []string{"one", "fails", "one", "fails", "", ""} {
			m := tracked(uint64(offset+1), 1)
			m.Metadata = map[string]string{"_bw.ik": key}
			server.sends = append(server.sends, m)
		}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		came := map[string]int{}
		session := &Session{Push: func(m *protocol.Message) error {
			key := m.Metadata["_bw.ik"]
			if came[key]++; key == "fails" && came[key] == 1 {
				return errors.New("it cannot")
			}
			return nil
		}}
		_ = session.Run(ctx, "test", "")
		if came["one"] != 1 || came["fails"] != 2 || came[""] != 2 || session.handled != 6 {
			t.Error(came, session.handled)
		}
		if !session.keys.has("one") || !session.keys.has("fails") || session.keys.has("") {
			t.Error(session.keys)
		}
		tries := []string{}
		for _, m := range server.said("Resume") {
			tries = append(tries, m.Metadata["_bw.try"])
		}
		if fmt.Sprint(tries) != "[1 2]" {
			t.Error("each try has a number", tries)
		}
		time.Sleep(time.Minute)
	})
}

func TestAnOffsetThatIsLeftOutComesOnTheNextConnection(t *testing.T) {
	for _, hole := range []*protocol.Message{tracked(4, 1), skip(4)} {
		synctest.Test(t, func(t *testing.T) {
			server := &server{sends: []*protocol.Message{tracked(1, 1), tracked(2, 1), hole}}
			for offset := range uint64(4) {
				server.again = append(server.again, tracked(offset+1, 1))
			}
			server.listen()
			ctx, stop := context.WithTimeout(t.Context(), time.Minute)
			defer stop()
			var came, failed []string
			session := &Session{
				Failed: func(err error) { failed = append(failed, err.Error()) },
				Push: func(m *protocol.Message) error {
					came = append(came, fmt.Sprint(Offset(m)))
					return nil
				},
			}
			_ = session.Run(ctx, "test", "")
			if fmt.Sprint(came, failed) != "[1 2 3 4] [offset 4 came after 2]" {
				t.Error(came, failed)
			}
			if resumed := server.said("Resume"); len(resumed) != 1 || resumed[0].Metadata["_bw.off"] != "2" {
				t.Error("it has handled two", resumed)
			}
			time.Sleep(time.Minute)
		})
	}
}

func TestWhereAnOffsetIsAlwaysLeftOutTheApplicationAsksLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &server{again: []*protocol.Message{tracked(2, 1)}}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
		defer stop()
		session := &Session{Push: func(*protocol.Message) error { return nil }}
		_ = session.Run(ctx, "test", "")
		if n := len(server.began); n < 20 || 60 < n || session.handled != 0 {
			t.Error(n, session.handled)
		}
		time.Sleep(time.Minute)
	})
}

func TestKeysAreBounded(t *testing.T) {
	keys := handledKeys{}
	for number := range 10_000 {
		keys.add(fmt.Sprint(number))
		keys.add(fmt.Sprintf("%65d", number))
	}
	if len(keys.known) != keysMax || len(keys.order) != keysMax {
		t.Error(len(keys.known), len(keys.order))
	}
	if !keys.has("9999") || !keys.has("8976") || keys.has("8975") {
		t.Error("it does not know the latest")
	}
}

func TestFailuresToSayAgainAreBounded(t *testing.T) {
	session, said := &Session{}, map[string]string{}
	for offset := range uint64(10_000) {
		session.fail(1<<63+2*offset, "bad_arguments")
	}
	if session.sayFailed(said); len(session.failed) != failuresMax || 4<<10 < len(said["_bw.nack"]) {
		t.Error(len(session.failed), len(said["_bw.nack"]))
	}
}

func TestATokenIsAskedForEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := &server{sends: []*protocol.Message{tracked(1, 1)}}
		server.listen()
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		var asked atomic.Int64
		session := &Session{Token: func() string { return fmt.Sprint(asked.Add(1)) }, Push: func(*protocol.Message) error { return nil }}
		_ = session.Run(ctx, "test", "")
		for i, method := range []string{"Enable", "Ack", "Leave"} {
			said := server.said(method)
			if len(said) != 1 || said[0].Metadata[share.AuthKey] != fmt.Sprint(i+1) {
				t.Error(method, said)
			}
		}
		time.Sleep(time.Minute)
	})
}

func TestASessionHasItsOwnTLS(t *testing.T) {
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go new(server).serve(c, nil, true)
		}
	}()
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	for _, config := range []*tls.Config{{RootCAs: roots}, {RootCAs: x509.NewCertPool()}} {
		ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
		var connected, refused atomic.Bool
		session := &Session{
			TLS:     config,
			Changed: func(string) { connected.Store(true); stop() },
			Failed:  func(error) { refused.Store(true); stop() },
		}
		_ = session.Run(ctx, "tcp", listener.Addr().String())
		if isKnown := config.RootCAs == roots; connected.Load() != isKnown || refused.Load() == isKnown {
			t.Error(isKnown, connected.Load(), refused.Load())
		}
		stop()
	}
}

// tracked is a push that the server keeps, of so many bytes.
func tracked(offset uint64, bytes int) *protocol.Message {
	m := word("Chat", "Say", nil)
	m.SetSeq(1<<63 | offset)
	m.Payload = make([]byte, bytes)
	return m
}

// skip says that the push of this offset does not come.
func skip(offset uint64) *protocol.Message {
	m := word("_bothways", "Skip", nil)
	m.SetSeq(1<<63 | offset)
	return m
}

type panics struct{}

func (panics) MarshalMsg([]byte) ([]byte, error) { panic("as it was told") }
