package postgres

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// rawSession is a session taken over from pgx after the login, to relay COPY
// data without decoding it. It knows the simple query protocol only. It is for
// one goroutine; a failed one is closed, never mended.
type rawSession struct {
	side wire.Side
	conn net.Conn
	in   *bufio.Reader
}

// openRaw starts a session and takes over its connection.
func (s *server) openRaw(ctx context.Context, database string) (*rawSession, error) {
	conn, err := s.open(ctx, database)
	if err != nil {
		return nil, err
	}
	// pgx may be reading in the background after a slow write: SyncConn ends
	// that, or the first bytes would be lost.
	if err := conn.PgConn().SyncConn(ctx); err != nil {
		return nil, errors.Join(err, closeSession(conn))
	}
	taken, err := conn.PgConn().Hijack()
	if err != nil {
		return nil, errors.Join(err, closeSession(conn))
	}
	return &rawSession{side: s.side, conn: taken.Conn, in: bufio.NewReaderSize(taken.Conn, 4<<10)}, nil
}

// watch makes every read and write fail once ctx ends, until the returned
// function is called.
func (r *rawSession) watch(ctx context.Context) (stop func()) {
	ended := context.AfterFunc(ctx, func() {
		// A deadline that cannot be set belongs to a closed connection.
		_ = r.conn.SetDeadline(time.Unix(1, 0))
	})
	return func() { ended() }
}

func (r *rawSession) close() error { return r.conn.Close() }

// send starts a simple query.
func (r *rawSession) send(sql string) error {
	message := make([]byte, 0, len(sql)+6)
	message = append(message, 'Q')
	message = binary.BigEndian.AppendUint32(message, uint32(len(sql)+5))
	message = append(message, sql...)
	message = append(message, 0)
	if _, err := r.conn.Write(message); err != nil {
		return &sideError{r.side, err}
	}
	return nil
}

// receive reads the next message that is not a notice.
func (r *rawSession) receive() (byte, []byte, error) {
	for {
		var header [5]byte
		if _, err := io.ReadFull(r.in, header[:]); err != nil {
			return 0, nil, &sideError{r.side, err}
		}
		size := int(int32(binary.BigEndian.Uint32(header[1:])))
		if size < 4 || size > messageMaximum {
			return 0, nil, &sideError{r.side, errProtocol}
		}
		body := make([]byte, size-4)
		if _, err := io.ReadFull(r.in, body); err != nil {
			return 0, nil, &sideError{r.side, err}
		}
		switch header[0] {
		case 'N', 'S', 'A':
		default:
			return header[0], body, nil
		}
	}
}

// until reads on to a message of the given kind, or to the end of the command,
// which is an error unless kind is 'Z'. It returns the last command tag.
func (r *rawSession) until(kind byte) (string, error) {
	var (
		tag     string
		refused *serverError
	)
	for {
		got, body, err := r.receive()
		if err != nil {
			if refused != nil { // the server closed after saying why
				return "", &sideError{r.side, refused}
			}
			return "", err
		}
		switch got {
		case 'C':
			tag = cString(body)
		case 'E':
			refused = parseServerError(body)
		}
		switch {
		case got == 'Z' && refused != nil:
			return "", &sideError{r.side, refused}
		case got == kind:
			return tag, nil
		case got == 'Z':
			return "", &sideError{r.side, errProtocol}
		}
	}
}

// exec runs statements.
func (r *rawSession) exec(ctx context.Context, sql string) error {
	defer r.watch(ctx)()
	if err := r.send(sql); err != nil {
		return contextError(ctx, err)
	}
	_, err := r.until('Z')
	return contextError(ctx, err)
}

// contextError returns the context's cause when that is why err came about.
func contextError(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// copiedRows reads n of a command tag "COPY n".
func copiedRows(tag string) (int64, error) {
	text, ok := strings.CutPrefix(tag, "COPY ")
	if !ok {
		return 0, fmt.Errorf("%w: command tag", errProtocol)
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%w: command tag", errProtocol)
	}
	return n, nil
}
