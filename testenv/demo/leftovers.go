package main

import (
	"context"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// agentName is the demo's agent; its sandboxes are found by it.
const agentName = "dbops-demo"

// removeLeftovers removes what a demo that was killed could not: testenv sweeps
// its own servers, directories and programs when it is first used; the sandboxes
// are the agent's and are known by their label.
func removeLeftovers(t testenv.TB) {
	docker := testenv.Docker(t)
	t.TempDir()
	removeSandboxes := func() {
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
	}
	removeSandboxes()
	t.Cleanup(removeSandboxes)
}
