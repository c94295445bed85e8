package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// The floor: the largest table, moved as raw protocol messages between two
// hijacked connections on the host, without sandbox, forwarder, keys or checks.
const (
	floorTable = "pgbench_accounts"
	floorBatch = 256 << 10
)

// copyOut reads the table and throws it away.
func (p *peers) copyOut() time.Duration {
	began := time.Now()
	source := p.hijack(p.source.Connect(stack.Database))
	defer p.close(source)
	p.must(sendQuery(source, "copy "+floorTable+" to stdout (format binary)"))
	p.must(relayCopy(source, io.Discard))
	return time.Since(began)
}

// copyOutIn writes it into an empty table of the peers' database.
func (p *peers) copyOutIn() time.Duration {
	p.target.Exec("postgres", "DROP DATABASE IF EXISTS "+peerDatabase+" WITH (FORCE)")
	p.target.CreateDatabase(peerDatabase)
	p.target.Exec(peerDatabase, "create table "+floorTable+" (aid integer not null, bid integer, abalance integer, filler character(84))")
	began := time.Now()
	source, target := p.hijack(p.source.Connect(stack.Database)), p.hijack(p.target.Connect(peerDatabase))
	defer p.close(source)
	defer p.close(target)
	p.must(sendQuery(target, "begin; truncate "+floorTable+"; copy "+floorTable+" from stdin (format binary, freeze)"))
	p.must(awaitMessage(target, 'G'))
	p.must(sendQuery(source, "copy "+floorTable+" to stdout (format binary)"))

	batches, free := make(chan []byte, 8), make(chan []byte, 8)
	for range cap(free) {
		free <- make([]byte, 0, floorBatch)
	}
	written := make(chan error, 1)
	go func() {
		var err error
		for batch := range batches {
			if err == nil {
				_, err = target.Write(batch)
			}
			free <- batch
		}
		written <- err
	}()
	err := relayCopy(source, writerFunc(func(b []byte) (int, error) {
		batches <- append((<-free)[:0], b...)
		return len(b), nil
	}))
	close(batches)
	p.must(err)
	p.must(<-written)
	_, err = target.Write([]byte{'c', 0, 0, 0, 4})
	p.must(err)
	p.must(awaitMessage(target, 'Z'))
	p.must(sendQuery(target, "commit"))
	p.must(awaitMessage(target, 'Z'))
	return time.Since(began)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func (p *peers) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("floor: %v", err)
	}
}

func (p *peers) close(conn net.Conn) {
	if err := conn.Close(); err != nil {
		p.t.Logf("close: %v", err)
	}
}

func (p *peers) hijack(conn *pgx.Conn) net.Conn {
	p.t.Helper()
	hijacked, err := conn.PgConn().Hijack()
	p.must(err)
	return hijacked.Conn
}

func sendQuery(conn net.Conn, sql string) error {
	message := append([]byte{'Q', 0, 0, 0, 0}, sql...)
	message = append(message, 0)
	binary.BigEndian.PutUint32(message[1:], uint32(len(message)-1))
	_, err := conn.Write(message)
	return err
}

// awaitMessage reads until a message of that type.
func awaitMessage(conn net.Conn, kind byte) error {
	header := make([]byte, 5)
	for {
		if _, err := io.ReadFull(conn, header); err != nil {
			return err
		}
		body := make([]byte, binary.BigEndian.Uint32(header[1:])-4)
		if _, err := io.ReadFull(conn, body); err != nil {
			return err
		}
		switch header[0] {
		case kind:
			return nil
		case 'E':
			return fmt.Errorf("server error: %q", body)
		}
	}
}

// relayCopy writes all CopyData messages of conn, whole, to w, until the server is
// ready for a query.
func relayCopy(conn net.Conn, w io.Writer) error {
	buffer := make([]byte, floorBatch)
	filled := 0
	for {
		n, err := conn.Read(buffer[filled:])
		if err != nil {
			return err
		}
		filled += n
		at, first, last, ready := 0, -1, 0, false
		for filled-at >= 5 {
			size := int(binary.BigEndian.Uint32(buffer[at+1:])) + 1
			if filled-at < size {
				break
			}
			switch buffer[at] {
			case 'd':
				if first < 0 {
					first = at
				}
				last = at + size
			case 'Z':
				ready = true
			case 'E':
				return fmt.Errorf("server error: %q", buffer[at:at+size])
			}
			at += size
		}
		if first >= 0 {
			if _, err := w.Write(buffer[first:last]); err != nil {
				return err
			}
		}
		filled = copy(buffer, buffer[at:filled])
		if ready {
			return nil
		}
	}
}
