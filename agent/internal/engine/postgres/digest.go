package postgres

import (
	"bytes"
	"encoding/hex"
	"math/bits"

	"github.com/zeebo/xxh3"
)

// tally is what is known of a stream of rows: their number, their bytes and the
// sum modulo 2^128 of their hashes, which does not depend on their order.
type tally struct {
	rows, bytes int64
	hi, lo      uint64
}

func (t *tally) add(h xxh3.Uint128, size int) {
	var carry uint64
	t.lo, carry = bits.Add64(t.lo, h.Lo, 0)
	t.hi, _ = bits.Add64(t.hi, h.Hi, carry)
	t.rows++
	t.bytes += int64(size)
}

func (t *tally) merge(o tally) {
	var carry uint64
	t.lo, carry = bits.Add64(t.lo, o.lo, 0)
	t.hi, _ = bits.Add64(t.hi, o.hi, carry)
	t.rows += o.rows
	t.bytes += o.bytes
}

// hex returns the digest in 32 hex digits.
func (t *tally) hex() string {
	var b [16]byte
	for i := range 8 {
		b[i] = byte(t.hi >> (56 - 8*i))
		b[8+i] = byte(t.lo >> (56 - 8*i))
	}
	return hex.EncodeToString(b[:])
}

// Format is how COPY writes rows.
type format string

const (
	formatText   format = "text"
	formatBinary format = "binary"
)

const binaryHeaderBytes = 19 // signature 11, flags 4, extension length 4

var binaryTrailer = []byte{0xff, 0xff}

// rowHasher turns the bodies of CopyData messages into a tally. A body comes
// whole, or in fragments when it does not fit a buffer; nothing is kept of it.
//
// The server sends one message for each row. In binary format the file header
// stands before the first row in its message and the trailer comes as a last
// message: neither is a row, and hashing them would tie the digest to the order.
type rowHasher struct {
	tally
	format  format
	started bool // the header has been seen
	skip    int  // bytes of the header still to pass over in fragments
	stream  *xxh3.Hasher128
	size    int // bytes of the row in fragments so far
	head    [2]byte
}

func newRowHasher(f format) *rowHasher {
	h := &rowHasher{format: f, stream: xxh3.New128()}
	if f == formatBinary {
		h.skip = binaryHeaderBytes
	} else {
		h.started = true
	}
	return h
}

func (h *rowHasher) whole(body []byte) {
	if !h.started {
		h.started = true
		cut := min(h.skip, len(body))
		h.skip = 0
		body = body[cut:]
		if len(body) == 0 {
			return
		}
	}
	if h.format == formatBinary && len(body) == 2 && bytes.Equal(body, binaryTrailer) {
		return
	}
	h.add(xxh3.Hash128(body), len(body))
}

func (h *rowHasher) fragment(part []byte) {
	if h.skip > 0 {
		cut := min(h.skip, len(part))
		h.skip -= cut
		part = part[cut:]
	}
	for i := h.size; i < 2 && i-h.size < len(part); i++ {
		h.head[i] = part[i-h.size]
	}
	h.size += len(part)
	// A Hasher128 never fails to write.
	_, _ = h.stream.Write(part)
}

func (h *rowHasher) endFragments() {
	size := h.size
	first := !h.started
	h.started, h.skip, h.size = true, 0, 0
	trailer := h.format == formatBinary && size == 2 && bytes.Equal(h.head[:], binaryTrailer)
	if !trailer && (size > 0 || !first) {
		h.add(h.stream.Sum128(), size)
	}
	h.stream.Reset()
}
