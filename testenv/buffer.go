package testenv

import (
	"bytes"
	"sync"
)

// Buffer holds what is written to it, such as a log of work in the background that a
// test reads meanwhile.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write takes p.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String is all that was written.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Reset forgets it.
func (b *Buffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Reset()
}
