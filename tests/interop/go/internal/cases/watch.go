package cases

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"github.com/smallnest/rpcx/client"
	"github.com/smallnest/rpcx/protocol"
)

// watch sees every frame that a client receives. It counts them by kind and remembers the first few that a plain rpcx
// client must never be sent, because the library would take them for something else without a word.
type watch struct {
	connections atomic.Int64
	responses   atomic.Int64
	heartbeats  atomic.Int64
	pushes      atomic.Int64

	mu   sync.Mutex
	errs []error
}

func (e *Env) watch() *watch {
	w := &watch{}
	e.mu.Lock()
	e.watches = append(e.watches, w)
	e.mu.Unlock()
	return w
}

func (w *watch) container() client.PluginContainer {
	plugins := client.NewPluginContainer()
	plugins.Add(w)
	return plugins
}

// ConnCreated counts connections.
func (w *watch) ConnCreated(c net.Conn) (net.Conn, error) {
	w.connections.Add(1)
	return c, nil
}

// ClientAfterDecode looks at each frame after rpcx has decoded it and before it acts on it.
func (w *watch) ClientAfterDecode(m *protocol.Message) error {
	response := m.MessageType() == protocol.Response
	switch {
	case response && m.IsHeartbeat():
		w.heartbeats.Add(1)
	case response:
		w.responses.Add(1)
		if m.IsOneway() {
			w.object(m, "a reply to a call that wants none")
		}
	case m.IsHeartbeat():
		w.object(m, "a heartbeat request, which would complete a call")
	case !m.IsOneway():
		w.object(m, "a request that wants a reply, which would complete a call")
	default:
		w.pushes.Add(1)
		if m.MessageStatusType() != protocol.Normal {
			w.object(m, "a push with a status, which applications take for the end of the connection")
		}
	}
	if m.Version() != 0 || m.Header[3]&0x0f != 0 {
		w.object(m, "a version or reserved bits that are not 0")
	}
	if m.MessageStatusType() > protocol.Error {
		w.object(m, "an undefined status")
	}
	if _, ok := m.Metadata[protocol.ServiceError]; response && !ok && m.MessageStatusType() == protocol.Error {
		w.object(m, "an error without its text, which the library takes for success")
	}
	for key := range m.Metadata {
		if reserved(key) {
			w.object(m, "metadata for negotiated peers only: "+key)
		}
	}
	return nil
}

func (w *watch) object(m *protocol.Message, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errs) < 5 {
		w.errs = append(w.errs, fmt.Errorf("the server sent %s: header %x, %s.%s", why, m.Header[:], m.ServicePath, m.ServiceMethod))
	}
}

func (w *watch) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errors.Join(w.errs...)
}
