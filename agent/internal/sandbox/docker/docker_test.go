package docker

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/sandboxtest"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox/sandboxtest/probe"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// programs holds the probe worker and is removed at the end.
var programs struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	if os.Getenv(doomedEnv) != "" {
		os.Exit(doomed())
	}
	code := m.Run()
	removeImages()
	if programs.dir != "" {
		if err := os.RemoveAll(programs.dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// probeWorker is the static probe worker, built once.
func probeWorker(t *testing.T) string {
	t.Helper()
	programs.once.Do(func() {
		if programs.dir, programs.err = os.MkdirTemp("", "probeworker"); programs.err != nil {
			return
		}
		build := exec.Command("go", "build", "-o", filepath.Join(programs.dir, "probeworker"), "../sandboxtest/probeworker")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if output, err := build.CombinedOutput(); err != nil {
			programs.err = fmt.Errorf("%w: %s", err, output)
		}
	})
	require.NoError(t, programs.err)
	return filepath.Join(programs.dir, "probeworker")
}

// prefix begins the names of this test process's agents.
var prefix = fmt.Sprintf("test-%d-", os.Getpid())

func agentNameOf(t *testing.T) string {
	t.Helper()
	random := make([]byte, 4)
	_, err := rand.Read(random)
	require.NoError(t, err)
	return prefix + hex.EncodeToString(random)
}

// config is that of a new agent, whose traces are removed when the test ends.
func config(t *testing.T) Config {
	t.Helper()
	testenv.Require(t, testenv.PartDocker, testenv.PartTools)
	dir, err := os.MkdirTemp("", "run") // t.TempDir is too long for a socket
	require.NoError(t, err)
	c := Config{
		AgentName: agentNameOf(t), ToolsImage: testenv.Image(t, testenv.PartTools), RunDir: dir, Binary: probeWorker(t), MemoryMiB: 128,
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		s, err := New(c, hclog.NewNullLogger())
		require.NoError(t, err)
		defer s.Close()
		left, err := s.List(ctx)
		require.NoError(t, err)
		for _, info := range left {
			require.NoError(t, s.Clean(ctx, info.OperationID))
		}
		require.NoError(t, s.removeBuild(ctx, s.buildName()))
		require.NoError(t, os.RemoveAll(dir))
	})
	return c
}

// removeImages removes the worker images of this test process.
func removeImages() {
	docker, err := client.NewClientWithOpts(client.WithHost(DefaultHost), client.WithAPIVersionNegotiation())
	if err != nil {
		return
	}
	defer docker.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	images, err := docker.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("label", labelImageAgent))})
	if err != nil {
		return
	}
	for _, found := range images {
		if strings.HasPrefix(found.Labels[labelImageAgent], prefix) {
			if _, err := docker.ImageRemove(ctx, found.ID, image.RemoveOptions{PruneChildren: true}); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
}

func open(t *testing.T, c Config) *Sandbox {
	t.Helper()
	s, err := New(c, hclog.New(&hclog.LoggerOptions{Output: testLog{t}, Level: hclog.Debug}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

type testLog struct{ t *testing.T }

func (l testLog) Write(line []byte) (int, error) {
	defer func() { _ = recover() }() // the test may be over
	l.t.Log(strings.TrimSpace(string(line)))
	return len(line), nil
}

// Docker keeps the promises every sandbox makes.
func TestDocker_Suite(t *testing.T) {
	t.Parallel()
	sandboxtest.Suite{Open: func(t *testing.T) sandbox.Sandbox { return open(t, config(t)) }}.Run(t)
}

// endpoints are two banners on the host's loopback.
func endpoints(t *testing.T) map[wire.Side]wire.Endpoint {
	t.Helper()
	return map[wire.Side]wire.Endpoint{
		wire.Source: sandboxtest.Banner(t, "source"), wire.Target: sandboxtest.Banner(t, "target"),
	}
}

// A configuration that would not isolate, or not work, is refused with all its
// problems.
func TestNew_Refuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := Config{AgentName: "a", ToolsImage: "i", RunDir: dir}
	s, err := New(good, hclog.NewNullLogger())
	require.NoError(t, err)
	require.NoError(t, s.Close())
	for want, change := range map[string]func(*Config){
		"agent name":             func(c *Config) { c.AgentName = "A b" },
		"tools image":            func(c *Config) { c.ToolsImage = "" },
		"not an absolute path":   func(c *Config) { c.RunDir = "run" },
		"leaves less than":       func(c *Config) { c.TempMiB = 250 },
		"processors":             func(c *Config) { c.CPUs = -1 },
		"socket of a local":      func(c *Config) { c.Host = "tcp://db.example:2376" },
		"cannot reach another m": func(c *Config) { c.Host = "ssh://root@db.example" },
	} {
		bad := good
		change(&bad)
		_, err := New(bad, hclog.NewNullLogger())
		require.ErrorContains(t, err, want)
	}
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(dir, link))
	for _, path := range []string{file, link} {
		bad := good
		bad.RunDir = path
		_, err := New(bad, hclog.NewNullLogger())
		require.Error(t, err)
	}
	// A directory others could enter is closed.
	loose := filepath.Join(dir, "loose")
	require.NoError(t, os.Mkdir(loose, 0o755))
	good.RunDir = loose
	s, err = New(good, hclog.NewNullLogger())
	require.NoError(t, err)
	require.NoError(t, s.Close())
	info, err := os.Stat(loose)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
}

// What Prepare cannot use it names, with a way out; it never goes to a registry.
func TestPrepare_Refuses(t *testing.T) {
	t.Parallel()
	c := config(t)
	c.ToolsImage = "dbops-no-such-image:latest"
	err := open(t, c).Prepare(t.Context())
	require.ErrorContains(t, err, "is not on this host")

	c = config(t)
	c.Binary = "/bin/ls" // dynamic
	require.ErrorContains(t, open(t, c).Prepare(t.Context()), "cannot run in a sandbox")

	c = config(t)
	c.Host = "unix://" + filepath.Join(c.RunDir, "none.sock")
	require.ErrorContains(t, open(t, c).Prepare(t.Context()), "daemon cannot be reached")
}

// A start that died between making the image and removing what it was made of leaves
// nothing to the next one.
func TestPrepare_AfterOneThatDied(t *testing.T) {
	t.Parallel()
	c := config(t)
	s := open(t, c)
	require.NoError(t, s.Prepare(t.Context()))
	left, err := s.docker.ContainerCreate(t.Context(), &container.Config{
		Image: s.image.id, Labels: map[string]string{LabelAgent: c.AgentName, LabelInstance: s.instance},
	}, nil, nil, nil, s.buildName())
	require.NoError(t, err)
	t.Cleanup(func() {
		err := s.docker.ContainerRemove(context.Background(), left.ID, removeAll)
		require.True(t, err == nil || errdefs.IsNotFound(err), "%v", err)
	})
	require.NoError(t, open(t, c).Prepare(t.Context()))
	_, err = s.docker.ContainerInspect(t.Context(), left.ID)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}

// The image is made once for a binary and base, again for another binary, and
// then the old one goes.
func TestPrepare_Image(t *testing.T) {
	t.Parallel()
	c := config(t)
	// Of its own, so that no other test's image is looked at: trailing bytes do
	// not change an ELF program.
	content, err := os.ReadFile(c.Binary)
	require.NoError(t, err)
	c.Binary = filepath.Join(t.TempDir(), "binary")
	require.NoError(t, os.WriteFile(c.Binary, append(content, c.AgentName...), 0o755))

	s := open(t, c)
	require.NoError(t, s.Prepare(t.Context()))
	first := s.image.id
	made, err := s.docker.ImageInspect(t.Context(), first)
	require.NoError(t, err)
	require.Equal(t, workerUser, made.Config.User)
	require.Equal(t, []string{"/dbops-worker", "worker"}, []string(made.Config.Entrypoint))
	require.Empty(t, made.Config.Cmd)
	require.Equal(t, []string{"NONE"}, made.Config.Healthcheck.Test)

	again := open(t, c)
	require.NoError(t, again.Prepare(t.Context()))
	require.Equal(t, first, again.image.id)

	box, err := again.Start(t.Context(), sandboxtest.Spec("clone-1", endpoints(t)))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(c.Binary+"2", append(content, c.AgentName+"2"...), 0o755))
	c.Binary += "2"
	newer := open(t, c)
	require.NoError(t, newer.Prepare(t.Context()))
	require.NotEqual(t, first, newer.image.id)
	_, err = s.docker.ImageInspect(t.Context(), first)
	require.NoError(t, err, "it is in use")
	require.NoError(t, box.Remove(t.Context()))
	require.NoError(t, newer.Prepare(t.Context()))
	_, err = s.docker.ImageInspect(t.Context(), first)
	require.Error(t, err)

	// An image somebody removed is made again when needed.
	_, err = s.docker.ImageRemove(t.Context(), newer.image.id, image.RemoveOptions{})
	require.NoError(t, err)
	box, err = newer.Start(t.Context(), sandboxtest.Spec("clone-2", endpoints(t)))
	require.NoError(t, err)
	require.NoError(t, box.Remove(t.Context()))
}

// A container has every limit of the design, as Docker itself tells.
func TestStart_Hardening(t *testing.T) {
	t.Parallel()
	s := open(t, config(t))
	named := endpoints(t)
	source := named[wire.Source]
	source.Host = "db.example.test"
	named[wire.Source] = source
	box, err := s.Start(t.Context(), sandboxtest.Spec("clone-1", named))
	require.NoError(t, err)
	defer func() { require.NoError(t, box.Remove(context.Background())) }()
	got, err := s.docker.ContainerInspect(t.Context(), box.Facts().ContainerID)
	require.NoError(t, err)

	host := got.HostConfig
	require.Equal(t, "none", string(host.NetworkMode))
	require.Equal(t, []string{"ALL"}, []string(host.CapDrop))
	require.Empty(t, host.CapAdd)
	require.False(t, host.Privileged)
	require.True(t, host.ReadonlyRootfs)
	require.Equal(t, "none", string(host.IpcMode))
	require.Equal(t, "none", host.LogConfig.Type)
	require.False(t, host.AutoRemove)
	require.EqualValues(t, 128<<20, host.Memory)
	require.Equal(t, host.Memory, host.MemorySwap)
	require.EqualValues(t, pidsLimit, *host.PidsLimit)
	require.EqualValues(t, 2e9, host.NanoCPUs)
	require.Equal(t, []string{"db.example.test:127.0.0.2"}, host.ExtraHosts)
	require.Equal(t, []string{"127.0.0.1"}, host.DNS)
	require.Empty(t, host.Binds)
	require.Empty(t, host.Devices)
	require.Equal(t, map[string]string{"/tmp": "rw,noexec,nosuid,nodev,size=64m,mode=1777"}, host.Tmpfs)
	require.Len(t, got.Mounts, 1)
	require.False(t, got.Mounts[0].RW)
	require.Equal(t, s.dir("clone-1"), got.Mounts[0].Source)
	require.Contains(t, host.SecurityOpt, "no-new-privileges:true")
	require.Condition(t, func() bool {
		for _, option := range host.SecurityOpt {
			if strings.HasPrefix(option, "seccomp={") {
				return true
			}
		}
		return false
	})
	require.Equal(t, workerUser, got.Config.User)
	require.True(t, got.Config.OpenStdin && got.Config.StdinOnce && !got.Config.Tty)
	require.Equal(t, box.Facts().WorkerImageID, got.Config.Image, "by id, not by tag")
	require.Equal(t, &wire.ContainerFacts{
		Network: "none", User: workerUser, ReadOnlyRoot: true, CapabilitiesDropped: "ALL", MemoryBytes: "134217728",
	}, box.Facts().Container, "what Docker says, for the receipt")
	require.Equal(t, s.config.AgentName, got.Config.Labels[LabelAgent])
	require.Equal(t, "clone-1", got.Config.Labels[LabelOperation])
	require.NotEmpty(t, got.Config.Labels[LabelCreated])
}

// From inside: nothing can be written but /tmp, and nothing run from there; the
// process has no rights and no foreign variables; calls that are withheld fail.
func TestWorker_Confined(t *testing.T) {
	t.Parallel()
	s := open(t, config(t))
	ends := endpoints(t)
	_, client := sandboxtest.Start(t, s, sandboxtest.Spec("clone-1", ends))
	calls := []string{
		"memfd_create", "ptrace", "io_uring_setup", "keyctl", "add_key", "unshare", "bpf", "userfaultfd", "process_vm_readv", "shmget",
	}
	checks := []probe.Check{
		{Do: "write", Address: "/x"},
		{Do: "write", Address: sandbox.SocketDir + "/x"},
		{Do: "write", Address: "/etc/hosts"},
		{Do: "write", Address: "/proc/sys/kernel/hostname"},
		{Do: "write", Address: "/tmp/x"},
		{Do: "exec", Args: []string{"/tmp/x"}},
		{Do: "env"},
		{Do: "read", Address: "/proc/self/status"},
		{Do: "read", Address: "/etc/resolv.conf"},
		{Do: "list", Address: sandbox.SocketDir},
		{Do: "read", Address: "/proc/self/limits"},
		{Do: "orphan"},
	}
	for _, name := range calls {
		checks = append(checks, probe.Check{Do: "syscall", Address: name})
	}
	got := sandboxtest.Probe(t, client, ends, wire.Source, checks...)
	for i := range 4 {
		require.NotEmpty(t, got[i].Err, got[i].Address)
	}
	require.Empty(t, got[4].Err)
	require.Contains(t, got[5].Err, "permission denied")
	for _, variable := range strings.Split(got[6].Got, "\n") {
		name, _, _ := strings.Cut(variable, "=")
		require.Contains(t, []string{"PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "GOMEMLIMIT", "HOSTNAME"}, name)
	}
	status := strings.Join(strings.Fields(got[7].Got), " ")
	for _, want := range []string{"Uid: 65534", "Gid: 65534", "CapEff: 0000000000000000", "CapBnd: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"} {
		require.Contains(t, status, want)
	}
	require.NotContains(t, got[8].Got, "nameserver 10.")
	require.Contains(t, got[8].Got, "nameserver 127.0.0.1")
	require.Equal(t, sandbox.SocketDir+"/source.sock "+sandbox.SocketDir+"/target.sock", got[9].Got)
	require.Contains(t, strings.Join(strings.Fields(got[10].Got), " "), "Max core file size 0 0")
	require.Empty(t, got[11].Err, "children's exit codes reach who waits for them")
	require.Empty(t, got[11].Got, "orphans are reaped")
	for i, name := range calls {
		require.Contains(t, got[len(got)-len(calls)+i].Err, "operation not permitted", name)
	}
}

// Volumes that the tools image declares are no way onto the host's disk, and its
// variables do not reach the worker.
func TestStart_ImageVolumes(t *testing.T) {
	t.Parallel()
	c := config(t)
	docker := testenv.Docker(t)
	tag := "dbops-volume-" + c.AgentName
	created, err := docker.ContainerCreate(t.Context(), volumeConfig(c.ToolsImage), nil, nil, nil, tag)
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := docker.ImageRemove(context.Background(), tag, image.RemoveOptions{Force: true})
		require.NoError(t, err)
	})
	defer func() {
		require.NoError(t, docker.ContainerRemove(context.Background(), created.ID, removeAll))
	}()
	_, err = docker.ContainerCommit(t.Context(), created.ID, commitWithVolume(tag))
	require.NoError(t, err)

	c.ToolsImage = tag
	s := open(t, c)
	ends := endpoints(t)
	box, client := sandboxtest.Start(t, s, sandboxtest.Spec("clone-1", ends))
	got := sandboxtest.Probe(t, client, ends, wire.Source, probe.Check{Do: "write", Address: "/var/lib/data/x"}, probe.Check{Do: "env"})
	require.NotEmpty(t, got[0].Err)
	require.NotContains(t, got[1].Got, "evil")
	require.NotContains(t, got[1].Got, "PGDATA")
	require.Contains(t, got[1].Got, "PATH=/usr/bin:/bin\n")
	inspected, err := docker.ContainerInspect(t.Context(), box.Facts().ContainerID)
	require.NoError(t, err)
	for _, mounted := range inspected.Mounts {
		require.NotEqual(t, "volume", string(mounted.Type), mounted.Destination)
	}
	require.NoError(t, box.Remove(t.Context()))
	require.NoError(t, s.removeTestImage(t.Context()))
}

// A worker that takes too much memory is ended, and that is told.
func TestWorker_OutOfMemory(t *testing.T) {
	t.Parallel()
	s := open(t, config(t))
	ends := endpoints(t)
	box, client := sandboxtest.Start(t, s, sandboxtest.Spec("clone-1", ends))
	source := ends[wire.Source]
	source.Database = probe.Encode(probe.Check{Do: "eat"})
	require.NoError(t, client.Open(t.Context(), map[wire.Side]wire.Account{wire.Source: {Endpoint: source}}))
	_, err := client.Inspect(t.Context(), wire.Source)
	require.ErrorContains(t, err, "the worker ended")
	exit, err := box.Wait(t.Context())
	require.NoError(t, err)
	require.Equal(t, sandbox.Exit{Code: 137, OOMKilled: true}, exit)
}

// A worker that writes without end fills no memory and can be removed; one that
// crashes does not put what it held into the log.
func TestWorker_FloodAndCrash(t *testing.T) {
	t.Parallel()
	s := open(t, config(t))
	for _, what := range []string{"flood", "crash"} {
		ends := endpoints(t)
		box, client := sandboxtest.Start(t, s, sandboxtest.Spec("clone-"+what, ends))
		source := ends[wire.Source]
		source.Database = probe.Encode(probe.Check{Do: what})
		require.NoError(t, client.Open(t.Context(), map[wire.Side]wire.Account{wire.Source: {Endpoint: source}}))
		_, err := client.Inspect(t.Context(), wire.Source)
		require.Error(t, err, what)
		began := time.Now()
		require.NoError(t, box.Remove(t.Context()), what)
		require.Less(t, time.Since(began), 10*time.Second, what)
	}
}

// Unread output of a box waits, and does not keep Remove.
func TestBox_UnreadOutput(t *testing.T) {
	t.Parallel()
	s := open(t, config(t))
	box, err := s.Start(t.Context(), sandboxtest.Spec("clone-1", endpoints(t)))
	require.NoError(t, err)
	time.Sleep(300 * time.Millisecond)
	require.NoError(t, box.Remove(t.Context()))
	_, err = box.Stdout().Read(make([]byte, 1))
	require.Error(t, err)
	var gone net.Error
	require.NotErrorAs(t, err, &gone)
}
