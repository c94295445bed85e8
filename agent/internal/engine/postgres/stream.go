package postgres

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Sizes of the relay's buffers, in bytes. A batch is handed on once it holds
// batchMinimum; a buffer takes what one read brings beyond that.
const (
	bufferBytes    = 256 << 10
	batchMinimum   = 64 << 10
	messageMaximum = 1 << 20 // of messages other than CopyData
)

var errProtocol = errors.New("unexpected message of the server")

// copyStream cuts the server's side of a COPY … TO STDOUT into batches of whole
// or split CopyData messages, to be forwarded byte for byte, and hashes the rows
// in passing. Every other message is taken out.
type copyStream struct {
	source io.Reader
	rows   *rowHasher

	body    int  // bytes left of a CopyData body that is split over buffers
	split   bool // whether such a body is open
	header  [5]byte
	carried int    // bytes of a message header cut off at the end of the last buffer
	other   []byte // a message that is not CopyData, as far as it has come
	want    int    // its whole size, header included; 0: none open

	tag  string       // of CommandComplete
	err  *serverError // of ErrorResponse
	done bool         // ReadyForQuery came
}

// next fills buffer with a batch and returns its length. It returns io.EOF when
// the command has ended and nothing is left; then tag or err say how.
func (s *copyStream) next(buffer []byte) (int, error) {
	filled := 0
	for filled < batchMinimum {
		if s.done {
			if filled > 0 {
				return filled, nil
			}
			return 0, io.EOF
		}
		n := copy(buffer[filled:], s.header[:s.carried])
		s.carried = 0
		read, err := s.source.Read(buffer[filled+n:])
		if read == 0 {
			// Put a cut header back, so that nothing is lost on an empty read.
			s.carried = copy(s.header[:], buffer[filled:filled+n])
			if err == nil {
				continue
			}
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		kept, err := s.scan(buffer[filled : filled+n+read])
		if err != nil {
			return 0, err
		}
		filled += kept
	}
	return filled, nil
}

// scan walks over data, moves what is to be forwarded to its front and returns
// that length.
func (s *copyStream) scan(data []byte) (int, error) {
	at, kept := 0, 0
	start := 0 // of the run of CopyData bytes not yet moved to the front
	flush := func(end int) {
		if start != kept {
			copy(data[kept:], data[start:end])
		}
		kept += end - start
	}
	for at < len(data) {
		switch {
		case s.split:
			part := min(s.body, len(data)-at)
			s.rows.fragment(data[at : at+part])
			at += part
			s.body -= part
			if s.body == 0 {
				s.split = false
				s.rows.endFragments()
			}
			continue
		case s.want > 0:
			part := min(s.want-len(s.other), len(data)-at)
			s.other = append(s.other, data[at:at+part]...)
			at += part
			start = at
			if len(s.other) == s.want {
				s.want = 0
				if err := s.message(s.other[0], s.other[5:]); err != nil {
					return 0, err
				}
			}
			continue
		}
		if len(data)-at < 5 {
			flush(at)
			s.carried = copy(s.header[:], data[at:])
			return kept, nil
		}
		size := int(int32(binary.BigEndian.Uint32(data[at+1:])))
		if size < 4 {
			return 0, errProtocol
		}
		if data[at] != 'd' {
			if size > messageMaximum {
				return 0, errProtocol
			}
			flush(at)
			s.other, s.want, start = s.other[:0], size+1, at
			continue
		}
		body := size - 4
		at += 5
		if body <= len(data)-at {
			s.rows.whole(data[at : at+body])
			at += body
			continue
		}
		s.body, s.split = body, true
	}
	flush(at)
	return kept, nil
}

func (s *copyStream) message(kind byte, body []byte) error {
	switch kind {
	case 'c', 'N', 'S', 'A': // CopyDone, NoticeResponse, ParameterStatus, NotificationResponse
	case 'C':
		s.tag = cString(body)
	case 'E':
		s.err = parseServerError(body)
	case 'Z':
		s.done = true
	default:
		return fmt.Errorf("%w: %q", errProtocol, kind)
	}
	return nil
}

// cString returns the bytes up to the first NUL.
func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
