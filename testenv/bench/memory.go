package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// memory is peak resident memory in MiB.
type memory struct{ agent, worker float64 }

// watch samples it until stopped.
type watch struct {
	quit chan struct{}
	peak chan memory
}

// watchMemory looks ten times a second at the agent and at every worker, wherever
// it runs: a process in a container is one of the host's.
func watchMemory(agent int) *watch {
	w := &watch{quit: make(chan struct{}), peak: make(chan memory)}
	go func() {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		var peak memory
		for {
			select {
			case <-w.quit:
				w.peak <- peak
				return
			case <-ticker.C:
				peak.agent = max(peak.agent, testenv.ResidentMiB(agent))
				for _, pid := range workers() {
					peak.worker = max(peak.worker, testenv.ResidentMiB(pid))
				}
			}
		}
	}()
	return w
}

func (w *watch) stop() memory {
	close(w.quit)
	return <-w.peak
}

// workers are the processes with the worker's command line.
func workers() []int {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	var pids []int
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		argv := bytes.Split(content, []byte{0})
		if len(argv) < 2 || !bytes.Contains(argv[0], []byte("dbops")) || string(argv[1]) != "worker" {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}
