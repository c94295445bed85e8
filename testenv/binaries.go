package testenv

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
)

// pluginName is the plugin's program, and its name in Vault's catalog.
const pluginName = "vault-plugin-secrets-dbops"

// Plugin returns the path of the built Vault plugin.
func Plugin(t TB) string { t.Helper(); return binary(t, pluginName) }

// Agent returns the path of the built agent.
func Agent(t TB) string { t.Helper(); return binary(t, "dbops-agent") }

// CLI returns the path of the built command line.
func CLI(t TB) string { t.Helper(); return binary(t, "dbops") }

var binaries sync.Map // name to func() (string, error)

// binary is the program in DBOPS_BIN_DIR, or else built from this tree, once per
// process.
func binary(t TB, name string) string {
	t.Helper()
	if dir := os.Getenv("DBOPS_BIN_DIR"); dir != "" {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("find %s in DBOPS_BIN_DIR: %v", name, err)
		}
		return path
	}
	v, _ := binaries.LoadOrStore(name, sync.OnceValues(func() (string, error) { return buildBinary(name, name) }))
	build, ok := v.(func() (string, error))
	if !ok {
		t.Fatalf("build %s: unexpected %T", name, v)
	}
	path, err := build()
	if err != nil {
		t.Fatalf("build %s: %v", name, err)
	}
	return path
}

// buildBinary builds the program name, static like make build, into testenv/bin
// under the name as: a second process finds it up to date. A lock keeps processes from building at the same time.
func buildBinary(name, as string, flags ...string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "testenv", "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, ".binaries.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close() // and with it the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	path := filepath.Join(dir, as)
	argv := append([]string{"build", "-trimpath", "-o", path}, flags...)
	cmd := exec.Command("go", append(argv, "./cmd/"+name)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return path, nil
}

var faultPlugin = sync.OnceValues(func() (string, error) {
	return buildBinary(pluginName, pluginName+"-fault", "-tags", "dbopsfault")
})

// FaultPlugin returns the path of a plugin built with the fault points that tests
// kill it at. The shipped one has none.
func FaultPlugin(t TB) string {
	t.Helper()
	path, err := faultPlugin()
	if err != nil {
		t.Fatalf("build %s with faults: %v", pluginName, err)
	}
	return path
}
