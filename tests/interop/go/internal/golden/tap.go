package golden

import (
	"fmt"
	"net"
	"sync"
	"time"

	"bothways.dev/interop/internal/wire"
)

// tap stands between a client and a server and keeps a copy of each frame, before it passes the frame on.
type tap struct {
	ln net.Listener

	mu    sync.Mutex
	conns []net.Conn
	sent  [][]byte // by the client
	got   [][]byte // by the client
}

func newTap(server string) (*tap, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &tap{ln: ln}
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				return
			}
			t.mu.Lock()
			t.conns = append(t.conns, client, upstream)
			t.mu.Unlock()
			go t.copy(upstream, client, &t.sent)
			go t.copy(client, upstream, &t.got)
		}
	}()
	return t, nil
}

func (t *tap) copy(to, from net.Conn, frames *[][]byte) {
	defer to.Close()
	for {
		frame, err := wire.ReadFrame(from)
		if err != nil {
			return
		}
		t.mu.Lock()
		*frames = append(*frames, frame)
		t.mu.Unlock()
		if _, err := to.Write(frame); err != nil {
			return
		}
	}
}

func (t *tap) close() {
	t.ln.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.conns {
		c.Close()
	}
}

// take waits for so many frames in each direction, returns them and forgets them.
func (t *tap) take(sent, got int) (s, g [][]byte, err error) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		t.mu.Lock()
		s, g = t.sent, t.got
		if len(s) >= sent && len(g) >= got {
			t.sent, t.got = nil, nil
			t.mu.Unlock()
			if len(s) > sent || len(g) > got {
				return nil, nil, fmt.Errorf("%d and %d frames went by, expected %d and %d", len(s), len(g), sent, got)
			}
			return s, g, nil
		}
		t.mu.Unlock()
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("%d and %d frames went by, expected %d and %d", len(s), len(g), sent, got)
		}
	}
}
