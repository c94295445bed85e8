package worker

import (
	"context"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
)

// Exit codes of the worker process.
const (
	ExitEnded  = 0 // its stdin ended or it was told to end
	ExitBroken = 1 // it could not start, or the agent broke the protocol
	ExitStuck  = 2 // an engine did not stop in time
)

// stopTime is how long engines have to stop after the agent has gone. Their
// connections are cut at the same time, so little can keep them.
const stopTime = 3 * time.Second

// Serve is the whole life of the worker process: it answers the agent on stdin
// and stdout until stdin ends, ctx is done or SIGTERM arrives, then stops
// everything and returns the exit code, at most 3 s later; a process that is
// still there after that is ended. It belongs in a process of its own, whose
// core dumps it turns off.
func Serve(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, engines []engine.Engine) int {
	redact := newRedactor(stderr)
	log := newLog(redact)
	if err := harden(); err != nil {
		log.Error("process cannot be hardened", "error", err)
		return ExitBroken
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	if os.Getpid() == 1 {
		defer reapOrphans(ctx, log)()
	}
	// A stuck engine must not keep the process: neither this function's caller
	// nor a deferred call is waited for.
	stopping := func() {
		time.AfterFunc(stopTime+time.Second/2, func() { os.Exit(ExitStuck) })
	}
	return serveAt(ctx, sandbox.SocketDir, stdin, stdout, redact, log, engines, stopping)
}

// ServeAt is [Serve] without what concerns the whole process: signals, children,
// core dumps and the hard end. Its sockets are in socketDir. It is what a fake
// sandbox runs.
func ServeAt(ctx context.Context, socketDir string, stdin io.Reader, stdout, stderr io.Writer, engines []engine.Engine) int {
	redact := newRedactor(stderr)
	return serveAt(ctx, socketDir, stdin, stdout, redact, newLog(redact), engines, func() {})
}

func newLog(redact *redactor) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "worker", Output: redact, JSONFormat: true, Level: hclog.Info})
}

func serveAt(ctx context.Context, socketDir string, stdin io.Reader, stdout io.Writer, redact *redactor, log hclog.Logger,
	engines []engine.Engine, stopping func(),
) int {
	s := newServer(serverConfig{
		out: stdout, redact: redact, log: log, engines: engines,
		socketDir: socketDir, tempDir: os.TempDir(), stopTime: stopTime,
	})
	s.onStop = stopping
	return s.serve(ctx, stdin)
}
