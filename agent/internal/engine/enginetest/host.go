package enginetest

import (
	"context"
	"encoding/json"
	"sync"

	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/engine"
	"github.com/dbops-io/vault-plugin-secrets-dbops/agent/internal/operation"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Host records what a run tells, and lets a test step in.
type Host struct {
	AtBegin, AtEnd func(wire.Step) error // nil: nothing happens

	mutex        sync.Mutex
	Begun, Ended []wire.Step
	Tables       []operation.TableReport
}

var _ engine.Host = (*Host)(nil)

// Begin records the step.
func (h *Host) Begin(_ context.Context, step wire.Step, _ json.RawMessage) error {
	return h.record(&h.Begun, step, h.AtBegin)
}

// End records the step.
func (h *Host) End(_ context.Context, step wire.Step, _, _ int64) error {
	return h.record(&h.Ended, step, h.AtEnd)
}

func (h *Host) record(steps *[]wire.Step, step wire.Step, then func(wire.Step) error) error {
	h.mutex.Lock()
	*steps = append(*steps, step)
	h.mutex.Unlock()
	if then != nil {
		return then(step)
	}
	return nil
}

// Progress is for people.
func (*Host) Progress(wire.Progress) {}

// Verified records the table.
func (h *Host) Verified(_ context.Context, t operation.TableReport) error {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.Tables = append(h.Tables, t)
	return nil
}
