package testenv

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
	"github.com/docker/docker/client"
	"github.com/docker/docker/pkg/stdcopy"
)

// Label is on every container and volume made here; its value is the run id.
const Label = "io.dbops.testenv"

// Docker returns a client of the Docker daemon. It is closed when the test ends.
func Docker(t TB) *client.Client {
	t.Helper()
	Require(t, PartDocker)
	docker, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatalf("connect to Docker: %v", err)
	}
	t.Cleanup(func() {
		if err := docker.Close(); err != nil {
			t.Logf("close Docker client: %v", err)
		}
	})
	sweepOnce.Do(func() { sweepContainers(docker) })
	return docker
}

var sweepOnce sync.Once

// sweepContainers removes what dead runs left in Docker. What another sweep, or
// Docker itself, is removing at the same time is none of its business.
func sweepContainers(docker *client.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	complain := func(what string, err error) {
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			fmt.Fprintf(os.Stderr, "testenv: sweep %s: %v\n", what, err)
		}
	}
	ours := filters.NewArgs(filters.Arg("label", Label))
	containers, err := docker.ContainerList(ctx, container.ListOptions{All: true, Filters: ours})
	complain("containers", err)
	for _, c := range containers {
		if ownerGone(c.Labels[Label]) {
			complain("container "+c.ID, docker.ContainerRemove(ctx, c.ID,
				container.RemoveOptions{Force: true, RemoveVolumes: true}))
		}
	}
	volumes, err := docker.VolumeList(ctx, volume.ListOptions{Filters: ours})
	complain("volumes", err)
	for _, v := range volumes.Volumes {
		if ownerGone(v.Labels[Label]) {
			complain("volume "+v.Name, docker.VolumeRemove(ctx, v.Name, true))
		}
	}
}

// server is a database server in a container on the host's network.
type server struct {
	t      TB
	docker *client.Client
	part   Part

	ID   string // of the container
	Host string
	Port int
}

// serverSpec says how to start one.
type serverSpec struct {
	part   Part
	suite  string // optional, a Debian suite
	listen string
	// script starts the server in the foreground; it is /dbops/start.sh in the
	// container and finds files beside it.
	script     string
	files      func(port int) map[string][]byte
	env        func(port int) []string // optional
	data       string                  // the data directory
	tmpfs      int64                   // bytes; 0 means a volume
	weight     int                     // as in PostgresOptions
	stopSignal string
	// ready answers nil once the server takes connections on the port.
	ready func(ctx context.Context, s *server) error
}

// processorTime gives a container the processor time of so many programs. All of
// Docker's containers together get no more than one program otherwise, as long as
// others are busy; with systemd's groups that cannot be had for one container.
func (s *server) processorTime(ctx context.Context, programs int) (container.Resources, error) {
	if programs == 0 {
		return container.Resources{}, nil
	}
	info, err := s.docker.Info(ctx)
	if err != nil {
		return container.Resources{}, fmt.Errorf("ask Docker for its control groups: %w", err)
	}
	if info.CgroupDriver != "cgroupfs" {
		return container.Resources{}, nil
	}
	const program = 1024 // shares
	return container.Resources{CgroupParent: "/", CPUShares: int64(programs) * program}, nil
}

// startServer starts the container and waits for it. A port that someone took
// between being picked and being bound is replaced by another.
func startServer(t TB, spec serverSpec) *server {
	t.Helper()
	if spec.suite == "" {
		Require(t, spec.part)
	} else if _, err := locateIn(spec.part, spec.suite); err != nil {
		missing(t, spec.part, err)
	}
	s := &server{t: t, docker: Docker(t), part: spec.part, Host: spec.listen}
	if s.Host == "" {
		s.Host = "127.0.0.1"
	}
	t.Cleanup(func() {
		if failed(t) && s.ID != "" {
			t.Logf("log of %s:\n%s", s.part, lastLines(s.Logs(), 60))
		}
		s.remove()
	})
	const attempts = 5
	for attempt := 1; ; attempt++ {
		err := s.create(spec)
		if err == nil {
			return s
		}
		log := s.Logs()
		if attempt < attempts && strings.Contains(strings.ToLower(log), "address already in use") {
			s.remove()
			continue
		}
		t.Fatalf("start %s: %v\n%s", spec.part, err, lastLines(log, 30))
	}
}

