//go:build dbopsfault

package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"
)

// systemClock is the time in builds made for tests (-tags dbopsfault): off by what
// <program>.clock-offset beside the plugin's program holds, a duration like "-1h",
// and right without that file. The file may be written at any time: to those who
// read the clock it is set at that moment.
func systemClock() func() time.Time {
	program, err := os.Executable()
	if err != nil {
		panic(fmt.Sprintf("clock: %v", err))
	}
	return func() time.Time {
		content, err := os.ReadFile(program + ".clock-offset")
		if errors.Is(err, fs.ErrNotExist) {
			return time.Now()
		}
		if err != nil {
			panic(fmt.Sprintf("clock: %v", err))
		}
		offset, err := time.ParseDuration(strings.TrimSpace(string(content)))
		if err != nil {
			panic(fmt.Sprintf("clock: %v", err))
		}
		// Without Go's own monotonic reading, which no setting of the clock changes.
		return time.Now().Round(0).Add(offset)
	}
}

// fault obeys a file in builds made for tests (-tags dbopsfault): <program>.fault
// beside the plugin's program holds "<kind>:<point>", where the process ends at
// once, as by SIGKILL. The file is removed first: once is enough.
func fault(kind rotationKind, point rotationPoint) {
	program, err := os.Executable()
	if err != nil {
		panic(fmt.Sprintf("fault: %v", err))
	}
	path := program + ".fault"
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		panic(fmt.Sprintf("fault: %v", err))
	}
	if strings.TrimSpace(string(content)) != string(kind)+":"+string(point) {
		return
	}
	if err := errors.Join(os.Remove(path), syscall.Kill(os.Getpid(), syscall.SIGKILL)); err != nil {
		panic(fmt.Sprintf("fault: %v", err))
	}
	select {}
}
