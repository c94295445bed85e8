//go:build dbopsfault

package plugin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

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
