// Package docker makes sandboxes out of containers of a local Docker daemon. It
// is the only importer of the Docker SDK.
//
// A sandbox is one container without a network and one directory with a socket
// per database, both named after the operation; the container carries labels
// that say whose it is. Whatever does not carry this agent's labels is never
// touched.
package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"github.com/docker/docker/client"
	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Labels of containers.
const (
	LabelAgent = "io.dbops.agent" // the agent's name
	// LabelInstance tells agents of one name on one host apart, which serve
	// different Vaults: it is derived from the run directory, which only one can
	// have. What does not carry it is never touched.
	LabelInstance  = "io.dbops.instance"
	LabelOperation = "io.dbops.operation" // the operation's id
	LabelCreated   = "io.dbops.created"   // RFC 3339 with nanoseconds; tells one attempt from another
)

// Defaults of [Config].
const (
	DefaultHost      = "unix:///var/run/docker.sock"
	DefaultMemoryMiB = 256
	DefaultTempMiB   = 64
	DefaultCPUs      = 2
	DefaultRunDir    = "/run/dbops-agent"
)

// Config says how sandboxes are made. Zero values mean the defaults.
type Config struct {
	AgentName string // required; [a-z0-9-], at most 63
	// ToolsImage is the image with the databases' client tools, required. It must
	// be present: nothing is ever pulled.
	ToolsImage string
	// RunDir holds one directory per operation and nothing else. It is made, with
	// the mode 0700, and must belong to the agent's user. Short: a socket's path
	// has at most 107 bytes.
	RunDir string
	// Binary is the static program that becomes the worker; default the running
	// program itself, even when its file has been replaced meanwhile.
	Binary string
	// WorkerArgs are its arguments; default "worker".
	WorkerArgs []string
	// MemoryMiB limits a worker together with what lies in its /tmp.
	MemoryMiB int64
	// TempMiB is the size of /tmp, which is in memory. Schema dumps lie there.
	TempMiB int64
	CPUs    float64
	// Host is the daemon's unix socket, unix:///path.
	Host string
	// Dial is how the gateway reaches databases; default a [net.Dialer].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

var (
	agentName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

	errNotReady = errors.New("sandbox is closed")
)

// Sandbox makes sandboxes. It may be used by several goroutines.
type Sandbox struct {
	config   Config
	instance string // value of LabelInstance
	docker   *client.Client
	log      hclog.Logger

	preparing sync.Mutex // one Prepare at a time

	mu     sync.Mutex      // guards the rest
	image  *workerImage    // nil before Prepare
	boxes  map[string]*box // by operation; nil while one is starting
	closed bool
}

var _ sandbox.Sandbox = (*Sandbox)(nil)

// New checks the configuration and makes the run directory. It does not talk to
// the daemon; Prepare does.
func New(config Config, log hclog.Logger) (*Sandbox, error) {
	if config.Host == "" {
		config.Host = DefaultHost
	}
	if config.RunDir == "" {
		config.RunDir = DefaultRunDir
	}
	if config.Binary == "" {
		config.Binary = "/proc/self/exe"
	}
	if config.WorkerArgs == nil {
		config.WorkerArgs = []string{"worker"}
	}
	if config.MemoryMiB == 0 {
		config.MemoryMiB = DefaultMemoryMiB
	}
	if config.TempMiB == 0 {
		config.TempMiB = DefaultTempMiB
	}
	if config.CPUs == 0 {
		config.CPUs = DefaultCPUs
	}
	if err := config.validate(); err != nil {
		return nil, err
	}
	if err := makeRunDir(config.RunDir); err != nil {
		return nil, err
	}
	docker, err := client.NewClientWithOpts(client.WithHost(config.Host), client.WithAPIVersionNegotiation())
	if err != nil {
		return nil, fmt.Errorf("make docker client: %w", err)
	}
	return &Sandbox{config: config, instance: instance(config), docker: docker, log: log, boxes: make(map[string]*box)}, nil
}

// instance is 16 hex digits.
func instance(c Config) string {
	sum := sha256.Sum256([]byte(c.AgentName + "\x00" + filepath.Clean(c.RunDir)))
	return hex.EncodeToString(sum[:8])
}

func (c Config) validate() error {
	var problems []error
	if !agentName.MatchString(c.AgentName) {
		problems = append(problems, fmt.Errorf("agent name %q is not made of a-z, 0-9 and dashes, 1 to 63 of them", c.AgentName))
	}
	if c.ToolsImage == "" {
		problems = append(problems, errors.New("tools image is not set"))
	}
	if !strings.HasPrefix(c.RunDir, "/") {
		problems = append(problems, fmt.Errorf("run directory %q is not an absolute path", c.RunDir))
	}
	const leastMiB = 48 // the Go runtime and a client tool
	if c.TempMiB < 1 || c.MemoryMiB < c.TempMiB+leastMiB {
		problems = append(problems, fmt.Errorf("memory of %d MiB leaves less than %d MiB beside a /tmp of %d MiB",
			c.MemoryMiB, leastMiB, c.TempMiB))
	}
	if c.CPUs < 0.01 {
		problems = append(problems, fmt.Errorf("%v processors are too few", c.CPUs))
	}
	host, err := url.Parse(c.Host)
	if err != nil || host.Scheme != "unix" || host.Host != "" || host.Path == "" {
		problems = append(problems, fmt.Errorf("docker host %q is not the unix socket of a local daemon (unix:///path): "+
			"a sandbox's sockets cannot reach another machine", c.Host))
	}
	return errors.Join(problems...)
}

// makeRunDir makes dir, or makes sure that nobody else can enter the one there.
func makeRunDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at run directory: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int64(stat.Uid) != int64(os.Geteuid()) {
		return fmt.Errorf("run directory %s is not a directory of the agent's user", dir)
	}
	//nolint:gosec // a directory cannot be entered without x
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("set mode of run directory: %w", err)
	}
	return nil
}

// Close lets go of the daemon. Boxes are not touched; remove them first.
func (s *Sandbox) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	if err := s.docker.Close(); err != nil {
		return fmt.Errorf("close docker client: %w", err)
	}
	return nil
}

// failure is an error that ends an operation: reason and hint are for everybody,
// the cause for the local log.
func failure(reason, hint string, cause error) error {
	return &operation.Error{Step: wire.StepSandbox, Code: wire.CodeSandbox, Reason: reason, Hint: hint, Err: cause}
}

// daemon makes sure that the daemon can run sandboxes of this host and says what
// it is.
func (s *Sandbox) daemon(ctx context.Context) (runtime string, err error) {
	info, err := s.docker.Info(ctx)
	if err != nil {
		return "", failure("the docker daemon cannot be reached", "see whether it runs and the agent may use "+s.config.Host, err)
	}
	if info.OSType != "linux" || strings.Contains(info.OperatingSystem, "Docker Desktop") {
		return "", failure("the docker daemon does not run on this machine's own Linux", "install Docker Engine on the host", nil)
	}
	return fmt.Sprintf("docker %s, api %s", info.ServerVersion, s.docker.ClientVersion()), nil
}
