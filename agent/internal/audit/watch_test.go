package audit

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// vaultDevices answers what it is told to.
type vaultDevices struct {
	mu    sync.Mutex
	count int
	err   error
}

func (d *vaultDevices) AuditDevices(context.Context) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.count, d.err
}

func (d *vaultDevices) become(count int, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count, d.err = count, err
}

var (
	errNoDevice = &wire.Error{Code: wire.CodeAuditUnavailable, Reason: "none"}
	errAway     = errors.New("vault is away")
)

// Nothing is ready before Vault has said so, and an outage changes nothing.
func TestWatch_OnlyAnswersCount(t *testing.T) {
	t.Parallel()
	d := &vaultDevices{err: errAway}
	w := NewWatch(d, hclog.NewNullLogger())
	require.False(t, w.Ready())
	require.ErrorIs(t, w.Check(context.Background()), errAway)
	require.False(t, w.Ready())
	require.Equal(t, -1, w.Count())
	var coded *wire.Error
	require.ErrorAs(t, w.Await(context.Background(), time.Millisecond), &coded)
	require.Equal(t, wire.CodeAuditUnavailable, coded.Code)

	d.become(2, nil)
	require.NoError(t, w.Check(context.Background()))
	require.True(t, w.Ready())
	require.Equal(t, 2, w.Count())
	d.become(0, errAway)
	require.Error(t, w.Check(context.Background()))
	require.True(t, w.Ready(), "an outage is not a missing device")
	d.become(0, errNoDevice)
	require.ErrorIs(t, w.Check(context.Background()), errNoDevice)
	require.False(t, w.Ready())
}

// Why nothing is recorded can be told to others, once it is known.
func TestWatch_Problem(t *testing.T) {
	t.Parallel()
	d := &vaultDevices{err: errAway}
	w := NewWatch(d, hclog.NewNullLogger())
	require.Error(t, w.Check(context.Background()))
	reason, untuned := w.Problem()
	require.Empty(t, reason)
	require.False(t, untuned)

	d.become(0, errNoDevice)
	require.Error(t, w.Check(context.Background()))
	reason, untuned = w.Problem()
	require.Equal(t, "none", reason)
	require.False(t, untuned)

	d.become(0, &wire.Error{Code: wire.CodeAuditUnavailable, Field: wire.AuditTuning, Reason: "hidden"})
	require.Error(t, w.Check(context.Background()))
	reason, untuned = w.Problem()
	require.Equal(t, "hidden", reason)
	require.True(t, untuned)

	d.become(1, nil)
	require.NoError(t, w.Check(context.Background()))
	reason, untuned = w.Problem()
	require.Empty(t, reason)
	require.False(t, untuned)
}

// Who waits for a device goes on as soon as there is one.
func TestWatch_AwaitEndsWithADevice(t *testing.T) {
	t.Parallel()
	d := &vaultDevices{err: errNoDevice}
	w := NewWatch(d, hclog.NewNullLogger())
	require.Error(t, w.Check(context.Background()))
	waited := make(chan error, 1)
	go func() { waited <- w.Await(context.Background(), time.Minute) }()
	d.become(1, nil)
	require.NoError(t, w.Check(context.Background()))
	require.NoError(t, <-waited)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.NoError(t, w.Await(ctx, time.Minute), "ready is ready")
}

// Nothing is sent while no device would write it down; it follows later.
func TestSink_HoldsBackWithoutDevice(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	w := NewWatch(&vaultDevices{count: 1}, hclog.NewNullLogger())
	s, err := Open(Options{Dir: t.TempDir(), Agent: "a1", Delay: time.Millisecond, Ready: w.Ready, Log: hclog.NewNullLogger()}, p)
	require.NoError(t, err)
	require.NoError(t, s.Observe(p.head(), time.Now()))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { s.Run(ctx); close(ended) }()
	require.NoError(t, s.Record(ctx, event("op", "one")))
	brief, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	require.Error(t, s.Flush(brief, "op"))
	require.Empty(t, p.objects())
	require.NoError(t, w.Check(ctx))
	require.NoError(t, s.Flush(soon(t), "op"))
	require.Equal(t, []string{"one"}, p.objects())
	cancel()
	<-ended
	require.NoError(t, s.Close())
}
