// Package interop proves the cases on Go's own server first: what fails here says nothing about the Rust server.
package interop

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bothways.dev/interop/internal/cases"
	"bothways.dev/interop/internal/contract"
	"bothways.dev/interop/internal/peer"
	"bothways.dev/interop/internal/wire"
	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
)

func TestMain(m *testing.M) {
	peer.LogToStderr()
	os.Exit(m.Run())
}

func start(t *testing.T, config peer.Config) *peer.Peer {
	t.Helper()
	p, err := peer.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func env(p *peer.Peer) *cases.Env {
	network, address, _ := strings.Cut(p.Addr(), "@")
	return &cases.Env{Network: network, Address: address}
}

func run(t *testing.T, c cases.Case, e *cases.Env) {
	t.Helper()
	fields, err := c.Run(e)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(fields)
}

func find(t *testing.T, name string) cases.Case {
	t.Helper()
	c, ok := cases.Find(name)
	if !ok {
		t.Fatalf("no case %q", name)
	}
	return c
}

// Every case that needs no more than a server is true of Go's.
func TestCasesHoldOverTCP(t *testing.T) {
	p := start(t, peer.Config{Network: "tcp", Address: "127.0.0.1:0"})
	for _, c := range cases.All() {
		t.Run(c.Name, func(t *testing.T) {
			if c.NotGo != "" {
				t.Skip(c.NotGo)
			}
			if c.Alone != "" {
				t.Skip(c.Alone)
			}
			run(t, c, env(p))
		})
	}
}

// A transport changes nothing about the frames, so a few cases are enough for each.
func TestCasesHoldOverOtherTransports(t *testing.T) {
	names := []string{"msgpack", "metadata", "large", "pushes", "push-before-reply", "heartbeat"}
	for network, address := range map[string]string{
		"unix": filepath.Join(t.TempDir(), "rpcx.sock"),
		"http": "127.0.0.1:0",
		"ws":   "127.0.0.1:0",
	} {
		t.Run(network, func(t *testing.T) {
			p := start(t, peer.Config{Network: network, Address: address})
			for _, name := range names {
				t.Run(name, func(t *testing.T) {
					e := env(p)
					e.N, e.Size = 1000, 100_000
					if name == "heartbeat" {
						e.N = 3
					}
					run(t, find(t, name), e)
				})
			}
		})
	}
}

func TestCasesHoldOverTLS(t *testing.T) {
	files := certificates(t)
	for name, clientCA := range map[string]string{"server certificate only": "", "both certificates": files.ca} {
		t.Run(name, func(t *testing.T) {
			serverTLS, err := peer.ServerTLS(files.cert, files.key, clientCA)
			if err != nil {
				t.Fatal(err)
			}
			p := start(t, peer.Config{Network: "tcp", Address: "127.0.0.1:0", TLS: serverTLS})
			for _, name := range []string{"msgpack", "large", "push-before-reply", "malformed"} {
				t.Run(name, func(t *testing.T) {
					e := env(p)
					cert, key := "", ""
					if clientCA != "" {
						cert, key = files.cert, files.key
					}
					if e.TLS, err = peer.ClientTLS(files.ca, "localhost", cert, key); err != nil {
						t.Fatal(err)
					}
					run(t, find(t, name), e)
				})
			}
		})
	}
}

func TestAWrongTokenIsRefused(t *testing.T) {
	p := start(t, peer.Config{Network: "tcp", Address: "127.0.0.1:0", AuthToken: "bearer secret"})
	e := env(p)
	e.Auth = "bearer secret"
	run(t, find(t, "auth"), e)
}

// Every other case sends the token with each call, so that it can be run against a server that wants one.
func TestCasesCarryTheToken(t *testing.T) {
	p := start(t, peer.Config{Network: "tcp", Address: "127.0.0.1:0", AuthToken: "bearer secret"})
	for _, name := range []string{"json", "metadata", "errors", "oneway", "heartbeat", "compression", "timeout", "malformed", "bidirectional"} {
		t.Run(name, func(t *testing.T) {
			e := env(p)
			e.Auth = "bearer secret"
			run(t, find(t, name), e)
		})
	}
}

func TestLossIsTold(t *testing.T) {
	t.Run("the server closes the connection", func(t *testing.T) {
		e := env(start(t, peer.Config{Network: "tcp", Address: "127.0.0.1:0"}))
		e.Kick = true
		run(t, find(t, "loss"), e)
	})
	t.Run("the server goes away", func(t *testing.T) {
		p := start(t, peer.Config{Network: "tcp", Address: "127.0.0.1:0"})
		e := env(p)
		e.Note = func(state string, _ map[string]any) {
			if state == "ready" {
				time.AfterFunc(50*time.Millisecond, p.Close)
			}
		}
		run(t, find(t, "loss"), e)
	})
}

func TestAFailtryClientComesBack(t *testing.T) {
	p := start(t, peer.Config{Network: "tcp", Address: "127.0.0.1:0"})
	e := env(p)
	e.Note = func(state string, fields map[string]any) {
		t.Log(state, fields)
		switch state {
		case "connected":
			p.Close()
		case "down":
			time.AfterFunc(50*time.Millisecond, func() {
				again, err := peer.Start(peer.Config{Network: "tcp", Address: e.Address})
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(again.Close)
			})
		}
	}
	run(t, find(t, "reconnect"), e)
}

// The programs keep what README.md says of their output, on which the Rust tests rely.
func TestTheProgramsSpeakInLines(t *testing.T) {
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin, "./cmd/...")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	t.Run("server and client", func(t *testing.T) {
		server := startProgram(t, filepath.Join(bin, "server"), "-auth", "token")
		first := server.line(t)
		addr, ok := strings.CutPrefix(first, "LISTENING ")
		if !ok {
			t.Fatalf("the first line is %q", first)
		}
		out, err := exec.Command(filepath.Join(bin, "client"), "-addr", addr, "-auth", "token", "-case", "function").Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var result struct {
			Case string
			OK   bool
		}
		if err := json.Unmarshal(out, &result); err != nil || result.Case != "function" || !result.OK {
			t.Fatalf("%v in %q", err, out)
		}
		out, err = exec.Command(filepath.Join(bin, "client"), "-addr", addr, "-case", "function").Output()
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 {
			t.Fatalf("without the token: %v\n%s", err, out)
		}
		if event := server.line(t); !strings.Contains(event, `"event":"accepted"`) {
			t.Fatalf("the first event is %q", event)
		}
		server.endsWithItsInput(t)
	})

	t.Run("server with limits", func(t *testing.T) {
		server := startProgram(t, filepath.Join(bin, "server"), "-max-message", "1000", "-read-timeout", "300ms")
		address, _ := strings.CutPrefix(server.line(t), "LISTENING tcp@")
		for size, want := range map[int]string{2000: "message is too long", 0: "timeout"} {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			m := wire.Request(1, protocol.SerializeNone, "Raw", "Echo")
			m.Payload = make([]byte, size)
			if _, err := conn.Write(m.Encode()); err != nil {
				t.Fatal(err)
			}
			// The small one is answered, and then the silence is too long.
			_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("%d bytes: the connection stays open", size)
			}
			for {
				if event := server.line(t); strings.Contains(event, want) {
					break
				}
			}
		}
	})

	t.Run("bidirectional", func(t *testing.T) {
		server := startProgram(t, filepath.Join(bin, "bidirectional_server"), "-interval", "20ms", "127.0.0.1:0")
		address, ok := strings.CutPrefix(server.line(t), "LISTENING tcp@")
		if !ok {
			t.Fatal("no line tells where the server listens")
		}
		out, err := exec.Command(filepath.Join(bin, "bidirectional_client"), "-n", "3", address).Output()
		if want := "10 * 20 = 200\nreceived: abcde\nreceived: abcde\nreceived: abcde\n"; err != nil || string(out) != want {
			t.Fatalf("%v\n%s", err, out)
		}
	})

	t.Run("bench_server", func(t *testing.T) {
		server := startProgram(t, filepath.Join(bin, "bench_server"), "-attached")
		address, ok := strings.CutPrefix(server.line(t), "LISTENING tcp@")
		if !ok {
			t.Fatal("no line tells where the server listens")
		}
		benchContract(t, address)
		server.endsWithItsInput(t)
	})
}

