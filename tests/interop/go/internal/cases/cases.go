// Package cases holds what the Go client checks about a server. Each case is true of Go's own server, except for those
// that say why not, and must be true of the server written in Rust.
package cases

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
	"github.com/smallnest/rpcx/share"
)

// Env is what a case needs to know. Fields that a case does not use are ignored.
type Env struct {
	Network, Address string // rpcx's network name and the address of the server
	TLS              *tls.Config
	Auth             string // token that is sent with every call, if not empty

	N    int // how many calls or pushes; 0 for the case's own default
	Size int // bytes of each payload; 0 for the case's own default
	Kick bool

	// Note hears of what happens before the case is over, for a test that has to act then.
	Note func(state string, fields map[string]any)

	mu      sync.Mutex
	watches []*watch
	closers []func()
}

// Case is one check.
type Case struct {
	Name string
	// What the case proves, for the list of cases.
	About string
	// NotGo says why the case is not run against Go's own server; empty if it is.
	NotGo string
	// Alone says why the case is no part of "all": it needs a server of its own kind, or a test that acts.
	Alone string

	run func(*Env) (map[string]any, error)
}

// Find returns the case of that name.
func Find(name string) (Case, bool) {
	for _, c := range All() {
		if c.Name == name {
			return c, true
		}
	}
	return Case{}, false
}

// Run runs the case and closes what it has opened. It fails too if a frame came in that a plain rpcx client must never
// see.
func (c Case) Run(e *Env) (fields map[string]any, err error) {
	if e.Note == nil {
		e.Note = func(string, map[string]any) {}
	}
	defer e.close()
	defer func() {
		// A case that panics is a failed case, and the program still prints its line.
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	fields, err = c.run(e)
	return fields, errors.Join(err, e.violations())
}

func (e *Env) close() {
	for _, f := range e.closers {
		f()
	}
	e.closers = nil
}

func (e *Env) violations() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []error
	for _, w := range e.watches {
		all = append(all, w.err())
	}
	return errors.Join(all...)
}

func (e *Env) n(standard int) int {
	if e.N > 0 {
		return e.N
	}
	return standard
}

func (e *Env) size(standard int) int {
	if e.Size > 0 {
		return e.Size
	}
	return standard
}

// option is rpcx's default option with this environment's TLS and a codec.
func (e *Env) option(serialize protocol.SerializeType) client.Option {
	option := client.DefaultOption
	option.SerializeType = serialize
	option.TLSConfig = e.TLS
	option.ConnectTimeout = 5 * time.Second
	return option
}

// conn is one rpcx client connection that is watched.
type conn struct {
	*client.Client
	*watch
	env *Env
}

// dial connects; prepare, if not nil, sees the client before its reading starts.
func (e *Env) dial(option client.Option, prepare func(*client.Client)) (*conn, error) {
	c := client.NewClient(option)
	w := e.watch()
	c.Plugins = w.container()
	if prepare != nil {
		prepare(c)
	}
	if err := c.Connect(e.Network, e.Address); err != nil {
		return nil, fmt.Errorf("connect to %s@%s: %w", e.Network, e.Address, err)
	}
	e.closers = append(e.closers, func() { _ = c.Close() })
	return &conn{Client: c, watch: w, env: e}, nil
}

// msgpack dials with the codec that Go clients use unless told otherwise.
func (e *Env) msgpack() (*conn, error) { return e.dial(e.option(protocol.MsgPack), nil) }

// callTimeout bounds every call, so that a lost reply fails its case and does not hang it.
const callTimeout = 30 * time.Second

// do calls with no metadata but the token.
func (c *conn) do(path, method string, args, reply any) error {
	return c.doWith(nil, nil, path, method, args, reply)
}

// doWith calls with metadata; response metadata goes into back, if not nil.
func (c *conn) doWith(metadata, back map[string]string, path, method string, args, reply any) error {
	ctx, cancel := context.WithTimeout(c.env.context(metadata, back), callTimeout)
	defer cancel()
	return c.Call(ctx, path, method, args, reply)
}

// context returns a context with a copy of the metadata and the token. Each call gets one of its own, because rpcx
// writes into what it is given.
func (e *Env) context(metadata, back map[string]string) context.Context {
	ctx := context.Background()
	sent := make(map[string]string, len(metadata)+1)
	for k, v := range metadata {
		sent[k] = v
	}
	if e.Auth != "" {
		sent[share.AuthKey] = e.Auth
	}
	if len(sent) > 0 {
		ctx = context.WithValue(ctx, share.ReqMetaDataKey, sent)
	}
	if back != nil {
		ctx = context.WithValue(ctx, share.ResMetaDataKey, back)
	}
	return ctx
}

// xclient returns the client that applications use, for one service path; ch, if not nil, receives its pushes.
func (e *Env) xclient(path string, mode client.FailMode, option client.Option, ch chan<- *protocol.Message) (client.XClient, *watch, error) {
	discovery, err := client.NewPeer2PeerDiscovery(e.Network+"@"+e.Address, "")
	if err != nil {
		return nil, nil, err
	}
	x := client.NewBidirectionalXClient(path, mode, client.RandomSelect, discovery, option, ch)
	w := e.watch()
	x.SetPlugins(w.container())
	if e.Auth != "" {
		x.Auth(e.Auth)
	}
	e.closers = append(e.closers, func() { _ = x.Close() })
	return x, w, nil
}

// rawDial connects without a client, for frames that the client would not send or bits that it hides.
func (e *Env) rawDial() (net.Conn, error) {
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	var c net.Conn
	var err error
	switch e.Network {
	case "tcp", "unix":
		if e.TLS != nil {
			c, err = tls.DialWithDialer(dialer, e.Network, e.Address, e.TLS)
		} else {
			c, err = dialer.Dial(e.Network, e.Address)
		}
	default:
		return nil, fmt.Errorf("no raw connection over %s", e.Network)
	}
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(callTimeout))
	e.closers = append(e.closers, func() { _ = c.Close() })
	return c, nil
}

// hasRaw tells whether rawDial can be used; the websocket and the http handshake are the client's own.
func (e *Env) hasRaw() bool { return e.Network == "tcp" || e.Network == "unix" }

// expectErr requires an error with exactly that text.
func expectErr(err error, text string) error {
	if err == nil {
		return fmt.Errorf("no error where %q was expected", text)
	}
	if err.Error() != text {
		return fmt.Errorf("error %q where %q was expected", err, text)
	}
	return nil
}

// expect requires got to be want.
func expect[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s is %v, expected %v", what, shorten(got), shorten(want))
	}
	return nil
}

func shorten(v any) string {
	s := fmt.Sprintf("%#v", v)
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// all runs checks in order and stops at the first that fails, whose name goes before its error.
func all(checks ...check) error {
	for _, c := range checks {
		if err := c.run(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

type check struct {
	name string
	run  func() error
}

// stillWorks makes a plain call, to prove that the connection survived what was done to it.
func stillWorks(c *conn) error {
	return mulWith(c, "Arith", "Mul")
}

func until(what string, limit time.Duration, done func() bool) error {
	for deadline := time.Now().Add(limit); !done(); {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s has not happened within %v", what, limit)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return nil
}

func reserved(key string) bool { return strings.HasPrefix(key, "_bw.") }
