package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// What is no message is refused, and an announced size is not believed.
func TestReader_Refuses(t *testing.T) {
	t.Parallel()
	for name, input := range map[string]string{
		"no json":         "hello\n",
		"unknown field":   `{"type":"open","id":1,"body":0,"raw":0,"x":1}` + "\n\n",
		"two values":      `{"type":"open"} {"type":"run"}` + "\n\n",
		"negative size":   `{"type":"open","body":-1}` + "\n\n",
		"huge":            fmt.Sprintf(`{"type":"open","body":%d}`, MaxMessage+1) + "\n\n",
		"huge together":   fmt.Sprintf(`{"type":"open","body":%d,"raw":%d}`, MaxMessage, MaxMessage) + "\n\n",
		"overflow":        `{"type":"open","body":9223372036854775807,"raw":9223372036854775807}` + "\n\n",
		"not all there":   fmt.Sprintf(`{"type":"open","body":%d}`, MaxMessage) + "\nabc",
		"longer than so":  `{"type":"open","body":1}` + "\n12\n",
		"header too long": strings.Repeat(" ", maxHeader+1) + `{"type":"open"}` + "\n\n",
		"half a header":   `{"type":`,
	} {
		_, err := newReader(strings.NewReader(input)).next()
		require.Error(t, err, name)
		require.NotErrorIs(t, err, io.EOF, name)
	}
	_, err := newReader(strings.NewReader("")).next()
	require.ErrorIs(t, err, io.EOF)
}

// Memory follows what arrives, not what a header announces.
func TestReader_AllocatesWhatArrives(t *testing.T) {
	input := []byte(fmt.Sprintf(`{"type":"open","body":%d}`, MaxMessage) + "\nabc")
	allocated := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			_, _ = newReader(bytes.NewReader(input)).next()
		}
	}).AllocedBytesPerOp()
	require.Less(t, allocated, int64(1<<20))
}

func FuzzReader(f *testing.F) {
	f.Add([]byte(`{"type":"run","id":3,"body":2,"raw":3}` + "\n{}abc\n"))
	f.Add([]byte(`{"type":"hello","id":0,"body":27,"raw":0}` + "\n" + `{"version":1,"engines":[]}` + "\n"))
	f.Add([]byte("\n\n\n"))
	f.Fuzz(func(t *testing.T, input []byte) {
		r := newReader(bytes.NewReader(input))
		for {
			m, err := r.next()
			if err != nil {
				return
			}
			if len(m.body)+len(m.raw) > len(input) {
				t.Fatalf("%v out of %d bytes", m, len(input))
			}
			if len(m.kind) > len(typeVerified) {
				continue // not one of ours; escaped it may outgrow the header
			}
			// Written again and read again it is the same.
			var again bytes.Buffer
			if err := (&writer{out: &again}).send(m); err != nil {
				t.Fatal(err)
			}
			back, err := newReader(&again).next()
			if err != nil {
				t.Fatalf("%v: %v", m, err)
			}
			if back.id != m.id || !bytes.Equal(back.body, m.body) || !bytes.Equal(back.raw, m.raw) {
				t.Fatalf("%v became %v", m, back)
			}
		}
	})
}

// FuzzClient lets the worker say anything: the client neither panics nor hangs,
// and what it returns has known codes and printable reasons.
func FuzzClient(f *testing.F) {
	hello := `{"type":"hello","id":0,"body":13,"raw":0}` + "\n" + `{"version":1}` + "\n"
	f.Add([]byte(hello + `{"type":"result","id":1,"body":2,"raw":2}` + "\n{}{}\n"))
	f.Add([]byte(hello + `{"type":"error","id":1,"body":15,"raw":0}` + "\n" + `{"code":"none"}` + "\n"))
	f.Add([]byte(hello + `{"type":"begin","id":1,"body":15,"raw":0}` + "\n" + `{"step":"copy"}` + "\n"))
	f.Add([]byte(hello + `{"type":"progress","id":1,"body":2,"raw":0}` + "\n{}\n"))
	f.Fuzz(func(t *testing.T, output []byte) {
		client := NewClient(&canned{stdout: bytes.NewReader(output)}, hclog.NewNullLogger())
		defer client.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := client.Run(ctx, RunRequest{OperationID: "clone-1"}, &recorder{})
		check(t, err)
		_, err = client.Inspect(ctx, wire.Source)
		check(t, err)
		if ctx.Err() != nil {
			t.Fatal("hung")
		}
	})
}

