package testenv

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// AgentProcess is a running dbops-agent.
type AgentProcess struct {
	// LogFile collects what it writes to stdout and stderr, over all its starts.
	LogFile string

	t       TB
	argv    []string
	env     []string
	process *process
}

// StartAgent starts the agent's program with a configuration file and an
// environment added to a bare one. It ends when the test ends.
func StartAgent(t TB, binary, config string, env ...string) *AgentProcess {
	t.Helper()
	a := &AgentProcess{
		t: t, LogFile: filepath.Join(t.TempDir(), "agent.log"), argv: []string{binary, "-config", config},
		env: append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...),
	}
	a.Start()
	t.Cleanup(func() {
		a.Stop(20 * time.Second)
		if failed(t) {
			t.Logf("log of the agent:\n%s", lastLines(a.Log(), 80))
		}
	})
	return a
}

// Start starts it, again after it has ended. Further environment holds for this
// start only.
func (a *AgentProcess) Start(env ...string) {
	a.t.Helper()
	p, err := startProcess(a.LogFile, append(append([]string{}, a.env...), env...), a.argv...)
	if err != nil {
		a.t.Fatalf("start agent: %v", err)
	}
	a.process = p
}

// Kill ends it with SIGKILL.
func (a *AgentProcess) Kill() { a.process.kill() }

// Stop asks it to end and kills it after the patience given.
func (a *AgentProcess) Stop(patience time.Duration) { a.process.stop(patience) }

// PID is its process id.
func (a *AgentProcess) PID() int { return a.process.pid() }

// AwaitEnd waits until the process has ended by itself.
func (a *AgentProcess) AwaitEnd(patience time.Duration) bool {
	select {
	case <-a.process.done:
		return true
	case <-time.After(patience):
		return false
	}
}

// Log is what it has written so far.
func (a *AgentProcess) Log() string {
	content, err := os.ReadFile(a.LogFile)
	if err != nil {
		return ""
	}
	return string(content)
}

// ResidentMiB is the resident memory of a process, in MiB; 0 if there is none.
func ResidentMiB(pid int) float64 {
	content, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(content)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err == nil {
				return kib / 1024
			}
		}
	}
	return 0
}

// Await repeats f until it answers nil, and fails the test with its last error
// after the patience given.
func Await(t TB, what string, patience time.Duration, f func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := poll(ctx, func(context.Context) error { return f() }); err != nil {
		t.Fatalf("wait for %s: %v", what, err)
	}
}

var faultAgent = sync.OnceValues(func() (string, error) {
	return buildBinary("dbops-agent", "dbops-agent-fault", "-tags", "dbopsfault")
})

// FaultAgent returns the path of an agent built with the fault points that tests
// kill it at. The shipped one has none.
func FaultAgent(t TB) string {
	t.Helper()
	path, err := faultAgent()
	if err != nil {
		t.Fatalf("build dbops-agent with faults: %v", err)
	}
	return path
}