// benchContract calls each method of the benchmark's service once.
func benchContract(t *testing.T, address string) {
	t.Helper()
	option := client.DefaultOption
	option.SerializeType = protocol.SerializeNone
	option.BidirectionalBlock = true
	ch := make(chan *protocol.Message, 10)
	c := client.NewClient(option)
	c.RegisterServerMessageChan(ch)
	if err := c.Connect("tcp", address); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	call := func(method, payload string) string {
		t.Helper()
		var reply []byte
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := c.Call(ctx, "Bench", method, []byte(payload), &reply); err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		return string(reply)
	}
	if got := call("Echo", "payload"); got != "payload" {
		t.Fatalf("Echo answered %q", got)
	}
	if got := call("Join", ""); got != "" {
		t.Fatalf("Join answered %q", got)
	}
	before := time.Now().UnixNano()
	if got := call("Broadcast", "3 16"); got != "" {
		t.Fatalf("Broadcast answered %q", got)
	}
	// All were written before the reply was, so they have been read before it too.
	if len(ch) != 3 {
		t.Fatalf("%d pushes came before the reply", len(ch))
	}
	for range 3 {
		m := <-ch
		if m.ServicePath != "Bench" || m.ServiceMethod != "Tick" || len(m.Payload) != 16 {
			t.Fatalf("push %s.%s of %d bytes", m.ServicePath, m.ServiceMethod, len(m.Payload))
		}
		at := int64(binary.BigEndian.Uint64(m.Payload))
		if at < before || at > time.Now().UnixNano() {
			t.Fatalf("push sent at %d", at)
		}
		before = at
	}
}

