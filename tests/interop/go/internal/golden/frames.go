package golden

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"bothways.dev/interop/internal/contract"
	"bothways.dev/interop/internal/peer"
	"bothways.dev/interop/internal/wire"
	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
)

// Where a frame comes from.
const (
	byClient  = "client.Client, taken from its socket"
	byXClient = "client.XClient, taken from its socket"
	byServer  = "server.Server, taken from its socket"
	byPush    = "Server.SendMessage, taken from its socket"
	byEncoder = "protocol.Message.Encode"
)

// recorder collects files and remembers the first failure, so that the scenarios below read as lists.
type recorder struct {
	files []File
	err   error
}

func (r *recorder) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

func (r *recorder) add(name, origin, meaning string, frame []byte) {
	file, err := frameFile(name, origin, meaning, frame)
	if err != nil {
		r.fail(err)
		return
	}
	r.files = append(r.files, file)
}

func recordFrames() ([]File, error) {
	r := &recorder{}
	for _, scenario := range []struct {
		name string
		run  func(*recorder) error
	}{
		{"calls", recordCalls},
		{"codecs", recordCodecs},
		{"compression", recordCompression},
		{"auth", recordAuth},
		{"responses", recordResponses},
		{"heartbeats", recordHeartbeats},
		{"pushes", recordPushes},
		{"encoder", recordEncoder},
	} {
		if err := errors.Join(scenario.run(r), r.err); err != nil {
			return nil, fmt.Errorf("%s: %w", scenario.name, err)
		}
	}
	return r.files, nil
}

// stage is a server with a tap before it.
type stage struct {
	*tap
	peer    *peer.Peer
	closers []func()
}

func newStage(config peer.Config) (*stage, error) {
	config.Network, config.Address = "tcp", "127.0.0.1:0"
	p, err := peer.Start(config)
	if err != nil {
		return nil, err
	}
	t, err := newTap(strings.TrimPrefix(p.Addr(), "tcp@"))
	if err != nil {
		p.Close()
		return nil, err
	}
	return &stage{tap: t, peer: p}, nil
}

func (s *stage) close() {
	for _, f := range s.closers {
		f()
	}
	s.tap.close()
	s.peer.Close()
}

func (s *stage) address() string { return s.tap.ln.Addr().String() }

func (s *stage) client(change func(*client.Option)) (*client.Client, error) {
	option := client.DefaultOption
	if change != nil {
		change(&option)
	}
	c := client.NewClient(option)
	if err := c.Connect("tcp", s.address()); err != nil {
		return nil, err
	}
	s.closers = append(s.closers, func() { _ = c.Close() })
	return c, nil
}

// exchange makes one call and returns its two frames. The call may fail: then the failure is what is recorded.
func (s *stage) exchange(call func(ctx context.Context) error) (request, response []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = call(ctx)
	sent, got, err := s.take(1, 1)
	if err != nil {
		return nil, nil, err
	}
	return sent[0], got[0], nil
}

func withMetadata(ctx context.Context, key, value string) context.Context {
	return context.WithValue(ctx, share.ReqMetaDataKey, map[string]string{key: value})
}

