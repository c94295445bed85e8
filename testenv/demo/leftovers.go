package main

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// agentName is the demo's agent; its sandboxes are found by it.
const agentName = "dbops-demo"

// dirPrefix starts the name of the directory for the agent's sockets. It is short
// because the path of a unix socket may have 107 bytes only.
const dirPrefix = "dbops-demo-"

// alone makes sure that no other demo runs on this machine: its sandboxes have
// the same agent's name.
func alone(t testenv.TB) {
	lock, err := os.OpenFile(filepath.Join(os.TempDir(), "dbops-demo.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatalf("demo: %v", err)
	}
	t.Cleanup(func() { _ = lock.Close() }) // and with it the lock
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatalf("demo: another demo runs on this machine")
	}
}

// removeLeftovers removes what a demo that was killed could not: testenv sweeps
// its own servers, directories and programs when it is first used; sandboxes and
// the worker's image are the agent's and are known by their labels.
func removeLeftovers(t testenv.TB) {
	docker := testenv.Docker(t)
	t.TempDir()
	removeMade := func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		boxes, err := docker.ContainerList(ctx, container.ListOptions{
			All: true, Filters: filters.NewArgs(filters.Arg("label", "io.dbops.agent="+agentName)),
		})
		if err != nil {
			t.Logf("list sandboxes: %v", err)
		}
		for _, box := range boxes {
			if err := docker.ContainerRemove(ctx, box.ID, container.RemoveOptions{Force: true}); err != nil {
				t.Logf("remove sandbox: %v", err)
			}
		}
		images, err := docker.ImageList(ctx, image.ListOptions{
			Filters: filters.NewArgs(filters.Arg("label", "io.dbops.image.agent="+agentName)),
		})
		if err != nil {
			t.Logf("list worker images: %v", err)
		}
		for _, made := range images {
			if _, err := docker.ImageRemove(ctx, made.ID, image.RemoveOptions{Force: true}); err != nil {
				t.Logf("remove worker image: %v", err)
			}
		}
	}
	removeMade()
	t.Cleanup(removeMade)
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		t.Fatalf("demo: %v", err)
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			t.Logf("remove %s: %v", dir, err)
		}
	}
}
