package postgres

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
	"github.com/zeebo/xxh3"
)

func message(kind byte, body []byte) []byte {
	m := append([]byte{kind}, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(m[1:], uint32(len(body)+4))
	return append(m, body...)
}

func ending() []byte {
	return append(append(message('c', nil), message('C', []byte("COPY 0\x00"))...), message('Z', []byte("T"))...)
}

// pass sends a server's side through a copyStream and returns what is forwarded.
func pass(t testing.TB, source io.Reader, f format) ([]byte, *copyStream, error) {
	t.Helper()
	s := &copyStream{source: source, rows: newRowHasher(f)}
	var out []byte
	buffer := make([]byte, bufferBytes)
	for {
		n, err := s.next(buffer)
		if errors.Is(err, io.EOF) && s.done {
			return out, s, nil
		}
		if err != nil {
			return out, s, err
		}
		out = append(out, buffer[:n]...)
	}
}

// chunks hands out its text in pieces of changing size.
type chunks struct {
	text  []byte
	sizes []byte
	at    int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.text) == 0 {
		return 0, io.EOF
	}
	n := 1
	if len(c.sizes) > 0 {
		n += int(c.sizes[c.at%len(c.sizes)])
		c.at++
	}
	n = copy(p, c.text[:min(n, len(c.text))])
	c.text = c.text[n:]
	return n, nil
}

// Rows are forwarded byte for byte and hashed alike, however the stream is cut
// and whatever stands between them.
func TestCopyStream_Cuts(t *testing.T) {
	var stream, rows []byte
	want := tally{}
	for i := range 200 {
		body := bytes.Repeat([]byte{byte(i)}, i*i%7000)
		if i == 100 {
			body = bytes.Repeat([]byte("wide"), 300_000)
		}
		if i%17 == 0 {
			stream = append(stream, message('N', []byte("SNOTICE\x00\x00"))...)
		}
		stream = append(stream, message('d', body)...)
		rows = append(rows, message('d', body)...)
		want.add(xxh3.Hash128(body), len(body))
	}
	stream = append(stream, ending()...)
	for name, source := range map[string]io.Reader{
		"whole": bytes.NewReader(stream), "bytes": iotest.OneByteReader(bytes.NewReader(stream)),
		"halves": iotest.HalfReader(bytes.NewReader(stream)), "data with error": iotest.DataErrReader(bytes.NewReader(stream)),
		"odd": &chunks{text: stream, sizes: []byte{0, 4, 255, 1, 3, 77}},
	} {
		out, s, err := pass(t, source, formatText)
		require.NoError(t, err, name)
		require.True(t, bytes.Equal(rows, out), name)
		require.Equal(t, want, s.rows.tally, name)
		require.Equal(t, "COPY 0", s.tag)
	}
}

// In binary neither header nor trailer is a row, in whatever message they come.
func TestCopyStream_BinaryFrame(t *testing.T) {
	header := append([]byte("PGCOPY\n\xff\r\n\x00"), make([]byte, 8)...)
	row := func(n int) []byte { return append([]byte{0, 1, 0, 0, 0, byte(n)}, bytes.Repeat([]byte{byte(n)}, n)...) }
	trailer := []byte{0xff, 0xff}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	want := tally{}
	for _, n := range []int{3, 0, 9} {
		want.add(xxh3.Hash128(row(n)), len(row(n)))
	}
	first := join(message('d', join(header, row(3))), message('d', row(0)), message('d', row(9)), message('d', trailer), ending())
	other := join(message('d', join(header, row(9))), message('d', row(3)), message('d', row(0)), message('d', trailer), ending())
	apart := join(message('d', header), message('d', row(9)), message('d', row(3)), message('d', row(0)), message('d', trailer), ending())
	empty := join(message('d', join(header, trailer)), ending())
	for _, stream := range [][]byte{first, other, apart} {
		for _, source := range []io.Reader{bytes.NewReader(stream), iotest.OneByteReader(bytes.NewReader(stream))} {
			_, s, err := pass(t, source, formatBinary)
			require.NoError(t, err)
			require.Equal(t, want, s.rows.tally)
		}
	}
	for _, source := range []io.Reader{bytes.NewReader(empty), iotest.OneByteReader(bytes.NewReader(empty))} {
		_, s, err := pass(t, source, formatBinary)
		require.NoError(t, err)
		require.Equal(t, tally{}, s.rows.tally)
	}
}

// An error keeps names and SQLSTATE, and nothing else.
func TestCopyStream_Error(t *testing.T) {
	body := []byte("SERROR\x00C23505\x00Mduplicate key\x00DKey (mail)=(a@b) exists\x00sapp\x00tpeople\x00nonce\x00\x00")
	stream := append(message('d', []byte("row")), append(message('E', body), message('Z', []byte("E"))...)...)
	_, s, err := pass(t, bytes.NewReader(stream), formatText)
	require.NoError(t, err)
	require.Equal(t, &serverError{State: "23505", Schema: "app", Table: "people", Constraint: "once"}, s.err)
	require.NotContains(t, s.err.Error(), "a@b")
	_, _, err = pass(t, bytes.NewReader(stream[:len(stream)-1]), formatText)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// The digest is a sum: order does not count, number does.
func TestTally(t *testing.T) {
	var a, b, both tally
	for i := range 10 {
		h := xxh3.Hash128([]byte{byte(i)})
		a.add(h, 1)
		both.add(h, 1)
	}
	for i := 9; i >= 0; i-- {
		h := xxh3.Hash128([]byte{byte(i)})
		b.add(h, 1)
		both.add(h, 1)
	}
	require.Equal(t, a, b)
	require.Len(t, a.hex(), 32)
	a.merge(b)
	require.Equal(t, both, a)
	require.NotEqual(t, b.hex(), a.hex())
}

// Whatever a server sends and however it is cut, nothing panics, and what is
// forwarded and hashed does not depend on the cuts.
func FuzzCopyStream(f *testing.F) {
	f.Add(append(message('d', []byte("row\n")), ending()...), []byte{3}, false)
	f.Add(append(message('d', append(make([]byte, 19), 0xff, 0xff)), ending()...), []byte{0}, true)
	f.Add(append(message('N', []byte("x")), message('d', nil)...), []byte{9, 1}, false)
	f.Fuzz(func(t *testing.T, stream, sizes []byte, binary bool) {
		form := formatText
		if binary {
			form = formatBinary
		}
		whole, first, err := pass(t, bytes.NewReader(stream), form)
		parts, second, again := pass(t, &chunks{text: bytes.Clone(stream), sizes: sizes}, form)
		if (err == nil) != (again == nil) {
			t.Fatalf("%v, in parts %v", err, again)
		}
		if err == nil && (!bytes.Equal(whole, parts) || first.rows.tally != second.rows.tally) {
			t.Fatal("cuts change the result")
		}
	})
}
