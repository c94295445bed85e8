package docker

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/gateway"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
)

// List finds containers by label and directories by name. A directory without a
// container has no id.
func (s *Sandbox) List(ctx context.Context) ([]sandbox.Info, error) {
	found, err := s.containers(ctx, filters.Arg("label", LabelOperation))
	if err != nil {
		return nil, failure("the sandboxes of this host cannot be listed", "", err)
	}
	seen := make(map[string]bool, len(found))
	for _, info := range found {
		seen[info.OperationID] = true
	}
	entries, err := os.ReadDir(s.config.RunDir)
	if err != nil {
		return nil, failure("the run directory cannot be read", "", err)
	}
	for _, entry := range entries {
		if id := entry.Name(); entry.IsDir() && !seen[id] && sandbox.CheckOperationID(id) == nil {
			found = append(found, sandbox.Info{OperationID: id, Agent: s.config.AgentName})
		}
	}
	return found, nil
}

// containers lists this agent's containers that match more as well.
func (s *Sandbox) containers(ctx context.Context, more filters.KeyValuePair) ([]sandbox.Info, error) {
	summaries, err := s.docker.ContainerList(ctx, container.ListOptions{
		All:     true,
		Filters: filters.NewArgs(filters.Arg("label", LabelInstance+"="+s.instance), more),
	})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	infos := make([]sandbox.Info, 0, len(summaries))
	for _, summary := range summaries {
		infos = append(infos, sandbox.Info{
			ID:          summary.ID,
			OperationID: summary.Labels[LabelOperation],
			Agent:       summary.Labels[LabelAgent],
			Running:     summary.State == container.StateRunning || summary.State == container.StatePaused,
		})
	}
	return infos, nil
}

// Clean removes an operation's sandbox, whether this process or an earlier one
// made it.
func (s *Sandbox) Clean(ctx context.Context, operationID string) error {
	if err := sandbox.CheckOperationID(operationID); err != nil {
		return failure("the operation's id is not one", "", err)
	}
	s.mu.Lock()
	b := s.boxes[operationID]
	s.mu.Unlock()
	if b != nil {
		if err := b.Remove(ctx); err != nil {
			return err
		}
	}
	found, err := s.containers(ctx, filters.Arg("label", LabelOperation+"="+operationID))
	if err != nil {
		return failure("the operation's sandbox cannot be looked for", "", err)
	}
	var errs []error
	for _, info := range found {
		errs = append(errs, s.removeContainer(ctx, info.ID))
	}
	errs = append(errs, gateway.Remove(s.dir(operationID)))
	if err := errors.Join(errs...); err != nil {
		return failure("the operation's sandbox cannot be removed", "", err)
	}
	return nil
}
