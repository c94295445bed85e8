package testenv

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"
)

// deadRunID is the id of a run that has ended.
func deadRunID(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	require.NoError(t, cmd.Start())
	id := fmt.Sprintf("%s-%d-%s-00000000", hostID(), cmd.Process.Pid, startTime(cmd.Process.Pid))
	require.False(t, ownerGone(id))
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.True(t, ownerGone(id))
	return id
}

// Only the dead of this boot and pid namespace are known to be dead; whatever
// cannot be judged is left alone.
func TestOwnerGone(t *testing.T) {
	t.Parallel()
	deadRunID(t)
	require.False(t, ownerGone(runID()))
	require.True(t, ownerGone(hostID()+"-1-1-00000000"), "pid 1 was not started at tick 1: the pid is used again")
	for _, id := range []string{"", "image", "other-4026531836-1-1-00", hostID() + "-x-1-00", hostID() + "-1-1"} {
		require.False(t, ownerGone(id), id)
	}
}

// What a killed run left is removed: its directory, the programs that still run
// from it, its containers. What a living one has stays.
func TestSweep(t *testing.T) {
	t.Parallel()
	docker := Docker(t)
	dead := deadRunID(t)

	dir, err := os.MkdirTemp("", dirPrefix+dead+"_vault-")
	require.NoError(t, err)
	sleep, err := exec.LookPath("sleep")
	require.NoError(t, err)
	_, err = copyProgram(filepath.Join(dir, "orphan"), sleep)
	require.NoError(t, err)
	orphan := exec.Command(filepath.Join(dir, "orphan"), "60")
	require.NoError(t, orphan.Start())
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()

	create := func(owner string) string {
		created, err := docker.ContainerCreate(t.Context(),
			&container.Config{Image: Image(t, PartTools), Cmd: []string{"true"}, Labels: map[string]string{Label: owner}},
			&container.HostConfig{NetworkMode: "none"}, nil, nil, "")
		require.NoError(t, err)
		return created.ID
	}
	left, ours := create(dead), create(runID())
	t.Cleanup(func() {
		require.NoError(t, docker.ContainerRemove(context.Background(), ours, container.RemoveOptions{Force: true}))
	})
	kept, err := runDir("kept")
	require.NoError(t, err)
	t.Cleanup(func() { removeAll(t, kept) })

	sweepDirs()
	sweepContainers(docker)

	select {
	case err := <-ended:
		require.Error(t, err, "it was killed")
	case <-time.After(10 * time.Second):
		t.Fatal("the orphan still runs")
	}
	require.NoDirExists(t, dir)
	require.DirExists(t, kept)
	_, err = docker.ContainerInspect(t.Context(), left)
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	_, err = docker.ContainerInspect(t.Context(), ours)
	require.NoError(t, err)
}

// A child ends with us although nobody cleans up: the kernel sees to it.
func TestStartProcess_EndsWithItsParent(t *testing.T) {
	t.Parallel()
	if os.Getenv("TESTENV_PARENT") != "" {
		p, err := startProcess(os.DevNull, nil, "/bin/sleep", "600")
		if err != nil {
			os.Exit(1)
		}
		fmt.Printf("child %d\n", p.pid())
		select {} // until killed
	}

	parent := exec.Command(os.Args[0], "-test.run=^TestStartProcess_EndsWithItsParent$")
	parent.Env = append(os.Environ(), "TESTENV_PARENT=1")
	out, err := parent.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, parent.Start())
	var child int
	_, err = fmt.Fscanf(out, "child %d\n", &child)
	require.NoError(t, err)
	require.NotEmpty(t, startTime(child))

	require.NoError(t, parent.Process.Kill())
	require.Error(t, parent.Wait())
	require.Eventually(t, func() bool {
		// Whoever inherits it may not have waited for it yet.
		return startTime(child) == "" || statField(child, 3) == "Z"
	}, 30*time.Second, 10*time.Millisecond)
}

// recorder is a TB that remembers how it ended.
type recorder struct {
	TB
	skipped, fatal string
}

func (r *recorder) Helper() {}
func (r *recorder) Skipf(format string, args ...any) {
	r.skipped = fmt.Sprintf(format, args...)
	panic(r)
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.fatal = fmt.Sprintf(format, args...)
	panic(r)
}

// A missing part skips a test; it is red where DBOPS_REQUIRE names it.
func TestRequire_MissingPart(t *testing.T) {
	ending := func(list string) *recorder {
		t.Setenv("DBOPS_REQUIRE", list)
		r := &recorder{TB: t}
		func() {
			defer func() { require.Same(t, r, recover()) }()
			Require(r, "tape-robot")
		}()
		return r
	}
	for _, list := range []string{"", "docker, vault", "tape"} {
		r := ending(list)
		require.Contains(t, r.skipped, "tape-robot is missing", list)
		require.Empty(t, r.fatal, list)
	}
	for _, list := range []string{"all", "docker, tape-robot", "vault,all"} {
		r := ending(list)
		require.Contains(t, r.fatal, "tape-robot is required and missing", list)
		require.Empty(t, r.skipped, list)
	}
}

// A program's clean-ups run last first, after Fatalf too, and the status says
// how it ended.
func TestRun(t *testing.T) {
	t.Parallel()
	var order []string
	var dir string
	code := Run(io.Discard, func(tb TB) {
		dir = tb.TempDir()
		tb.Cleanup(func() { order = append(order, "first") })
		tb.Cleanup(func() {
			order = append(order, "second")
			tb.Fatalf("a clean-up that gives up does not keep the others from running")
		})
		tb.Fatalf("enough")
	})
	require.Equal(t, 1, code)
	require.Equal(t, []string{"second", "first"}, order)
	require.NoDirExists(t, dir)
	require.Equal(t, 0, Run(io.Discard, func(TB) {}))
}
