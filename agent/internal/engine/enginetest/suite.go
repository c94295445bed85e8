// Package enginetest is what every engine must pass: inspecting, planning,
// running and cleaning up, with a failure at each step.
package enginetest

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Site is a source with something in it and a target with something else.
type Site struct {
	Engine engine.Engine
	// Endpoint is a side with the login of a purpose. Each call may be used for
	// one more set of sessions.
	Endpoint func(side wire.Side, purpose wire.Purpose) engine.Endpoint
	// Reset puts the target into its first state.
	Reset func(t *testing.T)
	// Untouched fails unless the target is in that state. Copied fails unless it
	// equals the source. Both fail when anything else of an operation is left at
	// the target.
	Untouched, Copied func(t *testing.T)
}

// patience is how long an engine may take to come back once it was told to stop,
// its undoing included.
const patience = 30 * time.Second

// Run checks the engine at a site.
func Run(t *testing.T, site Site) {
	t.Run("plan is deterministic", func(t *testing.T) {
		first, second := plan(t, site), plan(t, site)
		require.Equal(t, string(first.Shape), string(second.Shape))
		var head wire.ShapeHead
		require.NoError(t, json.Unmarshal(first.Shape, &head))
		require.Equal(t, wire.KindClone, head.Kind)
		require.Equal(t, first.Estimates.Tables, head.Tables)
		require.NotEmpty(t, head.Source.Server)
		require.NotEmpty(t, head.Options)
	})

	var steps []wire.Step
	t.Run("phases", func(t *testing.T) {
		site.Reset(t)
		job, h := newJob(t, site), &Host{}
		report, err := site.Engine.Run(context.Background(), job, h)
		require.NoError(t, err)
		site.Copied(t)
		steps = h.Begun
		requireOrdered(t, steps)
		require.ElementsMatch(t, h.Begun, h.Ended)
		require.Len(t, h.Tables, len(report.Tables))
		for _, table := range report.Tables {
			require.True(t, table.Match, table.Name)
			require.Equal(t, table.SourceDigest, table.Digest, table.Name)
		}
		for range 2 { // cleaning up after success changes nothing, however often
			result, err := site.Engine.Cleanup(context.Background(), job.OperationID, site.Endpoint(wire.Target, wire.PurposeWrite))
			require.NoError(t, err)
			require.True(t, result.Switched)
			require.Empty(t, result.Removed)
			site.Copied(t)
		}
	})
	if len(steps) == 0 {
		t.FailNow()
	}

	t.Run("cleanup of nothing", func(t *testing.T) {
		site.Reset(t)
		result, err := site.Engine.Cleanup(context.Background(), newID(), site.Endpoint(wire.Target, wire.PurposeWrite))
		require.NoError(t, err)
		require.False(t, result.Switched)
		require.Empty(t, result.Removed)
		site.Untouched(t)
	})

	t.Run("another shape is refused", func(t *testing.T) {
		site.Reset(t)
		job := newJob(t, site)
		job.Shape = append(json.RawMessage{}, job.Shape...)
		at := slices.Index(job.Shape, 'q') // in "sequence", "unique" and many more
		require.Positive(t, at)
		job.Shape[at] = 'Q'
		_, err := site.Engine.Run(context.Background(), job, &Host{})
		require.Equal(t, wire.CodePlanChanged, code(t, err))
		site.Untouched(t)
	})

	after := slices.Index(steps, wire.StepSwitch)
	for i, step := range steps {
		if i <= after {
			t.Run("refused at "+string(step), func(t *testing.T) { refused(t, site, step) })
		}
		t.Run("cancelled at "+string(step), func(t *testing.T) { cancelled(t, site, step, i > after) })
		t.Run("killed at "+string(step), func(t *testing.T) { killed(t, site, step, i > after) })
	}
}

// refused: the host does not let a step begin.
func refused(t *testing.T, site Site, step wire.Step) {
	site.Reset(t)
	refusal := &operation.Error{Step: step, Code: wire.CodeAuditUnavailable, Reason: "no audit device takes events"}
	job := newJob(t, site)
	_, err := site.Engine.Run(context.Background(), job, &Host{AtBegin: func(s wire.Step) error {
		if s == step {
			return refusal
		}
		return nil
	}})
	require.Equal(t, wire.CodeAuditUnavailable, code(t, err))
	cleaned(t, site, job, false)
}

