package postgres

import (
	"bytes"
	"encoding/binary"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// archiveWriter writes an archive as pg_dump of one version does.
type archiveWriter struct{ bytes.Buffer }

func (w *archiveWriter) integer(n int) {
	sign := byte(0)
	if n < 0 {
		sign, n = 1, -n
	}
	w.WriteByte(sign)
	w.Write(binary.LittleEndian.AppendUint32(nil, uint32(n)))
}

func (w *archiveWriter) text(s string) {
	w.integer(len(s))
	w.WriteString(s)
}

func writeArchive(minor byte, entries []entry) []byte {
	w := &archiveWriter{}
	w.WriteString("PGDMP")
	w.Write([]byte{1, minor, 0, 4, 8, 1})
	if minor >= 15 {
		w.WriteByte(0)
	} else {
		w.integer(-1)
	}
	for range 7 {
		w.integer(5)
	}
	w.text("db")
	w.text("15.1")
	w.text("15.1")
	w.integer(len(entries))
	for _, e := range entries {
		w.integer(e.id)
		w.integer(0)
		w.text("1259")
		w.text("16400")
		w.text(e.tag)
		w.text(e.desc)
		w.integer(int(e.section))
		w.text(e.statement)
		w.text("DROP x;")
		w.integer(-1)
		w.text(e.namespace)
		w.text("")
		w.text(e.method)
		if minor >= 16 {
			w.integer(int(e.relkind))
		}
		w.text("owner")
		w.text("false")
		for range e.needs {
			w.text("7")
		}
		w.integer(-1)
		w.Write(make([]byte, 9))
	}
	return w.Bytes()
}

var archiveEntries = []entry{
	{id: 3, class: 1259, oid: 16400, tag: "t", desc: "TABLE", section: sectionPreData, statement: "CREATE TABLE t ();\n", namespace: "s", method: "heap"},
	{id: 4, class: 1259, oid: 16400, tag: "line\nbreak", desc: "INDEX", section: sectionPostData, statement: "CREATE INDEX;", needs: []int{7, 7}},
}

func TestReadArchive(t *testing.T) {
	for _, minor := range []byte{14, 15, 16} {
		toc, err := readArchive(iotest.OneByteReader(bytes.NewReader(writeArchive(minor, archiveEntries))))
		require.NoError(t, err)
		require.Equal(t, archiveEntries, toc.entries)
	}
	whole := writeArchive(14, archiveEntries)
	for end := range len(whole) {
		_, err := readArchive(bytes.NewReader(whole[:end]))
		require.ErrorIs(t, err, errArchive, end)
	}
	_, err := readArchive(bytes.NewReader(writeArchive(17, nil)))
	require.ErrorIs(t, err, errArchive)
}

func FuzzReadArchive(f *testing.F) {
	for _, minor := range []byte{14, 15, 16} {
		f.Add(writeArchive(minor, archiveEntries))
	}
	f.Fuzz(func(_ *testing.T, text []byte) {
		_, _ = readArchive(bytes.NewReader(text)) // must not panic, nor take memory it was not sent
	})
}