func recordCalls(r *recorder) error {
	s, err := newStage(peer.Config{})
	if err != nil {
		return err
	}
	defer s.close()
	c, err := s.client(nil)
	if err != nil {
		return err
	}
	args := &contract.Args{A: 10, B: 20}
	mul := func(ctx context.Context) error { return c.Call(ctx, "Arith", "Mul", args, &contract.Reply{}) }

	request, response, err := s.exchange(mul)
	if err != nil {
		return err
	}
	r.add("request_first", byClient, "the first call of a connection: its number is 0", request)
	r.add("response_first", byServer, "its reply", response)

	request, _, err = s.exchange(func(ctx context.Context) error { return mul(withMetadata(ctx, "k", "v")) })
	if err != nil {
		return err
	}
	r.add("request_metadata", byClient, "a call with metadata", request)

	if request, response, err = s.exchange(mul); err != nil {
		return err
	}
	r.add("request_msgpack", byClient, "Arith.Mul of Args{A: 10, B: 20}", request)
	r.add("response_msgpack", byServer, "Reply{C: 200}", response)

	_, response, err = s.exchange(func(ctx context.Context) error {
		return c.Call(ctx, "Arith", "Err", args, &contract.Reply{})
	})
	if err != nil {
		return err
	}
	r.add("response_error_method", byServer, "a method returned an error; the reply goes along as far as it was filled", response)

	request, response, err = s.exchange(func(ctx context.Context) error {
		return c.Call(withMetadata(ctx, "k", "v"), "Meta", "Echo", &contract.Args{}, &contract.MetaReply{})
	})
	if err != nil {
		return err
	}
	r.add("request_metadata_echo", byClient, "a call whose metadata comes back", request)
	r.add("response_metadata", byServer, "a reply with metadata", response)

	// Without a place for the reply the client makes the call oneway; then one more call proves that nothing answers it.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := c.Call(ctx, "Arith", "Mul", args, nil); err != nil {
		return err
	}
	if err := mul(ctx); err != nil {
		return err
	}
	sent, got, err := s.take(2, 1)
	if err != nil {
		return err
	}
	r.add("request_oneway", byClient, "a call that wants no reply", sent[0])
	r.add("response_after_oneway", byServer, "the next frame of the server belongs to the call after the oneway one", got[0])
	return nil
}

func recordCodecs(r *recorder) error {
	s, err := newStage(peer.Config{})
	if err != nil {
		return err
	}
	defer s.close()
	for _, codec := range []struct {
		name         string
		serialize    protocol.SerializeType
		path, method string
		args, reply  any
		meaning      string
	}{
		{"json", protocol.JSON, "Arith", "Mul", &contract.Args{A: 10, B: 20}, &contract.Reply{}, "JSON"},
		{"protobuf", protocol.ProtoBuffer, "Proto", "Mul", &contract.ProtoArgs{A: 10, B: 20}, &contract.ProtoReply{}, "protobuf"},
		{"protobuf_empty", protocol.ProtoBuffer, "Proto", "Mul", &contract.ProtoArgs{}, &contract.ProtoReply{}, "protobuf with default values only: no payload"},
		{"thrift", protocol.Thrift, "Thrift", "Mul", &contract.ThriftArgs{A: 10, B: 20}, &contract.ThriftReply{}, "thrift, binary protocol"},
		{"raw", protocol.SerializeNone, "Raw", "Echo", []byte("bytes as they are"), new([]byte), "bytes without a codec"},
		{"raw_empty", protocol.SerializeNone, "Raw", "Echo", []byte{}, new([]byte), "no bytes without a codec"},
		{"types_msgpack", protocol.MsgPack, "Codec", "Echo", new(contract.SampleTypes()), &contract.Types{}, "a struct with each Go type, in msgpack"},
		{"types_json", protocol.JSON, "Codec", "Echo", new(contract.SampleTypes()), &contract.Types{}, "a struct with each Go type, in JSON"},
		{"function", protocol.MsgPack, contract.FunctionPath, "mul", &contract.Args{A: 10, B: 20}, &contract.Reply{}, "a function registered under a path"},
		{"router", protocol.MsgPack, "Router", "Echo", &contract.Args{A: 10, B: 20}, &contract.Args{}, "a low-level handler"},
	} {
		c, err := s.client(func(o *client.Option) { o.SerializeType = codec.serialize })
		if err != nil {
			return err
		}
		request, response, err := s.exchange(func(ctx context.Context) error {
			return c.Call(ctx, codec.path, codec.method, codec.args, codec.reply)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", codec.name, err)
		}
		r.add("request_"+codec.name, byClient, codec.meaning, request)
		r.add("response_"+codec.name, byServer, codec.meaning, response)
	}
	return nil
}

func recordCompression(r *recorder) error {
	s, err := newStage(peer.Config{})
	if err != nil {
		return err
	}
	defer s.close()
	c, err := s.client(func(o *client.Option) { o.SerializeType, o.CompressType = protocol.SerializeNone, protocol.Gzip })
	if err != nil {
		return err
	}
	for _, size := range []int{1024, 1025} {
		request, response, err := s.exchange(func(ctx context.Context) error {
			return c.Call(ctx, "Raw", "Echo", contract.Pattern(size), new([]byte))
		})
		if err != nil {
			return err
		}
		what := "compressed, for it is more than 1024"
		if size == 1024 {
			what = "not compressed, for it is not more than 1024"
		}
		r.add(fmt.Sprintf("request_gzip_client_%d", size), byClient, fmt.Sprintf("a client with gzip sends %d bytes: %s", size, what), request)
		r.add(fmt.Sprintf("response_gzip_client_%d", size), byServer, fmt.Sprintf("the reply of %d bytes is %s", size, what), response)
	}
	request, response, err := s.exchange(func(ctx context.Context) error {
		return c.Call(ctx, "Raw", "Make", []byte("1025"), new([]byte))
	})
	if err != nil {
		return err
	}
	r.add("request_gzip_client_small", byClient, "a client with gzip sends a small request: not compressed", request)
	r.add("response_gzip_client_small", byServer, "the reply of 1025 bytes is not compressed, for the request was not", response)

	m := wire.Request(5, protocol.SerializeNone, "Raw", "Echo")
	m.SetCompressType(protocol.Gzip)
	m.Payload = contract.Pattern(1024)
	if response, err = s.answer(m); err != nil {
		return err
	}
	r.add("response_gzip_1024", byServer, "the reply of 1024 bytes to a compressed request is not compressed", response)
	return nil
}

func recordAuth(r *recorder) error {
	s, err := newStage(peer.Config{AuthToken: "bearer secret"})
	if err != nil {
		return err
	}
	defer s.close()
	for _, a := range []struct{ name, token string }{{"auth", "bearer secret"}, {"auth_refused", "bearer wrong"}} {
		discovery, err := client.NewPeer2PeerDiscovery("tcp@"+s.address(), "")
		if err != nil {
			return err
		}
		x := client.NewXClient("Arith", client.Failfast, client.RandomSelect, discovery, client.DefaultOption)
		x.Auth(a.token)
		request, response, err := s.exchange(func(ctx context.Context) error {
			// Without a deadline: the client would send it as a second key.
			return x.Call(context.WithoutCancel(ctx), "Mul", &contract.Args{A: 10, B: 20}, &contract.Reply{})
		})
		_ = x.Close()
		if err != nil {
			return err
		}
		r.add("request_"+a.name, byXClient, "a call with the token "+a.token, request)
		r.add("response_"+a.name, byServer, "its answer by a server that wants the token bearer secret", response)
	}
	return nil
}

// answer sends the message on a connection of its own and returns the one frame that comes back.
func (s *stage) answer(m *protocol.Message) ([]byte, error) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.peer.Addr(), "tcp@"))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write(m.Encode()); err != nil {
		return nil, err
	}
	return wire.ReadFrame(conn)
}