// cancelled: the operation is stopped while a step begins.
func cancelled(t *testing.T, site Site, step wire.Step, switched bool) {
	site.Reset(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	job := newJob(t, site)
	var at time.Time
	_, err := site.Engine.Run(ctx, job, &Host{AtBegin: func(s wire.Step) error {
		if s == step {
			at = time.Now()
			cancel()
		}
		return nil
	}})
	require.Less(t, time.Since(at), patience)
	if switched {
		require.Equal(t, wire.CodeCleanup, code(t, err))
	} else {
		require.Equal(t, wire.CodeCancelled, code(t, err))
	}
	cleaned(t, site, job, switched)
}

// killed: from a step on nothing gets through any more, so that the engine
// cannot undo anything, as if its process had been killed.
func killed(t *testing.T, site Site, step wire.Step, switched bool) {
	site.Reset(t)
	job := newJob(t, site)
	var cut cutter
	job.Source.Dial, job.Target.Dial = cut.wrap(job.Source.Dial), cut.wrap(job.Target.Dial)
	_, err := site.Engine.Run(context.Background(), job, &Host{AtBegin: func(s wire.Step) error {
		if s == step {
			cut.cut()
		}
		return nil
	}})
	require.Error(t, err)
	cleaned(t, site, job, switched)
}

// cleaned cleans up twice and looks at the target.
func cleaned(t *testing.T, site Site, job engine.Job, switched bool) {
	t.Helper()
	for round := range 2 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		result, err := site.Engine.Cleanup(ctx, job.OperationID, site.Endpoint(wire.Target, wire.PurposeWrite))
		cancel()
		require.NoError(t, err)
		require.Equal(t, switched, result.Switched)
		if round > 0 {
			require.Empty(t, result.Removed)
		}
		if switched {
			site.Copied(t)
		} else {
			site.Untouched(t)
		}
	}
}

func plan(t *testing.T, site Site) wire.Plan {
	t.Helper()
	source, err := site.Engine.Inspect(context.Background(), wire.Source, site.Endpoint(wire.Source, wire.PurposeInspect))
	require.NoError(t, err)
	target, err := site.Engine.Inspect(context.Background(), wire.Target, site.Endpoint(wire.Target, wire.PurposeInspect))
	require.NoError(t, err)
	planned, err := site.Engine.Plan(wire.KindClone, nil, source, target)
	require.NoError(t, err)
	return planned
}

func newID() string { return "clone-" + ulid.Make().String() }

func newJob(t *testing.T, site Site) engine.Job {
	t.Helper()
	return engine.Job{
		OperationID: newID(), Shape: plan(t, site).Shape, TempDir: t.TempDir(),
		Source: site.Endpoint(wire.Source, wire.PurposeRead), Target: site.Endpoint(wire.Target, wire.PurposeWrite),
	}
}

func code(t *testing.T, err error) wire.Code {
	t.Helper()
	var e *operation.Error
	require.ErrorAs(t, err, &e)
	return e.Code
}

// requireOrdered makes sure that steps begin in the order of wire.Steps.
func requireOrdered(t *testing.T, steps []wire.Step) {
	t.Helper()
	all := wire.Steps()
	require.True(t, slices.IsSortedFunc(steps, func(a, b wire.Step) int { return slices.Index(all, a) - slices.Index(all, b) }), steps)
}

// cutter closes every connection made through it, and makes no more.
type cutter struct {
	mutex sync.Mutex
	gone  bool
	open  []net.Conn
}

var errCut = errors.New("cut off")

func (c *cutter) wrap(dial func(context.Context) (net.Conn, error)) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		c.mutex.Lock()
		defer c.mutex.Unlock()
		if c.gone {
			return nil, errors.Join(errCut, conn.Close())
		}
		c.open = append(c.open, conn)
		return conn, nil
	}
}

func (c *cutter) cut() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.gone = true
	for _, conn := range c.open {
		_ = conn.Close() // it is to break
	}
}