// program is one that runs beside the test, with a pipe to its input.
type program struct {
	cmd   *exec.Cmd
	input io.WriteCloser
	lines chan string
}

func startProgram(t *testing.T, name string, args ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(name, args...), lines: make(chan string, 100)}
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if p.input, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	go func() {
		defer close(p.lines)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			p.lines <- scanner.Text()
		}
	}()
	return p
}

func (p *program) line(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			t.Fatal("the program's output ended")
		}
		return line
	case <-time.After(10 * time.Second):
		t.Fatal("the program printed nothing")
	}
	return ""
}

func (p *program) endsWithItsInput(t *testing.T) {
	t.Helper()
	p.input.Close()
	timeout := time.After(5 * time.Second)
	for {
		select {
		case _, ok := <-p.lines:
			if !ok {
				return
			}
		case <-timeout:
			t.Fatal("the program outlived its input")
		}
	}
}

func TestSleepsAreScatteredAndBounded(t *testing.T) {
	seen := make(map[int]bool)
	for a := -100; a < 100; a++ {
		ms := contract.SleepMillis(a)
		if ms < 0 || ms > 20 {
			t.Fatalf("%d sleeps %d ms", a, ms)
		}
		seen[ms] = true
	}
	if len(seen) != 21 {
		t.Fatalf("%d different sleeps", len(seen))
	}
}

type certificateFiles struct{ ca, cert, key string }

// certificates makes an authority and one certificate for localhost that serves both sides.
func certificates(t *testing.T) certificateFiles {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)

	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return file
	}
	return certificateFiles{
		ca:   write("ca.pem", "CERTIFICATE", caDER),
		cert: write("cert.pem", "CERTIFICATE", leafDER),
		key:  write("key.pem", "PRIVATE KEY", keyDER),
	}
}
