package worker

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Version is the version of the protocol. Agent and worker are one binary, so
// they differ only when somebody runs a foreign one.
const Version = 1

// MaxMessage limits body and raw of one message, in bytes. A plan is at most
// 50 MiB, an inspection somewhat larger.
const MaxMessage = wire.PlanMaxBytes + 14<<20

const maxHeader = 256

type messageType string

const (
	typeHello    messageType = "hello"
	typeOpen     messageType = "open"
	typeInspect  messageType = "inspect"
	typeRun      messageType = "run"
	typeCleanup  messageType = "cleanup"
	typeResult   messageType = "result"
	typeError    messageType = "error"
	typeBegin    messageType = "begin"
	typeEnd      messageType = "end"
	typeVerified messageType = "verified"
	typeAnswer   messageType = "answer"
	typeProgress messageType = "progress"
	typeCancel   messageType = "cancel"
)

// message is one message in either direction. It may hold passwords, so its
// content is never printed.
type message struct {
	kind messageType
	id   uint64
	body []byte // JSON, may be empty
	raw  []byte
}

// String tells what the message is, not what it says.
func (m message) String() string {
	return fmt.Sprintf("%s %d (%d+%d bytes)", m.kind, m.id, len(m.body), len(m.raw))
}

// GoString is String: %#v must not show the content either.
func (m message) GoString() string { return m.String() }

// decode reads the body into value.
func (m message) decode(value any) error {
	if err := json.Unmarshal(m.body, value); err != nil {
		// The cause may quote the body.
		return fmt.Errorf("body of %s is not what it should be", m.kind)
	}
	return nil
}

// newMessage encodes body, unless it is nil.
func newMessage(kind messageType, id uint64, body any, raw []byte) (message, error) {
	m := message{kind: kind, id: id, raw: raw}
	if body == nil {
		return m, nil
	}
	encoded, err := json.Marshal(body)
	if err != nil {
		return message{}, fmt.Errorf("encode %s: %w", kind, err)
	}
	m.body = encoded
	return m, nil
}

type header struct {
	Type messageType `json:"type"`
	ID   uint64      `json:"id"`
	Body int         `json:"body"`
	Raw  int         `json:"raw"`
}

var (
	errHeader  = errors.New("malformed message header")
	errTooLong = fmt.Errorf("message is longer than %d bytes", MaxMessage)
	errTrailer = errors.New("message does not end where its header says")
)

// writer sends messages, one at a time.
type writer struct {
	mu  sync.Mutex
	out io.Writer
	err error // what stopped it: half a message cannot be taken back
}

func (w *writer) send(m message) error {
	if len(m.body)+len(m.raw) > MaxMessage {
		return errTooLong
	}
	head, err := json.Marshal(header{Type: m.kind, ID: m.id, Body: len(m.body), Raw: len(m.raw)})
	if err != nil {
		return fmt.Errorf("encode header: %w", err)
	}
	// Small messages go out in one write, the raw part of large ones uncopied.
	first := make([]byte, 0, len(head)+len(m.body)+2)
	first = append(first, head...)
	first = append(first, '\n')
	first = append(first, m.body...)
	defer clear(first[:cap(first)]) // it may hold a password

	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if len(m.raw) == 0 {
		first = append(first, '\n')
		return w.write(first)
	}
	if err := w.write(first); err != nil {
		return err
	}
	if err := w.write(m.raw); err != nil {
		return err
	}
	return w.write([]byte{'\n'})
}

func (w *writer) write(content []byte) error {
	if _, err := w.out.Write(content); err != nil {
		w.err = fmt.Errorf("write message: %w", err)
	}
	return w.err
}

// reader receives messages.
type reader struct {
	in *bufio.Reader
}

func newReader(in io.Reader) *reader { return &reader{in: bufio.NewReaderSize(in, 64<<10)} }

// next returns the next message, io.EOF between two messages at the end, or
// another error, after which the stream is of no use.
func (r *reader) next() (message, error) {
	line, err := r.headerLine()
	if err != nil {
		return message{}, err
	}
	var h header
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&h); err != nil || decoder.More() {
		return message{}, errHeader
	}
	if h.Body < 0 || h.Raw < 0 || h.Body > MaxMessage || h.Raw > MaxMessage-h.Body {
		return message{}, errTooLong
	}
	m := message{kind: h.Type, id: h.ID}
	if m.body, err = r.take(h.Body); err != nil {
		return message{}, err
	}
	if m.raw, err = r.take(h.Raw); err != nil {
		return message{}, err
	}
	end, err := r.in.ReadByte()
	if err != nil {
		return message{}, truncated(err)
	}
	if end != '\n' {
		return message{}, errTrailer
	}
	return m, nil
}

func (r *reader) headerLine() ([]byte, error) {
	line := make([]byte, 0, maxHeader)
	for {
		c, err := r.in.ReadByte()
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil, io.EOF
		case err != nil:
			return nil, truncated(err)
		case c == '\n':
			return line, nil
		case len(line) == maxHeader:
			return nil, errHeader
		}
		line = append(line, c)
	}
}

// grant is how much is allocated on the word of a header alone.
const grant = 64 << 10

// take reads n bytes. Memory grows with what arrives, not with what was said.
func (r *reader) take(n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	content := make([]byte, min(n, grant))
	for read := 0; ; {
		got, err := io.ReadFull(r.in, content[read:])
		read += got
		if err != nil {
			return nil, truncated(err)
		}
		if read == n {
			return content, nil
		}
		larger := make([]byte, min(n, 2*len(content)))
		copy(larger, content)
		clear(content) // it may hold a password
		content = larger
	}
}

func truncated(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read message: %w", err)
}

// plain makes a text of the other side fit for logs and events: bounded, one
// line, printable.
func plain(text string) string {
	const limit = 2 << 10
	if len(text) > limit {
		text = text[:limit] + "…"
	}
	text = strings.ToValidUTF8(text, "?")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, text)
}