func (s *server) create(spec serverSpec) error {
	// On a machine with more to do than processors MySQL's first start takes minutes.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	port, err := freePort(s.Host)
	if err != nil {
		return err
	}
	s.Port = port

	labels := map[string]string{Label: runID()}
	data := mount.Mount{
		Type: mount.TypeVolume, Target: spec.data,
		VolumeOptions: &mount.VolumeOptions{Labels: labels, NoCopy: true},
	}
	if spec.tmpfs > 0 {
		data = mount.Mount{
			Type: mount.TypeTmpfs, Target: spec.data,
			TmpfsOptions: &mount.TmpfsOptions{SizeBytes: spec.tmpfs},
		}
	}
	var env []string
	if spec.env != nil {
		env = spec.env(port)
	}
	resources, err := s.processorTime(ctx, spec.weight)
	if err != nil {
		return err
	}
	image, err := locateIn(spec.part, spec.suite)
	if err != nil {
		return err
	}
	created, err := s.docker.ContainerCreate(ctx,
		&container.Config{
			Image: image, Labels: labels, Env: env,
			// Official images bring an entry point of their own; ours works in
			// all of them and needs no secret in the environment.
			Entrypoint: []string{"/bin/sh", "/dbops/start.sh"}, Cmd: []string{},
			User: "0:0", StopSignal: spec.stopSignal,
			Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
		},
		&container.HostConfig{
			NetworkMode: "host",
			Mounts:      []mount.Mount{data},
			ShmSize:     1 << 30, // a limit; parallel index builds want more than Docker's 64 MiB
			LogConfig:   container.LogConfig{Type: "json-file"},
			Resources:   resources,
		}, nil, nil, "")
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	s.ID = created.ID

	// Passwords and keys go in as files: neither arguments nor environment, which
	// docker inspect shows, hold any.
	files := spec.files(port)
	files["start.sh"] = []byte(spec.script)
	archive, err := archiveOf("dbops/", files)
	if err != nil {
		return err
	}
	if err := s.docker.CopyToContainer(ctx, s.ID, "/", archive, container.CopyToContainerOptions{}); err != nil {
		return fmt.Errorf("copy files into container: %w", err)
	}
	if err := s.docker.ContainerStart(ctx, s.ID, container.StartOptions{}); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	return s.await(ctx, spec.ready)
}

// await waits until the server is ready or its container has ended.
func (s *server) await(ctx context.Context, ready func(context.Context, *server) error) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		notReady := ready(attempt, s)
		cancel()
		if notReady == nil {
			return nil
		}
		state, err := s.docker.ContainerInspect(ctx, s.ID)
		if err != nil {
			return fmt.Errorf("inspect container: %w", err)
		}
		if !state.State.Running {
			return fmt.Errorf("ended with status %d", state.State.ExitCode)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready in time: %w", notReady)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// remove ends and removes the container and its data, at once.
func (s *server) remove() {
	if s.ID == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := s.docker.ContainerRemove(ctx, s.ID, container.RemoveOptions{Force: true, RemoveVolumes: true})
	if err != nil && !errdefs.IsNotFound(err) {
		s.t.Logf("remove container of %s: %v", s.part, err)
	}
	s.ID = ""
}

// Logs returns what the server has logged so far.
func (s *server) Logs() string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if s.ID == "" {
		return ""
	}
	r, err := s.docker.ContainerLogs(ctx, s.ID, container.LogsOptions{ShowStdout: true, ShowStderr: true})
	if err != nil {
		return fmt.Sprintf("(read log: %v)", err)
	}
	defer r.Close()
	var log bytes.Buffer
	if _, err := stdcopy.StdCopy(&log, &log, r); err != nil {
		fmt.Fprintf(&log, "\n(read log: %v)", err)
	}
	return log.String()
}

