package gateway

import (
	"net"
	"sync"
	"sync/atomic"
)

// Sizes of the copy buffers. A connection starts with small ones and takes a
// large one for a direction once that carries bulk data: most do not.
const (
	smallBuffer = 16 << 10
	largeBuffer = 256 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// Relay copies between a and b, both ways, until both directions have ended. The
// end of one direction is passed on as a half-close. Closing either connection
// ends it.
func Relay(a, b net.Conn) {
	relay(a, b, &flow{}, &flow{})
}

// flow counts the bytes of one direction, of all connections of a socket.
type flow struct {
	bytes atomic.Int64
	limit int64  // 0: none
	over  func() // called when the limit is passed
}

// allow counts n bytes that are about to be forwarded.
func (f *flow) allow(n int) bool {
	total := f.bytes.Add(int64(n))
	if f.limit == 0 || total <= f.limit {
		return true
	}
	f.over()
	return false
}

func relay(a, b net.Conn, fromA, fromB *flow) {
	var both sync.WaitGroup
	both.Go(func() { copyAll(b, a, fromA) })
	both.Go(func() { copyAll(a, b, fromB) })
	both.Wait()
}

// copyAll copies until from ends or either side fails. Why does not matter here:
// the database and the worker each see their connection end.
func copyAll(to, from net.Conn, f *flow) {
	buffer := make([]byte, smallBuffer)
	var large *[largeBuffer]byte
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	reader := newBulkReader(from)
	for {
		n, err := reader.Read(buffer)
		if n > 0 {
			if !f.allow(n) {
				return
			}
			if _, writeErr := to.Write(buffer[:n]); writeErr != nil {
				// Nobody will read what from still sends.
				closeRead(from)
				closeWrite(to)
				return
			}
			if n == len(buffer) && large == nil {
				if pooled, ok := largeBuffers.Get().(*[largeBuffer]byte); ok {
					large, buffer = pooled, pooled[:]
				}
			}
		}
		if err != nil {
			closeWrite(to)
			return
		}
	}
}

// closeWrite passes an end on. It fails only on a connection that has ended
// already.
func closeWrite(conn net.Conn) {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

func closeRead(conn net.Conn) {
	if half, ok := conn.(interface{ CloseRead() error }); ok {
		_ = half.CloseRead()
	}
}
