package postgres

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// answerTimeout is how long a target that takes no more rows has to say why.
const answerTimeout = 2 * time.Second

// errRowCount means that a server counted another number of rows than we saw pass.
var errRowCount = errors.New("the server's row count differs from the stream's")

// relayBuffers is how many buffers one relay has: reading and writing overlap,
// and the memory of a job is fixed.
const relayBuffers = 4

// passing is told of what went by since the last call, and may stop the copy.
type passing func(rows, bytes int64) error

// read runs a COPY … TO STDOUT and returns the tally of its rows. When forward
// is not nil it is given each batch, which it must not keep.
func (r *rawSession) read(ctx context.Context, sql string, f format, forward func([]byte) error, buffers *bufferPool, seen passing) (tally, error) {
	defer r.watch(ctx)()
	if err := r.send(sql); err != nil {
		return tally{}, contextError(ctx, err)
	}
	if _, err := r.until('H'); err != nil {
		return tally{}, contextError(ctx, err)
	}
	rows := newRowHasher(f)
	stream := &copyStream{source: r.in, rows: rows}
	var before tally
	for {
		buffer, err := buffers.take(ctx)
		if err != nil {
			return tally{}, err
		}
		n, err := stream.next(buffer)
		if errors.Is(err, io.EOF) && stream.done {
			buffers.give(buffer)
			break
		}
		if err != nil {
			buffers.give(buffer)
			if stream.err != nil {
				return tally{}, &sideError{r.side, stream.err}
			}
			return tally{}, contextError(ctx, &sideError{r.side, err})
		}
		if err := seen(rows.rows-before.rows, rows.bytes-before.bytes); err != nil {
			buffers.give(buffer)
			return tally{}, err
		}
		before = rows.tally
		if forward == nil {
			buffers.give(buffer)
		} else if err := forward(buffer[:n]); err != nil {
			return tally{}, err
		}
	}
	if stream.err != nil {
		return tally{}, &sideError{r.side, stream.err}
	}
	counted, err := copiedRows(stream.tag)
	if err != nil {
		return tally{}, &sideError{r.side, err}
	}
	if counted != rows.rows {
		return tally{}, &sideError{r.side, errRowCount}
	}
	return rows.tally, nil
}

// bufferPool holds a fixed number of buffers, made when first taken.
type bufferPool struct {
	free chan []byte
}

func newBufferPool(n int) *bufferPool {
	p := &bufferPool{free: make(chan []byte, n)}
	for range n {
		p.free <- nil
	}
	return p
}

func (p *bufferPool) take(ctx context.Context) ([]byte, error) {
	select {
	case buffer := <-p.free:
		if buffer == nil {
			buffer = make([]byte, bufferBytes)
		}
		return buffer, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (p *bufferPool) give(buffer []byte) { p.free <- buffer[:cap(buffer)] }

// relay copies the rows of one COPY … TO STDOUT at the source into one COPY …
// FROM STDIN at the target. Reading and writing run at once. On an error both
// sessions must be closed: one may stand in the middle of a message.
//
// Begin opens the target's transaction and starts its COPY; the caller commits.
func relay(ctx context.Context, source, target *rawSession, out, begin string, f format, buffers *bufferPool, seen passing) (tally, error) {
	// Whoever fails first says why; the others fail because of it.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer target.watch(ctx)()
	if err := target.send(begin); err != nil {
		return tally{}, contextError(ctx, err)
	}
	if _, err := target.until('G'); err != nil {
		return tally{}, contextError(ctx, err)
	}

	var (
		workers sync.WaitGroup
		counted int64
	)
	// The target's answer is awaited from the beginning: after an error it
	// swallows the rest of the rows, and writing would never find out.
	workers.Go(func() {
		tag, err := target.until('Z')
		if err == nil {
			counted, err = copiedRows(tag)
		}
		if err != nil {
			cancel(err)
		}
	})
	full := make(chan []byte, relayBuffers)
	workers.Go(func() {
		broken := false
		for batch := range full {
			if !broken && ctx.Err() == nil {
				if _, err := target.conn.Write(batch); err != nil {
					// Why the target hung up is for its answer to say, if it
					// comes at all.
					broken = true
					_ = target.conn.SetReadDeadline(time.Now().Add(answerTimeout))
				}
			}
			buffers.give(batch)
		}
		if !broken && ctx.Err() == nil {
			if _, err := target.conn.Write([]byte{'c', 0, 0, 0, 4}); err != nil {
				_ = target.conn.SetReadDeadline(time.Now().Add(answerTimeout))
			}
		}
	})
	rows, err := source.read(ctx, out, f, func(batch []byte) error {
		select {
		case full <- batch:
			return nil
		case <-ctx.Done():
			buffers.give(batch)
			return context.Cause(ctx)
		}
	}, buffers, seen)
	if err != nil {
		// Before full is closed: a copy that has failed is not to be completed.
		cancel(err)
	}
	close(full)
	workers.Wait()
	switch {
	case context.Cause(ctx) != nil:
		return tally{}, context.Cause(ctx)
	case counted != rows.rows:
		return tally{}, &sideError{target.side, errRowCount}
	}
	return rows, nil
}