func recordResponses(r *recorder) error {
	s, err := newStage(peer.Config{})
	if err != nil {
		return err
	}
	defer s.close()
	failing := func(context.Context, *contract.Args, *contract.Reply) error { return errors.New("boom") }
	if err := s.peer.Server.RegisterFunctionName("F", "fn", failing, ""); err != nil {
		return err
	}
	const args = "\x82\xa1A\x0a\xa1B\x14"
	for _, q := range []struct {
		name, meaning string
		seq           uint64
		serialize     protocol.SerializeType
		path, method  string
		payload       string
		change        func(*protocol.Message)
	}{
		{"response_error_function", "a function returned an error: no reply with it", 4, protocol.MsgPack, "F", "fn", args, nil},
		{"response_error_router", "a low-level handler returned an error", 5, protocol.MsgPack, "Router", "Err", args, nil},
		{"response_error_partial", "an error with a reply that had been filled", 6, protocol.MsgPack, "Arith", "ErrPartial", args, nil},
		{"response_unknown_service", "no such service", 7, protocol.MsgPack, "Nope", "Mul", args, nil},
		{"response_unknown_method", "no such method", 8, protocol.MsgPack, "Arith", "Nope", args, nil},
		{"response_no_codec", "a serialize type without a codec", 9, 9, "Arith", "Mul", args, nil},
		{"response_undecodable", "a msgpack payload without a byte", 10, protocol.MsgPack, "Arith", "Mul", "", nil},
		{"response_seq_max", "the largest number", 1<<64 - 1, protocol.MsgPack, "Arith", "Mul", args, nil},
		{"response_seq_high_bits", "a number with the two highest bits set", 3<<62 | 1, protocol.MsgPack, "Arith", "Mul", args, nil},
		{"quirk_response_status_echoed", "the request had status 1, so the reply has it too, without an error", 11, protocol.MsgPack, "Arith", "Mul", args,
			func(m *protocol.Message) { m.SetMessageStatusType(protocol.Error) }},
		{"quirk_response_header_echoed", "the request had version 3 and reserved bits 5, and so has the reply", 12, protocol.MsgPack, "Arith", "Mul", args,
			func(m *protocol.Message) { m.SetVersion(3); m.Header[3] |= 5 }},
		{"quirk_response_to_response", "the request said that it was a response, and was answered all the same", 13, protocol.MsgPack, "Arith", "Mul", args,
			func(m *protocol.Message) { m.SetMessageType(protocol.Response) }},
	} {
		m := wire.Request(q.seq, q.serialize, q.path, q.method)
		m.Payload = []byte(q.payload)
		if q.change != nil {
			q.change(m)
		}
		response, err := s.answer(m)
		if err != nil {
			return fmt.Errorf("%s: %w", q.name, err)
		}
		r.add(q.name, byServer, q.meaning, response)
	}
	return nil
}