func check(t *testing.T, err error) {
	if err == nil {
		return
	}
	var e *operation.Error
	if !errors.As(err, &e) || !e.Code.Valid() || !known(e.Step) || strings.ContainsAny(e.Reason+e.Hint, "\n\r\x1b") {
		t.Fatalf("%#v", err)
	}
}

// canned is a worker that says what it always says.
type canned struct{ stdout io.Reader }

type discard struct{ io.Writer }

func (discard) Close() error { return nil }

func (c *canned) Stdin() io.WriteCloser { return discard{io.Discard} }
func (c *canned) Stdout() io.Reader     { return c.stdout }
func (c *canned) Stderr() io.Reader     { return strings.NewReader("") }

// A worker of another version, or one that begins with anything but hello, is
// not talked to.
func TestClient_ForeignWorker(t *testing.T) {
	t.Parallel()
	for _, output := range []string{
		"", "hello there\n",
		`{"type":"hello","id":0,"body":13,"raw":0}` + "\n" + `{"version":9}` + "\n",
		`{"type":"result","id":1,"body":0,"raw":0}` + "\n\n",
	} {
		client := NewClient(&canned{stdout: strings.NewReader(output)}, hclog.NewNullLogger())
		requireCode(t, client.Ready(t.Context()), wire.CodeSandbox)
		requireCode(t, client.Open(t.Context(), nil), wire.CodeSandbox)
		require.NoError(t, client.Close())
	}
}

// A worker that calls the host without waiting is cut off, not served.
func TestClient_CallFlood(t *testing.T) {
	t.Parallel()
	out, in := io.Pipe()
	client := NewClient(&canned{stdout: out}, hclog.NewNullLogger())
	defer client.Close()
	go func() {
		w := &writer{out: in}
		m, _ := newMessage(typeHello, 0, helloBody{Version: Version}, nil)
		_ = w.send(m)
		for id := uint64(1); ; id++ {
			m, _ := newMessage(typeBegin, id, stepBody{Step: wire.StepCopy}, nil)
			if w.send(m) != nil {
				return
			}
		}
	}()
	host := &recorder{begin: func(ctx context.Context, _ wire.Step, _ json.RawMessage) error { <-ctx.Done(); return ctx.Err() }}
	_, err := client.Run(t.Context(), RunRequest{OperationID: "clone-1"}, host)
	requireCode(t, err, wire.CodeSandbox)
	require.NoError(t, out.Close())
}

// The worker's lines reach the agent's log bounded, and the text of a crash does
// not reach it at all.
func TestCopyLog(t *testing.T) {
	t.Parallel()
	var out testenv.Buffer
	log := hclog.New(&hclog.LoggerOptions{Output: &out, Level: hclog.Trace})
	copyLog(strings.NewReader(strings.Join([]string{
		`{"@level":"warn","@message":"tool cannot be connected","error":"refused\nforged line"}`,
		"row data on stderr",
		strings.Repeat("long", 100_000),
		"panic: alice@example.com",
		"goroutine 1 [running]:",
		"main.main()",
	}, "\n")), log)
	text := out.String()
	require.Contains(t, text, "tool cannot be connected")
	require.Contains(t, text, "refused forged line")
	require.Contains(t, text, "main.main()")
	require.NotContains(t, text, "alice")
	require.NotContains(t, text, "row data")
	require.NotContains(t, text, "longlong")

	out = testenv.Buffer{}
	log = hclog.New(&hclog.LoggerOptions{Output: &out})
	copyLog(strings.NewReader(strings.Repeat(`{"@level":"error","@message":"flood"}`+"\n", 100_000)), log)
	require.Less(t, strings.Count(out.String(), "flood"), 1000)
}

// The texts of the other side are made fit for a log or an event.
func TestPlain(t *testing.T) {
	t.Parallel()
	require.Equal(t, "a b c", plain("a\nb\x1bc"))
	require.Less(t, len(plain(strings.Repeat("x", 1<<20))), 4<<10)
	require.Equal(t, "a?", plain("a\xff"))
}
