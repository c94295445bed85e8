package auditlog

import (
	"bufio"
	"bytes"
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
	readBytes = 1 << 20
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
		return Input{Name: "stdin", Open: func() (io.ReadCloser, error) { return io.NopCloser(stdin), nil }}
	}
	return Input{Name: path, Open: func() (io.ReadCloser, error) { return os.Open(path) }}
}

// FileFacts is what was read of one input.
type FileFacts struct {
	Name    string `json:"name"`
	Lines   int64  `json:"lines"`
	Entries int64  `json:"entries"` // that hold events or facts
	// Last is the time of the last of those.
	Last time.Time `json:"last,omitzero"`
}

// damage is a line that mentions us and cannot be read.
type damage struct {
	place Place
	why   string
}

// source yields the entries of one input that speak of us, in the file's order.
type source struct {
	facts   FileFacts
	closers []io.Closer
	lines   *bufio.Reader
	buffer  []byte
	next    *entry // read, not taken yet; nil at the end
	damaged func(damage)
}

// openSource opens an input, uncompressed or gzip, and reads its first entry.
func openSource(in Input, damaged func(damage)) (*source, error) {
	file, err := in.Open()
	if err != nil {
		return nil, unreadable(in.Name, err)
	}
	s := &source{facts: FileFacts{Name: in.Name}, closers: []io.Closer{file}, lines: bufio.NewReaderSize(file, readBytes), damaged: damaged}
	if magic, err := s.lines.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		unzip, err := gzip.NewReader(s.lines)
		if err != nil {
			return nil, errors.Join(unreadable(in.Name, err), s.close())
		}
		s.closers = append(s.closers, unzip)
		s.lines = bufio.NewReaderSize(unzip, readBytes)
	}
	return s, nil
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
			s.damaged(damage{place, fmt.Sprintf("the line is longer than %d bytes", maxLineBytes)})
			continue
		}
		e, err := decodeEntry(line)
		if err != nil {
			s.damaged(damage{place, "the line is no entry of an audit device: it was cut short or altered"})
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
// line is valid until the next call.
func (s *source) readLine() (line []byte, whole bool, err error) {
	part, err := s.lines.ReadSlice('\n')
	if err == nil {
		s.facts.Lines++
		return part, true, nil
	}
	s.buffer = append(s.buffer[:0], part...)
	whole = true
	for errors.Is(err, bufio.ErrBufferFull) {
		part, err = s.lines.ReadSlice('\n')
		if len(s.buffer)+len(part) > maxLineBytes {
			whole = false
			continue
		}
		s.buffer = append(s.buffer, part...)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err //nolint:wrapcheck // the caller names the file
	}
	if err != nil && len(bytes.TrimSpace(s.buffer)) == 0 {
		return nil, false, io.EOF
	}
	s.facts.Lines++
	return s.buffer, whole, nil
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
	for _, in := range inputs {
		s, err := openSource(in, damaged)
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
