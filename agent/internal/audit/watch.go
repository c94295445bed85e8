package audit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Devices tells how many audit devices would record an event in clear. None is a
// *wire.Error of CodeAuditUnavailable; any other error means that it could not
// be found out.
type Devices interface {
	AuditDevices(ctx context.Context) (int, error)
}

// Pauses of the watch.
const (
	watchEvery  = time.Minute
	watchSooner = 2 * time.Second // while there is none, or nothing is known
)

// Watch knows whether events are recorded. The plugin cannot see audit devices,
// so the agent looks: at the start, at each claim, before each switch, and every
// minute. An outage of Vault changes nothing: no event gets through then anyway.
type Watch struct {
	devices Devices
	log     hclog.Logger

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when the answer changes
	known   bool          // whether there was an answer yet
	count   int
	err     error // why there is none
}

// NewWatch makes a watch that knows nothing yet, and so is not ready.
func NewWatch(devices Devices, log hclog.Logger) *Watch {
	return &Watch{devices: devices, log: log.Named("audit"), changed: make(chan struct{})}
}

// Run looks every minute until ctx ends, and at once when somebody else's look
// has found something new.
func (w *Watch) Run(ctx context.Context) {
	for {
		every := watchSooner
		if err := w.Check(ctx); err == nil {
			every = watchEvery
		} else if ctx.Err() == nil && !unavailable(err) {
			w.log.Debug("cannot look at audit devices", "error", err)
		}
		w.mu.Lock()
		changed := w.changed
		w.mu.Unlock()
		if !rest(ctx, every, changed) {
			return
		}
	}
}

// Check looks now. Nil means that events are recorded.
func (w *Watch) Check(ctx context.Context) error {
	count, err := w.devices.AuditDevices(ctx)
	if err != nil && !unavailable(err) {
		return fmt.Errorf("check audit: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch was := w.known && w.err == nil; {
	case err != nil && (was || !w.known):
		w.log.Error("events would not be recorded: no operation starts, running ones wait", "error", err)
	case err == nil && !was:
		w.log.Info("events are recorded", "devices", count)
	}
	news := !w.known || (err == nil) != (w.err == nil)
	w.known, w.count, w.err = true, count, err
	if news {
		close(w.changed)
		w.changed = make(chan struct{})
	}
	return err
}

// Ready reports whether the last answer was yes.
func (w *Watch) Ready() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.known && w.err == nil
}

// Count is the number of devices, -1 while nothing is known.
func (w *Watch) Count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.known {
		return -1
	}
	return w.count
}

// Problem is why no event is recorded, in a sentence; "" when they are, or while
// nothing is known. untuned says that the mount hides them from the devices.
func (w *Watch) Problem() (reason string, untuned bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var coded *wire.Error
	if !w.known || !errors.As(w.err, &coded) {
		return "", false
	}
	return coded.Reason, coded.Field == wire.AuditTuning
}

// Await waits until events are recorded, at most for patience, and then returns
// why they are not.
func (w *Watch) Await(ctx context.Context, patience time.Duration) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		w.mu.Lock()
		ready, changed, err := w.known && w.err == nil, w.changed, w.err
		w.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-timer.C:
			if err == nil {
				err = &wire.Error{Code: wire.CodeAuditUnavailable, Reason: "it is not known whether Vault has an audit device"}
			}
			return err
		}
	}
}

func unavailable(err error) bool {
	var coded *wire.Error
	return errors.As(err, &coded) && coded.Code == wire.CodeAuditUnavailable
}
