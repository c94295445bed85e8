package postgres

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// archive is the table of contents of a pg_dump custom-format archive. We run
// its statements ourselves, each in our own session: then an error has an
// SQLSTATE and the name of an object, indexes start while tables are loading,
// and no client interprets the dump.
type archive struct {
	entries []entry
}

type entry struct {
	id        int
	class     uint32 // oid of the catalog
	oid       uint32
	tag, desc string
	section   section
	statement string
	namespace string
	method    string // table access method
	relkind   byte   // from archive version 1.16
	needs     []int
}

type section int

const (
	sectionNone section = iota + 1
	sectionPreData
	sectionData
	sectionPostData
)

var errArchive = errors.New("the schema dump cannot be read")

const (
	archiveTextMaximum  = 64 << 20 // of one string
	archiveEntryMaximum = 4 << 20  // entries
)

// readArchive reads a custom-format archive up to the end of its contents.
// Versions 1.14 (PostgreSQL 12) to 1.16 (18) are known.
func readArchive(r io.Reader) (*archive, error) {
	a := &archiveReader{in: bufio.NewReaderSize(r, 64<<10)}
	toc, err := a.read()
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("%w: it ends early", errArchive)
		}
		return nil, err
	}
	return toc, nil
}

type archiveReader struct {
	in                 *bufio.Reader
	minor              byte
	intBytes, offBytes int
}

func (a *archiveReader) read() (*archive, error) {
	var head [11]byte
	if _, err := io.ReadFull(a.in, head[:]); err != nil {
		return nil, err
	}
	if string(head[:5]) != "PGDMP" {
		return nil, fmt.Errorf("%w: not an archive", errArchive)
	}
	if head[5] != 1 || head[6] < 14 || head[6] > 16 {
		return nil, fmt.Errorf("%w: archive version %d.%d", errArchive, head[5], head[6])
	}
	a.minor = head[6]
	a.intBytes, a.offBytes = int(head[8]), int(head[9])
	if a.intBytes < 1 || a.intBytes > 8 || a.offBytes < 1 || a.offBytes > 8 || head[10] != 1 {
		return nil, fmt.Errorf("%w: archive format", errArchive)
	}
	if a.minor >= 15 {
		if _, err := a.in.ReadByte(); err != nil { // compression algorithm
			return nil, err
		}
	} else if _, err := a.integer(); err != nil { // compression level
		return nil, err
	}
	for range 7 { // creation time
		if _, err := a.integer(); err != nil {
			return nil, err
		}
	}
	for range 3 { // database, server version, pg_dump version
		if _, _, err := a.text(); err != nil {
			return nil, err
		}
	}
	count, err := a.integer()
	if err != nil {
		return nil, err
	}
	if count < 0 || count > archiveEntryMaximum {
		return nil, fmt.Errorf("%w: number of entries", errArchive)
	}
	toc := &archive{}
	for range count {
		e, err := a.entry()
		if err != nil {
			return nil, err
		}
		toc.entries = append(toc.entries, e)
	}
	return toc, nil
}

func (a *archiveReader) entry() (entry, error) {
	var (
		e    entry
		fail error
	)
	integer := func() int {
		if fail != nil {
			return 0
		}
		var n int
		n, fail = a.integer()
		return n
	}
	text := func() string {
		if fail != nil {
			return ""
		}
		var s string
		s, _, fail = a.text()
		return s
	}
	oid := func() uint32 {
		s := text()
		if fail != nil || s == "" {
			return 0
		}
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			fail = fmt.Errorf("%w: object id", errArchive)
		}
		return uint32(n)
	}
	e.id = integer()
	integer() // whether there is data
	e.class = oid()
	e.oid = oid()
	e.tag = text()
	e.desc = text()
	e.section = section(integer())
	e.statement = text()
	text() // DROP statement
	text() // COPY statement
	e.namespace = text()
	text() // tablespace
	e.method = text()
	if a.minor >= 16 {
		e.relkind = byte(integer())
	}
	text() // owner
	text() // WITH OIDS
	for fail == nil {
		s, some, err := a.text()
		if err != nil {
			fail = err
			break
		}
		if !some {
			break
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			fail = fmt.Errorf("%w: dependency", errArchive)
			break
		}
		e.needs = append(e.needs, n)
	}
	if fail == nil { // state and offset of data
		_, fail = a.in.Discard(1 + a.offBytes)
	}
	return e, fail
}

// integer reads a sign byte and little-endian digits.
func (a *archiveReader) integer() (int, error) {
	var raw [9]byte
	if _, err := io.ReadFull(a.in, raw[:1+a.intBytes]); err != nil {
		return 0, err
	}
	var n uint64
	for i := a.intBytes; i >= 1; i-- {
		n = n<<8 | uint64(raw[i])
	}
	if n > 1<<31 {
		return 0, fmt.Errorf("%w: number", errArchive)
	}
	if raw[0] != 0 {
		return -int(n), nil
	}
	return int(n), nil
}

// text reads a string; false means there is none.
func (a *archiveReader) text() (string, bool, error) {
	n, err := a.integer()
	if err != nil || n < 0 {
		return "", false, err
	}
	if n > archiveTextMaximum {
		return "", false, fmt.Errorf("%w: length of a text", errArchive)
	}
	// Grow with what really comes: a forged length costs nothing.
	var out []byte
	for len(out) < n {
		part := make([]byte, min(n-len(out), 1<<20))
		if _, err := io.ReadFull(a.in, part); err != nil {
			return "", false, err
		}
		if len(out) == 0 && len(part) == n {
			return string(part), true, nil
		}
		out = append(out, part...)
	}
	return string(out), true, nil
}
