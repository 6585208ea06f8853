package bothways

import (
	"net"
	"sync"
	"time"
)

// conn ends when nothing has come for so long, or when what is written does not get away: rpcx waits for ever.
type conn struct {
	net.Conn
	silence time.Duration
	writing sync.Mutex // one frame after the other
}

// Read waits for the peer. Nobody reads while the application does not take what came, so that this is no silence.
func (c *conn) Read(b []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(c.silence))
	return c.Conn.Read(b)
}

// Write writes a long frame in parts: bytes that move are life, also for who waits to read.
func (c *conn) Write(b []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	for n < len(b) && err == nil {
		until, taken := time.Now().Add(c.silence), 0
		_ = c.SetWriteDeadline(until)
		if n > 0 {
			_ = c.SetReadDeadline(until)
		}
		taken, err = c.Conn.Write(b[n:min(n+64<<10, len(b))])
		n += taken
	}
	if err != nil { // half a frame may be written: nothing can follow
		_ = c.Close()
	}
	return n, err
}

// NetConn is the connection below.
func (c *conn) NetConn() net.Conn { return c.Conn }

// ConnCreated makes a plugin of a duration: rpcx asks it for the connection to use.
func (s silence) ConnCreated(below net.Conn) (net.Conn, error) {
	return &conn{Conn: below, silence: time.Duration(s)}, nil
}

type silence time.Duration
