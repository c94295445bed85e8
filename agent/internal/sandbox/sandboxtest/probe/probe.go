// Package probe is an engine for tests: it does, inside a worker, what a test
// asks for and says what came of it. It is linked into test programs only.
package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Type is the engine's type; endpoints must carry it.
const Type wire.EngineType = "probe"

// Check is one thing to try. Inspect takes a list of them, as JSON in the
// endpoint's Database.
type Check struct {
	Do      string   `json:"do"` // see try
	Address string   `json:"address,omitempty"`
	Args    []string `json:"args,omitempty"`
	Env     []string `json:"env,omitempty"`
}

// Result is what came of a check. Got is what was read, Err the error's text.
type Result struct {
	Check
	Got    string `json:"got"`
	Err    string `json:"err"`
	Millis int64  `json:"millis"`
}

// Encode is the form of checks in an endpoint's Database.
func Encode(checks ...Check) string {
	content, err := json.Marshal(checks)
	if err != nil {
		panic(err) // strings only
	}
	return string(content)
}

// Try does the checks in this process, for comparison.
func Try(ctx context.Context, checks ...Check) []Result {
	return tryAll(ctx, engine.Endpoint{}, checks)
}

// Engine is the probe.
type Engine struct{}

var _ engine.Engine = Engine{}

// Type returns the probe's type.
func (Engine) Type() wire.EngineType { return Type }

// Inspect does the checks and returns their results.
func (Engine) Inspect(ctx context.Context, _ wire.Side, e engine.Endpoint) (json.RawMessage, error) {
	var checks []Check
	if err := json.Unmarshal([]byte(e.Database), &checks); err != nil {
		return nil, err
	}
	return json.Marshal(tryAll(ctx, e, checks))
}

// Plan is not for a worker.
func (Engine) Plan(wire.Kind, map[string]string, json.RawMessage, json.RawMessage) (wire.Plan, error) {
	return wire.Plan{}, errors.New("probe does not plan")
}

// Run begins one step, then waits until it is cancelled.
func (Engine) Run(ctx context.Context, _ engine.Job, host engine.Host) (operation.Report, error) {
	if err := host.Begin(ctx, wire.StepCopy, nil); err != nil {
		return operation.Report{}, err
	}
	<-ctx.Done()
	return operation.Report{}, ctx.Err()
}

// Cleanup says that nothing was there.
func (Engine) Cleanup(context.Context, string, engine.Endpoint) (engine.CleanupResult, error) {
	return engine.CleanupResult{}, nil
}

func tryAll(ctx context.Context, e engine.Endpoint, checks []Check) []Result {
	results := make([]Result, len(checks))
	for i, check := range checks {
		began := time.Now()
		got, err := try(ctx, e, check)
		results[i] = Result{Check: check, Got: got, Millis: time.Since(began).Milliseconds()}
		if err != nil {
			results[i].Err = err.Error()
		}
	}
	return results
}

const patience = 3 * time.Second

func try(ctx context.Context, e engine.Endpoint, check Check) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	switch check.Do {
	case "dial": // the endpoint's socket; returns the banner
		conn, err := e.Dial(ctx)
		return banner(conn, err)
	case "tool": // the same as a client tool gets there
		conn, err := dialTool(ctx, e)
		return banner(conn, err)
	case "open-tool":
		host, port, err := e.OpenTool()
		return fmt.Sprint(host, " ", port), err
	case "dial-tls", "tool-tls": // verified against RootCA for the name in Address, default the endpoint's
		var conn net.Conn
		var err error
		if check.Do == "tool-tls" {
			conn, err = dialTool(ctx, e)
		} else {
			conn, err = e.Dial(ctx)
		}
		if err != nil {
			return "", err
		}
		return bannerTLS(ctx, conn, e, check.Address)
	case "tcp":
		dialer := net.Dialer{Timeout: patience}
		conn, err := dialer.DialContext(ctx, "tcp", check.Address)
		return banner(conn, err)
	case "unix":
		dialer := net.Dialer{Timeout: patience}
		conn, err := dialer.DialContext(ctx, "unix", check.Address)
		return banner(conn, err)
	case "udp": // sends Args[0]; whether it arrives the listener knows
		conn, err := net.Dial("udp4", check.Address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		_, err = conn.Write([]byte(check.Args[0]))
		return "", err
	case "dns": // asks the resolver at Address for Args[0], over Args[1]
		return askDNS(check.Address, check.Args[0], check.Args[1])
	case "lookup":
		addresses, err := net.DefaultResolver.LookupHost(ctx, check.Address)
		return strings.Join(addresses, " "), err
	case "vsock": // CID:port
		return "", connectVsock(check.Address)
	case "socket": // family number
		family, err := strconv.Atoi(check.Address)
		if err != nil {
			return "", err
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
		if err != nil {
			return "", err
		}
		return "", unix.Close(fd)
	case "syscall": // by name, with harmless arguments
		return "", call(check.Address)
	case "read":
		content, err := os.ReadFile(check.Address)
		return string(content), err
	case "list":
		names, err := filepath.Glob(filepath.Join(check.Address, "*"))
		return strings.Join(names, " "), err
	case "write":
		content := strings.Join(append(check.Args, "#!/bin/sh\n"), "\n")
		return "", os.WriteFile(check.Address, []byte(content), 0o755) //nolint:gosec // to be tried to run
	case "env":
		return strings.Join(os.Environ(), "\n"), nil //nolint:forbidigo // it is what the test asks about
	case "exec":
		command := exec.CommandContext(ctx, check.Args[0], check.Args[1:]...) //nolint:forbidigo // runs in a worker
		command.Env = append(os.Environ(), check.Env...)                      //nolint:forbidigo // as an engine's tools get it
		output, err := command.CombinedOutput()
		return string(output), err
	case "orphan":
		return orphan(ctx)
	case "flood":
		return flood()
	case "crash":
		go func() { panic("alice@example.com") }()
		<-ctx.Done()
		return "", ctx.Err()
	case "eat": // memory, until something happens
		return eat(ctx)
	default:
		return "", fmt.Errorf("unknown check %q", check.Do)
	}
}

func dialTool(ctx context.Context, e engine.Endpoint) (net.Conn, error) {
	host, port, err := e.OpenTool()
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
}

// banner reads what the other end says first. A connection proves nothing: some
// networks accept every one.
func banner(conn net.Conn, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	content, err := io.ReadAll(io.LimitReader(conn, 1<<10))
	if err != nil {
		return string(content), fmt.Errorf("connected, then: %w", err)
	}
	return string(content), nil
}

func bannerTLS(ctx context.Context, conn net.Conn, e engine.Endpoint, name string) (string, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(e.RootCA))
	if name == "" {
		name = e.Host
	}
	secured := tls.Client(conn, &tls.Config{ServerName: name, RootCAs: roots, MinVersion: tls.VersionTLS12})
	if err := secured.HandshakeContext(ctx); err != nil {
		return "", errors.Join(err, conn.Close())
	}
	return banner(secured, nil)
}

