package audit

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// book keeps facts as the plugin does: numbers, two at a time.
type book struct {
	mu     sync.Mutex
	hidden bool
	fail   int // next calls that fail
	acked  int
	last   int
	reads  int
}

var errFactsAway = errors.New("vault is away")

func (b *book) failing() bool {
	b.fail--
	return b.fail >= 0
}

func (b *book) FactsShown(context.Context) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.hidden, nil
}

func (b *book) Facts(context.Context) (wire.FactsResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failing() {
		return wire.FactsResponse{}, errFactsAway
	}
	b.reads++
	var r wire.FactsResponse
	for seq := b.acked + 1; seq <= min(b.last, b.acked+2); seq++ {
		r.Facts, r.Seq = append(r.Facts, "fact"), strconv.Itoa(seq)
	}
	return r, nil
}

func (b *book) AckFacts(_ context.Context, seq string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failing() {
		return errFactsAway
	}
	n, err := strconv.Atoi(seq)
	b.acked = max(b.acked, n)
	return err
}

func (b *book) left() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last - b.acked
}

// All facts are fetched and acknowledged when woken, and after a failure when woken
// again.
func TestFacts_FetchedUntilNoneIsLeft(t *testing.T) {
	t.Parallel()
	b := &book{last: 7}
	f := NewFacts(b, func() bool { return true }, hclog.NewNullLogger())
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { f.Run(ctx) })
	f.Wake()
	f.Wake()
	require.Eventually(t, func() bool { return b.left() == 0 }, 30*time.Second, time.Millisecond)
	b.mu.Lock()
	b.last, b.fail = 9, 1
	b.mu.Unlock()
	require.Eventually(t, func() bool { f.Wake(); return b.left() == 0 }, 30*time.Second, time.Millisecond)
	stop()
	wg.Wait()
}

// Without an audit device, or on a mount that hides them, facts stay where they
// are: nothing is acknowledged that stands nowhere.
func TestFacts_NotAcknowledgedUnlessRecorded(t *testing.T) {
	t.Parallel()
	b := &book{last: 3}
	ready := false
	f := NewFacts(b, func() bool { return ready }, hclog.NewNullLogger())
	require.NoError(t, f.fetch(t.Context()))
	require.Zero(t, b.reads)

	ready, b.hidden = true, true
	require.NoError(t, f.fetch(t.Context()))
	require.Zero(t, b.reads)

	b.hidden = false
	asked := 0
	f.ready = func() bool { asked++; return asked == 1 } // it goes away meanwhile
	require.Error(t, f.fetch(t.Context()))
	require.Equal(t, 3, b.left())

	f.ready = func() bool { return true }
	b.fail = 1
	require.ErrorIs(t, f.fetch(t.Context()), errFactsAway)
	require.Equal(t, 3, b.left())
	require.NoError(t, f.fetch(t.Context()))
	require.Zero(t, b.left())
}
