package docker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/gateway"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/sandbox"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// undoTime is for taking back what was begun when the caller's time is over.
const undoTime = 30 * time.Second

// Start makes a sandbox and starts its worker, which may still be loading when
// it returns. Ctx ends the starting, not the sandbox. On error nothing is left,
// or Clean finds it.
func (s *Sandbox) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Box, error) {
	if err := sandbox.CheckOperationID(spec.OperationID); err != nil {
		return nil, failure("the operation's id is not one", "", err)
	}
	if len(spec.Endpoints) == 0 {
		return nil, failure("the sandbox would reach no database", "", nil)
	}
	made, err := s.prepared(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.reserve(spec.OperationID); err != nil {
		return nil, err
	}
	b, err := s.start(ctx, spec, made)
	if err != nil {
		s.release(spec.OperationID)
		return nil, err
	}
	s.mu.Lock()
	s.boxes[spec.OperationID] = b
	s.mu.Unlock()
	s.log.Debug("sandbox started", "operation_id", spec.OperationID, "container_id", b.id)
	return b, nil
}

// reserve makes sure that an operation has one sandbox.
func (s *Sandbox) reserve(operationID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.boxes[operationID]; ok {
		return &operation.Error{Step: wire.StepSandbox, Code: wire.CodeConflict, Reason: "the operation has a sandbox already"}
	}
	s.boxes[operationID] = nil
	return nil
}

func (s *Sandbox) release(operationID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.boxes, operationID)
}

func (s *Sandbox) start(ctx context.Context, spec sandbox.Spec, made *workerImage) (*box, error) {
	b := &box{sandbox: s, operationID: spec.OperationID}
	fail := func(reason string, err error) (*box, error) {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		var known *operation.Error
		if errors.As(err, &known) {
			return nil, errors.Join(err, b.undo(undo))
		}
		return nil, failure(reason, "", errors.Join(err, b.undo(undo)))
	}
	forward, err := gateway.Open(gateway.Config{
		Dir: s.dir(spec.OperationID), Endpoints: spec.Endpoints, MaxBytes: spec.MaxBytes, Dial: s.config.Dial,
	}, s.log.Named("gateway").With("operation_id", spec.OperationID))
	if err != nil {
		return fail("the sandbox's sockets cannot be made", err)
	}
	b.gateway = forward

	if b.id, made, err = s.create(ctx, spec, made); err != nil {
		return fail("the sandbox's container cannot be made", err)
	}
	if err := ctx.Err(); err != nil {
		return fail("the sandbox's container cannot be started", err)
	}
	b.facts = sandbox.Facts{ContainerID: b.id, SandboxFacts: wire.SandboxFacts{WorkerImageID: made.id, BaseImageID: made.baseID, Runtime: made.runtime}}

	// Attached before it starts, the worker cannot say anything unheard, and the
	// switch on its stdin is set from the beginning.
	attached, err := s.docker.ContainerAttach(ctx, b.id, container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		return fail("the sandbox's container cannot be attached to", err)
	}
	b.attach(attached)
	if err := s.docker.ContainerStart(ctx, b.id, container.StartOptions{}); err != nil {
		return fail("the sandbox's container cannot be started", err)
	}
	b.watch()
	b.facts.Container = s.observe(ctx, b.id)
	return b, nil
}

// observe asks Docker what the running container really has, for the receipt. An
// operation does not fail for want of the answer; it is then not claimed.
func (s *Sandbox) observe(ctx context.Context, id string) *wire.ContainerFacts {
	found, err := s.docker.ContainerInspect(ctx, id)
	if err != nil || found.ContainerJSONBase == nil || found.HostConfig == nil || found.Config == nil {
		s.log.Warn("docker does not tell what the sandbox has", "container_id", id, "error", err)
		return nil
	}
	return &wire.ContainerFacts{
		Network: string(found.HostConfig.NetworkMode), User: found.Config.User, ReadOnlyRoot: found.HostConfig.ReadonlyRootfs,
		CapabilitiesDropped: strings.Join(found.HostConfig.CapDrop, ","), CapabilitiesAdded: strings.Join(found.HostConfig.CapAdd, ","),
		MemoryBytes: strconv.FormatInt(found.HostConfig.Memory, 10),
	}
}

// create makes the container. An error that leaves open whether it was made is
// resolved by looking for it.
func (s *Sandbox) create(ctx context.Context, spec sandbox.Spec, made *workerImage) (string, *workerImage, error) {
	name := s.name(spec.OperationID)
	for attempt := 0; ; attempt++ {
		created := time.Now()
		config, host, err := s.containerConfig(spec, made, created)
		if err != nil {
			return "", made, err
		}
		response, err := s.createOnce(ctx, config, host, name)
		if err == nil {
			for _, warning := range response.Warnings {
				s.log.Warn("docker limits the sandbox less than asked", "warning", warning)
			}
			return response.ID, made, nil
		}
		if errdefs.IsNotFound(err) && attempt == 0 {
			// Somebody removed the image.
			if err := s.Prepare(ctx); err != nil {
				return "", made, err
			}
			if made, err = s.prepared(ctx); err != nil {
				return "", made, err
			}
			continue
		}
		if errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err) {
			return "", made, fmt.Errorf("create container: %w", err)
		}
		id, lookErr := s.findCreated(ctx, name, config.Labels[LabelCreated])
		switch {
		case id != "":
			s.log.Warn("container was made although docker did not say so", "container_id", id, "error", err)
			return id, made, nil
		case errdefs.IsConflict(err):
			return "", made, &operation.Error{
				Step: wire.StepSandbox, Code: wire.CodeConflict, Reason: "a container of this operation's name exists already",
				Hint: "it is of an earlier attempt, or not the agent's: " + name, Err: err,
			}
		default:
			return "", made, errors.Join(fmt.Errorf("create container: %w", err), lookErr)
		}
	}
}

// createOnce is not ended with ctx: a create that is given up is carried out all
// the same, some time after nobody looks for its container any more.
func (s *Sandbox) createOnce(ctx context.Context, config *container.Config, host *container.HostConfig, name string) (container.CreateResponse, error) {
	if err := ctx.Err(); err != nil {
		return container.CreateResponse{}, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	return s.docker.ContainerCreate(ctx, config, host, nil, nil, name)
}

// How long, and how often, a container is looked for whose creation was not
// answered.
const (
	lookTime  = 2 * time.Second
	lookEvery = 100 * time.Millisecond
)

// findCreated returns the id of the container of that name if it was made by the
// attempt of that time, or "". It works after ctx has ended.
func (s *Sandbox) findCreated(ctx context.Context, name, created string) (string, error) {
	if ctx.Err() != nil {
		return "", nil // createOnce did not even ask
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTime)
	defer cancel()
	again := time.NewTicker(lookEvery)
	defer again.Stop()
	for {
		found, err := s.docker.ContainerInspect(ctx, name)
		if err == nil {
			labels := found.Config.Labels
			if labels[LabelInstance] != s.instance || labels[LabelCreated] != created {
				return "", nil // another one has the name
			}
			return found.ID, nil
		}
		if !errdefs.IsNotFound(err) && ctx.Err() == nil {
			return "", fmt.Errorf("look for the container: %w", err)
		}
		select {
		case <-ctx.Done():
			return "", nil
		case <-again.C:
		}
	}
}
