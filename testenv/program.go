package testenv

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
)

// Run calls f with a [TB] for programs that are no tests, waits for it, and
// calls its clean-ups. It returns the exit status: 0 if f returned, 1 after
// Fatalf, 130 when SIGINT or SIGTERM arrived. A signal runs the clean-ups at
// once and does not wait for f, so f must not own anything it has not
// registered. Messages go to w.
func Run(w io.Writer, f func(t TB)) int {
	p := &program{w: w}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	done := make(chan int, 1)
	go func() {
		code := 1
		// Fatalf leaves by Goexit, so only a normal return sets 0. A panic is
		// left to the runtime: it ends the process with its trace.
		defer func() { done <- code }()
		f(p)
		code = 0
	}()

	code := 130
	select {
	case code = <-done:
	case s := <-signals:
		p.Logf("%s: cleaning up", s)
	}
	p.cleanUp()
	return code
}

type program struct {
	w io.Writer

	mu       sync.Mutex
	cleanups []func()
}

var _ TB = (*program)(nil)

func (p *program) Helper() {}

func (p *program) Logf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *program) Fatalf(format string, args ...any) {
	p.Logf(format, args...)
	runtime.Goexit()
}

func (p *program) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = append(p.cleanups, f)
}

func (p *program) TempDir() string {
	dir, err := runDir("tmp")
	if err != nil {
		p.Fatalf("make temporary directory: %v", err)
	}
	p.Cleanup(func() { removeAll(p, dir) })
	return dir
}

// cleanUp calls the clean-ups last first. One that itself calls Fatalf ends its
// own goroutine only, so the others still run.
func (p *program) cleanUp() {
	for {
		p.mu.Lock()
		if len(p.cleanups) == 0 {
			p.mu.Unlock()
			return
		}
		f := p.cleanups[len(p.cleanups)-1]
		p.cleanups = p.cleanups[:len(p.cleanups)-1]
		p.mu.Unlock()
		done := make(chan struct{})
		go func() {
			defer close(done)
			f()
		}()
		<-done
	}
}
