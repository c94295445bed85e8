package testenv

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// dirPrefix starts the name of every directory made outside t.TempDir.
const dirPrefix = "dbops-testenv-"

// runID names this process as the owner of what it makes:
// <boot>-<pid namespace>-<pid>-<start time>-<random>. Its first four parts let
// another run decide whether the owner is still alive.
var runID = sync.OnceValue(func() string {
	suffix := make([]byte, 4)
	if _, err := rand.Read(suffix); err != nil {
		panic(err) // crypto/rand does not fail on Linux
	}
	return fmt.Sprintf("%s-%d-%s-%x", hostID(), os.Getpid(), startTime(os.Getpid()), suffix)
})

// hostID tells boots and pid namespaces apart: process ids mean something only
// within one of each.
var hostID = sync.OnceValue(func() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		boot = []byte("unknown")
	}
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		namespace = "unknown"
	}
	first, _, _ := strings.Cut(strings.TrimSpace(string(boot)), "-")
	return first + "-" + strings.Trim(strings.TrimPrefix(namespace, "pid:"), "[]")
})

// startTime is the time pid was started, in clock ticks since boot, or "" if
// there is no such process. It tells a process from a later one of the same pid.
func startTime(pid int) string {
	return statField(pid, 22)
}

// parent is the process id of pid's parent, or 0.
func parent(pid int) int {
	ppid, err := strconv.Atoi(statField(pid, 4))
	if err != nil {
		return 0
	}
	return ppid
}

// statField is a field of /proc/<pid>/stat, counted from 1 as in proc(5); only
// those after the program's name can be had.
func statField(pid, field int) string {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return ""
	}
	// The second field, the program's name, may hold anything, even ") ".
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return ""
	}
	fields := strings.Fields(string(stat[end+1:]))
	if i := field - 3; i < len(fields) {
		return fields[i]
	}
	return ""
}

// ownerGone reports whether the run that made something with this id is known to
// have ended. Ids of other machines and namespaces are never known.
func ownerGone(id string) bool {
	rest, ours := strings.CutPrefix(id, hostID()+"-")
	if !ours {
		return false
	}
	parts := strings.Split(rest, "-")
	if len(parts) != 3 {
		return false
	}
	pid, err := strconv.Atoi(parts[0])
	if err != nil {
		return false
	}
	return startTime(pid) != parts[1]
}

// runDir makes a directory that carries the run id. Its path holds no symbolic
// link: Vault wants that of its plugin directory, and so does [programsBelow].
func runDir(what string) (string, error) {
	sweepDirsOnce.Do(sweepDirs)
	dir, err := os.MkdirTemp("", dirPrefix+runID()+"_"+what+"-")
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

var sweepDirsOnce sync.Once

// sweepDirs removes the directories of dead runs, and ends the processes that
// still run a program from one of them: a plugin outlives a Vault that was killed.
func sweepDirs() {
	temp, err := filepath.EvalSymlinks(os.TempDir())
	if err != nil {
		return
	}
	dirs, err := filepath.Glob(filepath.Join(temp, dirPrefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		id, _, found := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "_")
		if !found || !ownerGone(id) || !ownedByUs(dir) {
			continue
		}
		killPrograms(dir)
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintf(os.Stderr, "testenv: remove %s of an earlier run: %v\n", dir, err)
		}
	}
}

// ownedByUs guards against a directory someone else made under our name.
func ownedByUs(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Getuid()
}

// killPrograms ends every process whose program file lies below dir.
func killPrograms(dir string) {
	for _, pid := range programsBelow(dir) {
		if p, err := os.FindProcess(pid); err == nil {
			// Gone already is what we want.
			_ = p.Kill()
		}
	}
}

// programsBelow lists the processes whose program file lies, or lay, below dir.
func programsBelow(dir string) []int {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil
	}
	var pids []int
	for _, link := range links {
		exe, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(exe, dir+string(filepath.Separator)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func removeAll(t TB, dir string) {
	if err := os.RemoveAll(dir); err != nil {
		t.Logf("remove %s: %v", dir, err)
	}
}
