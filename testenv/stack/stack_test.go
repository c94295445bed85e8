package stack

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// What killed agents leave in Docker goes with their stack: sandboxes and the
// containers that images are made of. What another stack's agent of the same name
// has stays.
func TestStack_RemovesWhatAgentsLeft(t *testing.T) {
	t.Parallel()
	docker := testenv.Docker(t)
	mine := &Stack{T: t, runDir: t.TempDir(), agents: []string{AgentName, "host2"}}
	other := &Stack{T: t, runDir: t.TempDir(), agents: []string{AgentName}}
	t.Cleanup(mine.removeSandboxes)
	t.Cleanup(other.removeSandboxes)
	leave := func(name, instance string, labels map[string]string) string {
		labels["io.dbops.instance"] = instance
		made, err := docker.ContainerCreate(t.Context(), &container.Config{
			Image: testenv.Image(t, testenv.PartTools), Entrypoint: []string{"/never"}, Labels: labels,
		}, nil, nil, nil, name)
		require.NoError(t, err)
		return made.ID
	}
	gone := func(id string) bool {
		_, err := docker.ContainerInspect(t.Context(), id)
		return errdefs.IsNotFound(err)
	}
	build := leave("dbops-build-host1-"+mine.instance(AgentName), mine.instance(AgentName), map[string]string{"io.dbops.agent": AgentName})
	sandbox := leave("", mine.instance("host2"), map[string]string{"io.dbops.operation": "op-1"})
	foreign := leave("dbops-build-host1-"+other.instance(AgentName), other.instance(AgentName), map[string]string{"io.dbops.agent": AgentName})

	mine.removeSandboxes()
	require.True(t, gone(build))
	require.True(t, gone(sandbox))
	require.False(t, gone(foreign))
	other.removeSandboxes()
	require.True(t, gone(foreign))
}
