package worker

import (
	"context"
	"fmt"
	"os/exec"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
)

// runTool runs a client program for an engine. This is the one place where the
// agent's code starts a process beside its own.
func runTool(ctx context.Context, t engine.Tool) error {
	command := exec.CommandContext(ctx, t.Path, t.Args...)
	// Never the worker's own environment, and not none either, which would mean
	// the same.
	command.Env = append([]string{}, t.Env...)
	command.Stdout, command.Stderr = t.Stdout, t.Stderr
	// A child of the program that keeps its output open does not hold us up.
	command.WaitDelay = time.Second
	if err := command.Run(); err != nil {
		return fmt.Errorf("run client program: %w", err)
	}
	return nil
}