func askDNS(address, name, network string) (string, error) {
	conn, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	query := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, label := range strings.Split(strings.Trim(name, "."), ".") {
		query = append(query, byte(len(label)))
		query = append(query, label...)
	}
	query = append(query, 0, 0, 1, 0, 1)
	if network == "tcp" {
		query = append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := conn.Write(query); err != nil {
		return "", err
	}
	answer := make([]byte, 512)
	n, err := conn.Read(answer)
	return fmt.Sprintf("%d bytes", n), err
}

func connectVsock(address string) error {
	cid, port, _ := strings.Cut(address, ":")
	c, err := strconv.ParseUint(cid, 10, 32)
	if err != nil {
		return err
	}
	p, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: uint32(c), Port: uint32(p)}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

func call(name string) error {
	var number uintptr
	var args [3]uintptr
	path := []byte("x\x00")
	at := uintptr(unsafe.Pointer(&path[0])) //nolint:gosec // the argument of a call that must not get through
	switch name {
	case "memfd_create":
		number, args[0] = unix.SYS_MEMFD_CREATE, at
	case "ptrace":
		number, args[0] = unix.SYS_PTRACE, unix.PTRACE_TRACEME
	case "io_uring_setup":
		number, args[0] = unix.SYS_IO_URING_SETUP, 1
	case "keyctl":
		number = unix.SYS_KEYCTL
	case "add_key":
		number = unix.SYS_ADD_KEY
	case "unshare":
		number, args[0] = unix.SYS_UNSHARE, unix.CLONE_NEWUSER
	case "bpf":
		number = unix.SYS_BPF
	case "userfaultfd":
		number = unix.SYS_USERFAULTFD
	case "process_vm_readv":
		number, args[0] = unix.SYS_PROCESS_VM_READV, uintptr(os.Getpid())
	case "shmget":
		number, args[1] = unix.SYS_SHMGET, 4096
	default:
		return fmt.Errorf("unknown call %q", name)
	}
	if _, _, errno := unix.Syscall(number, args[0], args[1], args[2]); errno != 0 {
		return errno
	}
	return nil
}

// OrphanArg makes the test program start a child that outlives it.
const OrphanArg = "probe-orphan"

// Orphan is what a test program does with [OrphanArg].
func Orphan() int {
	self, err := os.Executable()
	if err != nil {
		return 1
	}
	child, err := os.StartProcess(self, []string{self, OrphanArg, "child"}, &os.ProcAttr{})
	if err != nil {
		return 1
	}
	if err := child.Release(); err != nil {
		return 1
	}
	return 0
}

// orphan lets a child die before its own child does and tells how many zombies
// of ours are left.
func orphan(ctx context.Context) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	for range 5 {
		// The exit code of our own child must still reach us, late as we ask.
		child := exec.CommandContext(ctx, self, OrphanArg) //nolint:forbidigo // runs in a worker
		if err := child.Start(); err != nil {
			return "", err
		}
		time.Sleep(200 * time.Millisecond) //nolint:forbidigo // a test program
		if err := child.Wait(); err != nil {
			return "", err
		}
	}
	time.Sleep(500 * time.Millisecond) //nolint:forbidigo // a test program
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return "", err
	}
	var dead []string
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err == nil && bytes.Contains(stat, []byte(") Z ")) {
			dead = append(dead, string(stat))
		}
	}
	return strings.Join(dead, "\n"), nil
}

// flood writes to the protocol's own stream until that breaks.
func flood() (string, error) {
	garbage := bytes.Repeat([]byte("garbage "), 8<<10)
	for {
		if _, err := os.Stdout.Write(garbage); err != nil {
			return "", err
		}
	}
}

func eat(ctx context.Context) (string, error) {
	var eaten [][]byte
	for ctx.Err() == nil {
		block := make([]byte, 8<<20)
		for i := 0; i < len(block); i += syscall.Getpagesize() {
			block[i] = 1
		}
		eaten = append(eaten, block)
	}
	return strconv.Itoa(len(eaten)), ctx.Err()
}
