package audit

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// batch is one request as Vault would get it.
type batch struct {
	after  time.Duration // since the events in it were recorded
	events int
	bytes  int
}

// recorder opens a sink with its default limits in a bubble of fake time and
// returns how to record and what was sent for it within the next three seconds.
func recorder(t *testing.T) (s *Sink, record func(events ...wire.Event) []batch) {
	t.Helper()
	p := newPlugin(t)
	var mu sync.Mutex
	var began time.Time
	var sent []batch
	p.fault = func(events []string) (error, error) {
		mu.Lock()
		defer mu.Unlock()
		sent = append(sent, batch{time.Since(began), len(events), len(strings.Join(events, ""))})
		return nil, nil
	}
	s, err := Open(Options{Dir: t.TempDir(), Agent: "a1", Log: hclog.NewNullLogger()}, p)
	require.NoError(t, err)
	require.NoError(t, s.Observe(p.head(), time.Now()))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		require.NoError(t, s.Close())
	})
	return s, func(events ...wire.Event) []batch {
		t.Helper()
		mu.Lock()
		began, sent = time.Now(), nil
		mu.Unlock()
		require.NoError(t, s.Record(ctx, events...))
		time.Sleep(3 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		return sent
	}
}

// A batch holds at most 200 events and 64 KiB and is sent at once when it is full;
// what does not fill one waits two seconds for company.
func TestSink_BatchLimits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, record := recorder(t)
		one := record(event("op", "one"))
		require.Len(t, one, 1)
		require.Equal(t, 2*time.Second, one[0].after)

		many := record(make450(event("op", "small"))...)
		require.Len(t, many, 3)
		require.Equal(t, []int{200, 200, 50}, []int{many[0].events, many[1].events, many[2].events})
		require.Equal(t, []time.Duration{0, 0, 2 * time.Second}, []time.Duration{many[0].after, many[1].after, many[2].after})

		large := event("op", strings.Repeat("x", 20<<10))
		sizes := record(large, large, large, large)
		require.Len(t, sizes, 2)
		require.Equal(t, 3, sizes[0].events)
		for _, b := range sizes {
			require.LessOrEqual(t, b.bytes, wire.EventBatchBytes)
		}

		two := record(event("op", "x"), event("op2", "y"))
		require.Len(t, two, 2, "a batch is of one operation")
		require.Zero(t, two[0].after)
	})
}

func make450(e wire.Event) []wire.Event {
	all := make([]wire.Event, 450)
	for i := range all {
		all[i] = e
	}
	return all
}

// At the end of an operation nothing waits for company.
func TestSink_FlushSendsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, record := recorder(t)
		require.Len(t, record(event("op", "first")), 1)
		began := time.Now()
		require.NoError(t, s.Record(t.Context(), event("op", "last")))
		require.NoError(t, s.Flush(t.Context(), "op"))
		require.Zero(t, time.Since(began))
		require.Zero(t, s.Backlog().Events)
	})
}

// An event is at most as large as Vault takes, and its free text holds nothing
// that looks personal.
func TestSink_EventsAreCleanAndBounded(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	s, stop := running(t, t.TempDir(), p)
	defer stop()
	require.Error(t, s.Record(soon(t), event("op", strings.Repeat("x", wire.EventBatchMaxLen))))
	e := event("op", "public.customer")
	e.Detail = "row of bob@example.com"
	require.NoError(t, s.Record(soon(t), e))
	require.NoError(t, s.Flush(soon(t), "op"))
	require.Contains(t, p.answered[0], `"detail":"row of [email]"`)
	require.Contains(t, p.answered[0], `"object":"public.customer"`)
}
