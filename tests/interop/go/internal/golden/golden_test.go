package golden

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bothways.dev/interop/internal/peer"
)

func TestMain(m *testing.M) {
	peer.LogToStderr()
	os.Exit(m.Run())
}

const folder = "../../../golden"

// What lies in the folder is what Go makes today. After a change on purpose, run cmd/golden.
func TestTheFilesAreWhatGoMakes(t *testing.T) {
	files, err := Record()
	if err != nil {
		t.Fatal(err)
	}
	recorded := make(map[string]bool)
	for _, f := range files {
		if recorded[f.Name+".hex"] {
			t.Errorf("two files are called %s", f.Name)
		}
		recorded[f.Name+".hex"] = true
		kept, err := os.ReadFile(filepath.Join(folder, f.Name+".hex"))
		if err != nil {
			t.Error(err)
			continue
		}
		if got, want := comparable(f.String()), comparable(string(kept)); got != want {
			t.Errorf("%s is no longer\n%s\nbut\n%s", f.Name, want, got)
		}
	}
	kept, err := filepath.Glob(filepath.Join(folder, "*.hex"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range kept {
		if !recorded[filepath.Base(name)] {
			t.Errorf("%s is not recorded by anything", name)
		}
	}
}

// comparable leaves out the bytes of what is compressed: another release of Go may compress better, and the decoded
// payload in the comments tells enough.
func comparable(text string) string {
	if !strings.Contains(text, `"compress":1`) && !strings.Contains(text, "util.Zip") {
		return text
	}
	var kept []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// These were printed by another program, when rpcx was studied and before this one was written. That both agree shows
// that neither misreads what it records.
func TestTheFramesAreThoseOfTheFirstStudy(t *testing.T) {
	for name, want := range map[string]string{
		"request_msgpack":  "08000030 0000000000000002 0000001f 00000005 4172697468 00000003 4d756c 00000000 00000007 82a1410aa14214",
		"response_msgpack": "08008030 0000000000000002 0000001d 00000005 4172697468 00000003 4d756c 00000000 00000005 81a143ccc8",
		"response_error_method": "08008130 0000000000000003 00000036 00000005 4172697468 00000003 457272" +
			"0000001a 0000000e 5f5f727063785f6572726f725f5f 00000004 626f6f6d 00000004 81a14300",
		"response_error_function": "08008130 0000000000000004 0000002d 00000001 46 00000002 666e" +
			"0000001a 0000000e 5f5f727063785f6572726f725f5f 00000004 626f6f6d 00000000",
		"heartbeat_request": "08004030 0000000000000003 00000019 00000000 00000000 00000000 00000009 d30000000000000005",
		"push":              "08002000 0000000000000001 00000021 00000001 70 00000001 6d 0000000a 00000001 6b 00000001 76 00000005 6162636465",
		"push_empty":        "08002000 0000000000000002 00000010 00000000 00000000 00000000 00000000",
		"request_metadata":  "08000030 0000000000000001 00000029 00000005 4172697468 00000003 4d756c 0000000a 00000001 6b 00000001 76 00000007 82a1410aa14214",
	} {
		if got := string(kept(t, name)); got != unhex(t, want) {
			t.Errorf("%s is %x", name, got)
		}
	}
	oneway := kept(t, "request_oneway")
	call := kept(t, "request_msgpack")
	if oneway[2] != 0x20 || string(oneway[12:]) != string(call[12:]) {
		t.Errorf("a oneway call is %x", oneway)
	}
}

// The study's Go compressed the same payload to other bytes: nobody may compare compressed ones.
func TestTheCompressedFrameOfTheFirstStudyMeansTheSame(t *testing.T) {
	study, err := decode([]byte(unhex(t, "08000430 0000000000000001 00000047 00000005 4172697468 00000003 4d756c 0000000a 00000001 6b 00000001 76"+
		"00000025 1f8b08000000000000ff000700f8ff82a1410aa14214000000ffff0300deb9a45a07000000")))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := decode(kept(t, "encoded_gzip"))
	if err != nil {
		t.Fatal(err)
	}
	if ours != study {
		t.Errorf("it was %s and is %s", study, ours)
	}
}

func kept(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	var digits strings.Builder
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			digits.WriteString(strings.TrimSpace(line))
		}
	}
	return []byte(unhex(t, digits.String()))
}

func unhex(t *testing.T, digits string) string {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
