package auditlog

import (
	"bufio"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	// readBytes are for each file, twice for a compressed one: all of them are open at
	// once, and a year of rotated files is many.
	readBytes = 64 << 10
	// maxLineBytes bounds the memory for one entry. The largest we write is a batch
	// of 512 KiB, escaped twice.
	maxLineBytes = 16 << 20
)

// Input is one file to read.
type Input struct {
	Name string // as findings call it
	Open func() (io.ReadCloser, error)
}

// File is an input from disk; "-" is standard input.
func File(path string, stdin io.Reader) Input {
	if path == "-" {
		return Input{Name: "stdin", Open: func() (io.ReadCloser, error) { return piped(stdin), nil }}
	}
	return Input{Name: path, Open: func() (io.ReadCloser, error) { return os.Open(path) }}
}

// piped makes closing end a read, as it does not for a program's standard input. The
// read itself goes on until something comes, or the program ends.
func piped(from io.Reader) io.ReadCloser {
	to, in := io.Pipe()
	go func() {
		_, err := io.Copy(in, from)
		_ = in.CloseWithError(err) // never fails; nil is the end
	}()
	return to
}

// FileFacts is what was read of one input.
type FileFacts struct {
	Name    string `json:"name"`
	Lines   int64  `json:"lines"`
	Entries int64  `json:"entries"` // that hold events or facts
	// Last is the time of the last of those.
	Last time.Time `json:"last,omitzero"`
}

// damage is a line that mentions us and cannot be read, or the rest of a file that
// cannot.
type damage struct {
	place Place
	why   string
	rest  bool
}

// source yields the entries of one input that speak of us, in the file's order.
type source struct {
	facts   FileFacts
	closers []io.Closer
	lines   *bufio.Reader
	zipped  bool
	long    *[]byte // where a long line is put together; of all sources, one reads at a time
	next    *entry  // read, not taken yet; nil at the end
	damaged func(damage)
}

// openSource opens an input, uncompressed or gzip. The end of ctx closes it: a pipe may
// have nothing to say for as long as it likes.
func openSource(ctx context.Context, in Input, long *[]byte, damaged func(damage)) (*source, error) {
	file, err := in.Open()
	if err != nil {
		return nil, unreadable(in.Name, err)
	}
	stay := context.AfterFunc(ctx, func() { _ = file.Close() }) // whoever reads is told why
	s := &source{facts: FileFacts{Name: in.Name}, closers: []io.Closer{closer(func() error {
		if !stay() {
			return nil // closed already
		}
		return file.Close()
	})}, lines: bufio.NewReaderSize(file, readBytes), long: long, damaged: damaged}
	if magic, err := s.lines.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		s.zipped = true
		unzip, err := gzip.NewReader(s.lines)
		switch {
		case ctx.Err() != nil:
			return nil, errors.Join(context.Cause(ctx), s.close())
		case s.broken(err):
			return s, nil
		case err != nil:
			return nil, errors.Join(unreadable(in.Name, err), s.close())
		}
		s.closers = append(s.closers, unzip)
		s.lines = bufio.NewReaderSize(unzip, readBytes)
	}
	return s, nil
}

type closer func() error

func (f closer) Close() error { return f() }

// broken reports whether err says that a compressed file was cut short or altered. It
// tells of it and ends the source: what was read before counts, and so do other files.
func (s *source) broken(err error) bool {
	var corrupt flate.CorruptInputError
	early := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if !s.zipped || !early && !errors.Is(err, gzip.ErrHeader) && !errors.Is(err, gzip.ErrChecksum) && !errors.As(err, &corrupt) {
		return false
	}
	s.damaged(damage{
		place: Place{File: s.facts.Name, Line: s.facts.Lines + 1}, rest: true,
		why: fmt.Sprintf("from here on the compressed file cannot be read, it was cut short or altered: %v", err),
	})
	s.lines.Reset(bytes.NewReader(nil))
	s.closers = s.closers[:1] // closing what unpacks it would tell the same once more
	return true
}

func unreadable(name string, err error) error {
	return &wire.Error{Code: wire.CodeConfig, Reason: fmt.Sprintf("read audit file %s: %v", name, err), Hint: "check the path and the rights to it"}
}

func (s *source) close() error {
	var all error
	for i := len(s.closers) - 1; i >= 0; i-- {
		all = errors.Join(all, s.closers[i].Close())
	}
	return all
}

// advance reads up to the next entry that speaks of us.
func (s *source) advance(ctx context.Context) error {
	s.next = nil
	for {
		line, whole, err := s.readLine()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if s.broken(err) {
			return nil
		}
		if err != nil {
			return unreadable(s.facts.Name, err)
		}
		if s.facts.Lines%4096 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !speaksOfUs(line) {
			continue
		}
		place := Place{File: s.facts.Name, Line: s.facts.Lines}
		if !whole {
			s.damaged(damage{place: place, why: fmt.Sprintf("the line is longer than %d bytes", maxLineBytes)})
			continue
		}
		e, err := decodeEntry(line)
		if err != nil {
			s.damaged(damage{place: place, why: "the line is no entry of an audit device: it was cut short or altered"})
			continue
		}
		place.Time = e.Time
		e.place = place
		s.facts.Entries++
		s.facts.Last = e.Time
		s.next = e
		return nil
	}
}

// readLine returns the next line; of one that is too long, only its beginning. The
// line is valid until the next call for any source.
func (s *source) readLine() (line []byte, whole bool, err error) {
	part, err := s.lines.ReadSlice('\n')
	if err == nil {
		s.facts.Lines++
		return part, true, nil
	}
	long := append((*s.long)[:0], part...)
	defer func() { *s.long = long }()
	whole = true
	for errors.Is(err, bufio.ErrBufferFull) {
		part, err = s.lines.ReadSlice('\n')
		if len(long)+len(part) > maxLineBytes {
			whole = false
			continue
		}
		long = append(long, part...)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err //nolint:wrapcheck // the caller names the file
	}
	if err != nil && len(bytes.TrimSpace(long)) == 0 {
		return nil, false, io.EOF
	}
	s.facts.Lines++
	return long, whole, nil
}

// read merges inputs by the time of their entries and calls take for each entry
// that speaks of us. Entries of one input keep their order.
func read(ctx context.Context, inputs []Input, damaged func(damage), take func(*entry)) (facts []FileFacts, err error) {
	sources := make([]*source, 0, len(inputs))
	defer func() {
		for _, s := range sources {
			err = errors.Join(err, s.close())
		}
	}()
	var long []byte
	for _, in := range inputs {
		s, err := openSource(ctx, in, &long, damaged)
		if err != nil {
			return nil, err
		}
		sources = append(sources, s)
		if err := s.advance(ctx); err != nil {
			return nil, err
		}
	}
	for {
		var first *source
		for _, s := range sources {
			if s.next != nil && (first == nil || s.next.Time.Before(first.next.Time)) {
				first = s
			}
		}
		if first == nil {
			break
		}
		take(first.next)
		if err := first.advance(ctx); err != nil {
			return nil, err
		}
	}
	for _, s := range sources {
		facts = append(facts, s.facts)
	}
	return facts, nil
}