// Kill ends the server with SIGKILL, as a crash would.
func (s *server) Kill() {
	s.t.Helper()
	s.act("kill", func(ctx context.Context) error {
		if err := s.docker.ContainerKill(ctx, s.ID, "SIGKILL"); err != nil {
			return err
		}
		ended, failure := s.docker.ContainerWait(ctx, s.ID, container.WaitConditionNotRunning)
		select {
		case <-ended:
			return nil
		case err := <-failure:
			return err
		}
	})
}

// Stop shuts the server down and keeps its data, unless it is in memory.
func (s *server) Stop() {
	s.t.Helper()
	s.act("stop", func(ctx context.Context) error {
		seconds := 20
		return s.docker.ContainerStop(ctx, s.ID, container.StopOptions{Timeout: &seconds})
	})
}

// Pause freezes the server: connections to it hang, as with a dead network.
func (s *server) Pause() {
	s.t.Helper()
	s.act("pause", func(ctx context.Context) error {
		for {
			err := s.docker.ContainerPause(ctx, s.ID)
			// On a loaded machine runc gives the freezer too little time, and thaws again.
			if err == nil || !strings.Contains(err.Error(), "unable to freeze") || ctx.Err() != nil {
				return err
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
}

// Unpause ends a Pause.
func (s *server) Unpause() {
	s.t.Helper()
	s.act("unpause", func(ctx context.Context) error { return s.docker.ContainerUnpause(ctx, s.ID) })
}

func (s *server) act(verb string, f func(ctx context.Context) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := f(ctx); err != nil {
		s.t.Fatalf("%s %s: %v", verb, s.part, err)
	}
}

// start starts a stopped server again, on the same port.
func (s *server) start(ready func(context.Context, *server) error) {
	s.t.Helper()
	s.act("start", func(ctx context.Context) error {
		if err := s.docker.ContainerStart(ctx, s.ID, container.StartOptions{}); err != nil {
			return err
		}
		return s.await(ctx, ready)
	})
}

// run runs a program in the server's container, as user, and returns its output,
// both streams in one. A status other than 0 is an error.
func (s *server) run(ctx context.Context, user string, argv ...string) (string, error) {
	created, err := s.docker.ContainerExecCreate(ctx, s.ID, container.ExecOptions{
		User: user, Cmd: argv, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return "", fmt.Errorf("run %s: %w", argv[0], err)
	}
	attached, err := s.docker.ContainerExecAttach(ctx, created.ID, container.ExecAttachOptions{})
	if err != nil {
		return "", fmt.Errorf("run %s: %w", argv[0], err)
	}
	defer attached.Close()
	// The hijacked connection does not know the context.
	stop := context.AfterFunc(ctx, attached.Close)
	defer stop()
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &out, attached.Reader); err != nil {
		return out.String(), fmt.Errorf("read output of %s: %w", argv[0], err)
	}
	state, err := s.docker.ContainerExecInspect(ctx, created.ID)
	if err != nil {
		return out.String(), fmt.Errorf("run %s: %w", argv[0], err)
	}
	if state.ExitCode != 0 {
		return out.String(), fmt.Errorf("%s ended with status %d: %s", argv[0], state.ExitCode, lastLines(out.String(), 10))
	}
	return out.String(), nil
}

// archiveOf packs files for CopyToContainer. Only root can read them until the
// start script hands them over.
func archiveOf(prefix string, files map[string][]byte) (io.Reader, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: prefix, Mode: 0o755}); err != nil {
		return nil, fmt.Errorf("pack files: %w", err)
	}
	for name, content := range files {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: prefix + name, Mode: 0o600, Size: int64(len(content))}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("pack %s: %w", name, err)
		}
		if _, err := w.Write(content); err != nil {
			return nil, fmt.Errorf("pack %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack files: %w", err)
	}
	return &buf, nil
}

// freePort returns a TCP port nobody listens on at host. It lies below those the
// kernel gives to outgoing connections, so that a server which is stopped for a
// while finds its port free again. Another process may take it before the caller
// does; callers try again then.
func freePort(host string) (int, error) {
	const first, beyond, attempts = 15000, 32000, 100
	for attempt := 1; ; attempt++ {
		port := first + rand.IntN(beyond-first)
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			err = l.Close()
		}
		if err == nil {
			return port, nil
		}
		if attempt == attempts || !errors.Is(err, syscall.EADDRINUSE) {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
