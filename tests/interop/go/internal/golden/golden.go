// Package golden records bytes that Go's rpcx itself produces, as the fixed points of the tests in Rust: frames taken
// from sockets and from the encoder, and values as each codec writes them. What it records is the same on every run.
package golden

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"bothways.dev/interop/internal/wire"
	"github.com/smallnest/rpcx/protocol"
)

// Version is the version of rpcx that go.mod requires, for the files to name.
const Version = "rpcx v1.9.4"

// File is one .hex file: comments that start with "# ", then blocks.
type File struct {
	Name     string
	Comments []string
	Blocks   []Block
}

// Block is a comment and the bytes it speaks of.
type Block struct {
	Comments []string
	Bytes    []byte
}

// String is the file's text. Blocks are separated by an empty line; bytes are lower-case hex, 32 a line.
func (f File) String() string {
	var b strings.Builder
	comment := func(lines []string) {
		for _, line := range lines {
			b.WriteString("# " + line + "\n")
		}
	}
	comment(f.Comments)
	for i, block := range f.Blocks {
		// The only block of a frame's file belongs to the comments on top.
		if i > 0 || len(block.Comments) > 0 {
			b.WriteString("\n")
		}
		comment(block.Comments)
		if len(block.Bytes) == 0 {
			b.WriteString("# (no bytes)\n")
		}
		for line := range slices.Chunk(block.Bytes, 32) {
			b.WriteString(hex.EncodeToString(line) + "\n")
		}
	}
	return b.String()
}

// decoded is what rpcx's own decoder makes of a frame. Its JSON is a comment of the frame's block, so that a
// test can compare without knowing the frame.
type decoded struct {
	Version   byte              `json:"version"`
	Type      string            `json:"type"`
	Heartbeat bool              `json:"heartbeat"`
	Oneway    bool              `json:"oneway"`
	Compress  byte              `json:"compress"`
	Status    byte              `json:"status"`
	Serialize byte              `json:"serialize"`
	Reserved  byte              `json:"reserved"`
	Seq       uint64            `json:"seq"`
	Path      string            `json:"path"`
	Method    string            `json:"method"`
	Metadata  map[string]string `json:"metadata"`
	Payload   string            `json:"payload"` // hex, decompressed
}

func decode(frame []byte) (string, error) {
	m, err := wire.Decode(frame)
	if err != nil {
		return "", err
	}
	d := decoded{
		Version:   m.Version(),
		Type:      "request",
		Heartbeat: m.IsHeartbeat(),
		Oneway:    m.IsOneway(),
		Compress:  byte(m.CompressType()),
		Status:    byte(m.MessageStatusType()),
		Serialize: byte(m.SerializeType()),
		Reserved:  m.Header[3] & 0x0f,
		Seq:       m.Seq(),
		Path:      m.ServicePath,
		Method:    m.ServiceMethod,
		Metadata:  m.Metadata,
		Payload:   hex.EncodeToString(m.Payload),
	}
	if m.MessageType() == protocol.Response {
		d.Type = "response"
	}
	if d.Metadata == nil {
		d.Metadata = map[string]string{}
	}
	if len(d.Metadata) > 1 {
		return "", fmt.Errorf("Go writes %d metadata keys in random order", len(d.Metadata))
	}
	text, err := json.Marshal(d)
	return string(text), err
}

func frameFile(name, origin, meaning string, frame []byte) (File, error) {
	text, err := decode(frame)
	if err != nil {
		return File{}, fmt.Errorf("%s: %w", name, err)
	}
	return File{
		Name:     name,
		Comments: []string{"origin: " + Version + ", " + origin, "meaning: " + meaning, "decoded: " + text},
		Blocks:   []Block{{Bytes: frame}},
	}, nil
}

// Record makes all files.
func Record() ([]File, error) {
	frames, err := recordFrames()
	if err != nil {
		return nil, err
	}
	vectors, err := recordVectors()
	if err != nil {
		return nil, err
	}
	return append(frames, vectors...), nil
}
