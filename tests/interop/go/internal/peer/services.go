package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"bothways.dev/interop/internal/contract"
	"github.com/smallnest/rpcx/server"
	"github.com/smallnest/rpcx/share"
)

func register(s *server.Server, event func(string, map[string]any)) error {
	services := map[string]any{
		"Arith":  Arith{},
		"Codec":  Codec{},
		"Bare":   Bare{},
		"Proto":  Proto{},
		"Thrift": Thrift{},
		"Raw":    Raw{},
		"Meta":   Meta{},
		"Big":    Big{},
		"Order":  Order{},
		"Conn":   Conn{},
		"Oneway": &Oneway{event: event},
		"Push":   &Push{server: s, event: event},
	}
	for name, service := range services {
		if err := s.RegisterName(name, service, ""); err != nil {
			return err
		}
	}
	if err := s.RegisterFunctionName(contract.FunctionPath, "mul", mul, ""); err != nil {
		return err
	}
	if err := s.RegisterFunctionName(contract.FunctionPath, "err", functionErr, ""); err != nil {
		return err
	}
	s.AddHandler("Router", "Echo", routerEcho)
	s.AddHandler("Router", "Err", func(*server.Context) error { return errors.New(contract.RouterErrText) })
	return nil
}

// Arith is the service of rpcx's examples, with ways to fail.
type Arith struct{}

// Mul answers A*B.
func (Arith) Mul(_ context.Context, args *contract.Args, reply *contract.Reply) error {
	reply.C = args.A * args.B
	return nil
}

// Add answers A+B.
func (Arith) Add(_ context.Context, args *contract.Args, reply *contract.Reply) error {
	reply.C = args.A + args.B
	return nil
}

// Echo answers A.
func (Arith) Echo(_ context.Context, args *contract.Args, reply *contract.Reply) error {
	reply.C = args.A
	return nil
}

// Err fails and leaves the reply as it was.
func (Arith) Err(context.Context, *contract.Args, *contract.Reply) error {
	return errors.New(contract.ErrText)
}

// ErrPartial fills the reply and then fails: rpcx sends both.
func (Arith) ErrPartial(_ context.Context, args *contract.Args, reply *contract.Reply) error {
	reply.C = args.A * args.B
	return errors.New(contract.PartialText)
}

// Panic panics.
func (Arith) Panic(context.Context, *contract.Args, *contract.Reply) error {
	panic("panic on purpose")
}

// Sleep waits A milliseconds and answers B. It does not look at its context, as most handlers do not.
func (Arith) Sleep(_ context.Context, args *contract.Args, reply *contract.Reply) error {
	time.Sleep(time.Duration(args.A) * time.Millisecond)
	reply.C = args.B
	return nil
}

// Codec sends values of each Go type to and fro.
type Codec struct{}

// Echo answers what it decoded.
func (Codec) Echo(_ context.Context, args *contract.Types, reply *contract.Types) error {
	*reply = *args
	return nil
}

// Sample answers contract.SampleTypes.
func (Codec) Sample(_ context.Context, _ *contract.Args, reply *contract.Types) error {
	*reply = contract.SampleTypes()
	return nil
}

// Diff names the fields that did not arrive as contract.SampleTypes has them.
func (Codec) Diff(_ context.Context, args *contract.Types, reply *contract.Text) error {
	reply.S = contract.DiffTypes(contract.SampleTypes(), *args)
	return nil
}

// EchoTimes answers what it decoded.
func (Codec) EchoTimes(_ context.Context, args *contract.Times, reply *contract.Times) error {
	*reply = *args
	return nil
}

// SampleTimes answers contract.SampleTimes.
func (Codec) SampleTimes(_ context.Context, _ *contract.Args, reply *contract.Times) error {
	*reply = contract.SampleTimes()
	return nil
}

// DiffTimes names the fields that did not arrive as contract.SampleTimes has them.
func (Codec) DiffTimes(_ context.Context, args *contract.Times, reply *contract.Text) error {
	reply.S = contract.DiffTimes(contract.SampleTimes(), *args)
	return nil
}

// EchoString takes and answers a bare string: an argument need not be a struct.
func (Codec) EchoString(_ context.Context, args *string, reply *string) error {
	*reply = *args
	return nil
}

// EchoStrings takes and answers a bare list.
func (Codec) EchoStrings(_ context.Context, args *[]string, reply *[]string) error {
	*reply = *args
	return nil
}