func recordHeartbeats(r *recorder) error {
	s, err := newStage(peer.Config{})
	if err != nil {
		return err
	}
	defer s.close()
	c, err := s.client(nil)
	if err != nil {
		return err
	}
	for range 3 {
		call := func(ctx context.Context) error {
			return c.Call(ctx, "Arith", "Mul", &contract.Args{A: 10, B: 20}, &contract.Reply{})
		}
		if _, _, err := s.exchange(call); err != nil {
			return err
		}
	}
	// The client's ticker makes this very call, with the time in nanoseconds where this has a 5.
	beat, echo := int64(5), int64(0)
	request, response, err := s.exchange(func(ctx context.Context) error { return c.Call(ctx, "", "", &beat, &echo) })
	if err != nil {
		return err
	}
	r.add("heartbeat_request", byClient, "a heartbeat; the payload is a msgpack int64", request)
	r.add("heartbeat_response", byServer, "the heartbeat comes back with the type bit set", response)

	for _, h := range []struct {
		name, meaning string
		change        func(*protocol.Message)
	}{
		{"empty", "a heartbeat with nothing in it", func(*protocol.Message) {}},
		{"json", "a heartbeat that says JSON and is none", func(m *protocol.Message) { m.SetSerializeType(protocol.JSON); m.Payload = []byte("?") }},
		{"named", "a heartbeat with path and method of a service", func(m *protocol.Message) { m.ServicePath, m.ServiceMethod = "Arith", "Mul" }},
		{"metadata", "a heartbeat with metadata", func(m *protocol.Message) { m.Metadata = map[string]string{"k": "v"} }},
		{"oneway", "a heartbeat with the oneway bit is answered all the same", func(m *protocol.Message) { m.SetOneway(true) }},
	} {
		m := wire.Request(20, protocol.SerializeNone, "", "")
		m.SetHeartbeat(true)
		h.change(m)
		r.add("heartbeat_request_"+h.name, byEncoder, h.meaning, m.Encode())
		response, err := s.answer(m)
		if err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
		r.add("heartbeat_response_"+h.name, byServer, "the answer to "+h.meaning, response)
	}
	return nil
}

