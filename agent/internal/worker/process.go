package worker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// harden keeps the process's memory, and with it the passwords, off the disk and
// out of reach of other processes of its user.
func harden() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make process not dumpable: %w", err)
	}
	return nil
}

// reapOrphans collects processes whose parent, a client tool, died before them:
// as pid 1 they are ours, and each keeps a place within the sandbox's limit of
// processes. Children we started ourselves belong to whoever waits for them. The
// returned function stops it.
func reapOrphans(ctx context.Context, log hclog.Logger) (stop func()) {
	if !pidfdsWork() {
		return func() {} // no way to tell the two kinds apart
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case <-ended:
				reap(log)
			}
		}
	}()
	return func() {
		signal.Stop(ended)
		cancel()
		<-done
	}
}

// pidfdsWork reports whether os/exec holds a pidfd for each child it started,
// as it does where the kernel (5.4) and the seccomp profile let it.
func pidfdsWork() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	// We are not our own child: ECHILD shows that waitid takes pidfds.
	err = unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED, nil)
	return errors.Is(errors.Join(unix.Close(fd), err), unix.ECHILD)
}

// reap waits for every ended child without a pidfd of ours.
func reap(log hclog.Logger) {
	ended, err := endedChildren()
	if err != nil {
		log.Warn("processes cannot be listed", "error", err)
		return
	}
	if len(ended) == 0 {
		return
	}
	ours, err := heldPidfds()
	if err != nil {
		log.Warn("pidfds cannot be listed", "error", err)
		return
	}
	for _, pid := range ended {
		if ours[pid] {
			continue
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil && !errors.Is(err, unix.ECHILD) {
			log.Warn("process cannot be reaped", "pid", pid, "error", err)
		}
	}
}

// endedChildren lists our children in state Z.
func endedChildren() ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	self := strconv.Itoa(os.Getpid())
	var pids []int
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // gone in the meantime
		}
		// The name, in brackets, may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[0] != "Z" || fields[1] != self {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// heldPidfds tells which processes this one has a pidfd of.
func heldPidfds() (map[int]bool, error) {
	const dir = "/proc/self/fdinfo"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	held := make(map[int]bool)
	for _, entry := range entries {
		info, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // closed in the meantime
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(bytes.NewReader(info))
		for lines.Scan() {
			if value, ok := strings.CutPrefix(lines.Text(), "Pid:"); ok {
				if pid, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
					held[pid] = true
				}
			}
		}
	}
	return held, nil
}