// Proto speaks protobuf.
type Proto struct{}

// Mul answers A*B.
func (Proto) Mul(_ context.Context, args *contract.ProtoArgs, reply *contract.ProtoReply) error {
	reply.C = args.A * args.B
	return nil
}

// Thrift speaks thrift.
type Thrift struct{}

// Mul answers A*B.
func (Thrift) Mul(_ context.Context, args *contract.ThriftArgs, reply *contract.ThriftReply) error {
	reply.C = args.A * args.B
	return nil
}

// Raw has bytes in and bytes out, without a codec.
type Raw struct{}

// Echo answers the bytes it got.
func (Raw) Echo(_ context.Context, args *[]byte, reply *[]byte) error {
	*reply = *args
	return nil
}

// Make answers contract.Pattern of as many bytes as the argument says in decimal.
func (Raw) Make(_ context.Context, args *[]byte, reply *[]byte) error {
	size, err := strconv.Atoi(string(*args))
	if err != nil {
		return fmt.Errorf("not a number of bytes: %q", *args)
	}
	*reply = contract.Pattern(size)
	return nil
}

// Meta shows what handlers see of metadata and deadlines.
type Meta struct{}

// Echo sends each metadata key of the request back with a prefix, and tells the deadline.
func (Meta) Echo(ctx context.Context, _ *contract.Args, reply *contract.MetaReply) error {
	got := ctx.Value(share.ReqMetaDataKey).(map[string]string)
	back := ctx.Value(share.ResMetaDataKey).(map[string]string)
	for k, v := range got {
		back[contract.GotPrefix+k] = v
	}
	if deadline, ok := ctx.Deadline(); ok {
		reply.Deadline = true
		reply.Millis = time.Until(deadline).Milliseconds()
	}
	return nil
}

// Big moves large payloads one way.
type Big struct{}

// Make answers contract.Letters of A bytes.
func (Big) Make(_ context.Context, args *contract.Args, reply *contract.Text) error {
	reply.S = contract.Letters(args.A)
	return nil
}

// Len answers how many bytes the string has.
func (Big) Len(_ context.Context, args *contract.Text, reply *contract.Reply) error {
	reply.C = len(args.S)
	return nil
}

// Order makes replies overtake each other.
type Order struct{}

// Sleep waits 0 to 20 ms, by its argument, and answers A.
func (Order) Sleep(_ context.Context, args *contract.Args, reply *contract.Reply) error {
	time.Sleep(time.Duration(contract.SleepMillis(args.A)) * time.Millisecond)
	reply.C = args.A
	return nil
}

// Conn ends connections.
type Conn struct{}

// Close closes the caller's connection: at once if A is 0, so that the call never gets its reply, else A milliseconds
// after it has begun, and then it answers A.
func (Conn) Close(ctx context.Context, args *contract.Args, reply *contract.Reply) error {
	conn := ctx.Value(server.RemoteConnContextKey).(net.Conn)
	if args.A == 0 {
		return conn.Close()
	}
	time.AfterFunc(time.Duration(args.A)*time.Millisecond, func() { _ = conn.Close() })
	reply.C = args.A
	return nil
}

// Oneway counts what nobody answers.
type Oneway struct {
	total atomic.Int64
	event func(string, map[string]any)
}

// Add adds A to the server's total.
func (o *Oneway) Add(_ context.Context, args *contract.Args, reply *contract.Reply) error {
	reply.C = int(o.total.Add(int64(args.A)))
	o.event("oneway", map[string]any{"added": args.A, "total": reply.C})
	return nil
}

// Total answers the total.
func (o *Oneway) Total(_ context.Context, _ *contract.Args, reply *contract.Reply) error {
	reply.C = int(o.total.Load())
	return nil
}

func mul(_ context.Context, args *contract.Args, reply *contract.Reply) error {
	reply.C = args.A * args.B
	return nil
}

func functionErr(context.Context, *contract.Args, *contract.Reply) error {
	return errors.New(contract.FunctionErrText)
}

// routerEcho answers Args with Args through rpcx's low-level handlers, which write their reply themselves.
func routerEcho(ctx *server.Context) error {
	var args contract.Args
	if err := ctx.Bind(&args); err != nil {
		return err
	}
	return ctx.Write(&args)
}