func recordPushes(r *recorder) error {
	s, err := newStage(peer.Config{})
	if err != nil {
		return err
	}
	defer s.close()
	c, err := s.client(nil)
	if err != nil {
		return err
	}
	first := func(ctx context.Context) error {
		return c.Call(ctx, "Arith", "Mul", &contract.Args{A: 10, B: 20}, &contract.Reply{})
	}
	if _, _, err := s.exchange(first); err != nil {
		return err
	}
	conns := s.peer.Server.ActiveClientConn()
	if len(conns) != 1 {
		return fmt.Errorf("%d connections", len(conns))
	}
	for _, p := range []struct {
		name, meaning string
		path, method  string
		metadata      map[string]string
		payload       []byte
	}{
		{"push", "a push with metadata; a server's pushes are numbered from 1", "p", "m", map[string]string{"k": "v"}, []byte("abcde")},
		{"push_empty", "a push with nothing in it", "", "", nil, nil},
		{"push_example", "the push of the documentation's example", contract.PushPath, contract.PushMethod, nil, []byte(contract.PushPayload)},
		{"push_large", "a push is never compressed", "p", "m", nil, contract.Pattern(1025)},
		{"push_numbered", "number 258 of Push.Start, 16 bytes", contract.PushPath, contract.PushMethod, map[string]string{"n": "258"}, contract.NumberedPayload(258, 16)},
	} {
		if err := s.peer.Server.SendMessage(conns[0], p.path, p.method, p.metadata, p.payload); err != nil {
			return err
		}
		_, got, err := s.take(0, 1)
		if err != nil {
			return err
		}
		r.add(p.name, byPush, p.meaning, got[0])
	}

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := c.Call(ctx, "Push", "Then", &contract.Args{A: 10, B: 20}, &contract.Reply{}); err != nil {
		return err
	}
	_, got, err := s.take(1, 2)
	if err != nil {
		return err
	}
	r.add("push_before_reply_1", byPush, "a push sent by a handler before it returned: first on the wire", got[0])
	r.add("push_before_reply_2", byServer, "the handler's reply: second on the wire", got[1])
	return nil
}

// recordEncoder has frames that rpcx can make but the programs above do not.
func recordEncoder(r *recorder) error {
	const args = "\x82\xa1A\x0a\xa1B\x14"
	for _, e := range []struct {
		name, meaning string
		make          func() *protocol.Message
	}{
		{"encoded_empty", "the smallest frame there is", func() *protocol.Message {
			return wire.Request(0, protocol.SerializeNone, "", "")
		}},
		{"encoded_gzip", "a compressed payload of a few bytes, with metadata", func() *protocol.Message {
			m := wire.Request(1, protocol.MsgPack, "Arith", "Mul")
			m.SetCompressType(protocol.Gzip)
			m.Metadata = map[string]string{"k": "v"}
			m.Payload = []byte(args)
			return m
		}},
		{"encoded_gzip_empty", "an empty payload compressed", func() *protocol.Message {
			m := wire.Request(1, protocol.MsgPack, "Arith", "Mul")
			m.SetCompressType(protocol.Gzip)
			return m
		}},
		{"encoded_deadline", "a call with 1500 ms left", func() *protocol.Message {
			m := wire.Request(1, protocol.MsgPack, "Arith", "Mul")
			m.Metadata = map[string]string{share.ServerTimeout: "1500"}
			m.Payload = []byte(args)
			return m
		}},
		{"encoded_metadata_empty", "an empty key with an empty value", func() *protocol.Message {
			m := wire.Request(1, protocol.SerializeNone, "p", "m")
			m.Metadata = map[string]string{"": ""}
			return m
		}},
		{"encoded_metadata_utf8", "metadata, path and method beyond ASCII", func() *protocol.Message {
			m := wire.Request(1, protocol.SerializeNone, "服务", "méthode")
			m.Metadata = map[string]string{"Grüße": "世界"}
			m.Payload = []byte("x")
			return m
		}},
		{"encoded_error", "an error response", func() *protocol.Message {
			m := wire.Request(1, protocol.JSON, "p", "m")
			m.SetMessageType(protocol.Response)
			m.SetMessageStatusType(protocol.Error)
			m.Metadata = map[string]string{protocol.ServiceError: ""}
			return m
		}},
	} {
		r.add(e.name, byEncoder, e.meaning, e.make().Encode())
	}
	// Every serialize type, of which five have a codec.
	group := File{
		Name:     "encoded_serialize_types",
		Comments: []string{"origin: " + Version + ", " + byEncoder, "meaning: a request of each serialize type"},
	}
	for serialize := range 16 {
		m := wire.Request(uint64(serialize), protocol.SerializeType(serialize), "p", "m")
		m.Payload = []byte{byte(serialize)}
		frame := m.Encode()
		text, err := decode(frame)
		if err != nil {
			return err
		}
		group.Blocks = append(group.Blocks, Block{Comments: []string{"decoded: " + text}, Bytes: frame})
	}
	r.files = append(r.files, group)
	return nil
}
