package audit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// plugin keeps a chain as the real one does: it takes a batch that continues the
// chain, answers the last one or a run of it again, and refuses
// anything else.
type plugin struct {
	t        *testing.T
	mu       sync.Mutex
	chain    wire.Chain
	last     []string
	answered []string          // events in requests that were answered well, in order
	bytes    map[string]string // by epoch/seq: every copy must be the same
	fault    func(events []string) (before, after error)
	calls    int
}

// heal ends its fault.
func (p *plugin) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = nil
}

func newPlugin(t *testing.T) *plugin {
	t.Helper()
	return &plugin{t: t, chain: wire.Chain{Epoch: "0", Seq: "0"}, bytes: map[string]string{}}
}

var errCut = &wire.Error{Code: wire.CodeUnavailable, Reason: "connection cut"}

func (p *plugin) SendEvents(_ context.Context, op string, events []string) (wire.Chain, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	var before, after error
	if p.fault != nil {
		before, after = p.fault(events)
	}
	if before != nil {
		return wire.Chain{}, before
	}
	for _, text := range events {
		r, err := parseRecord(text)
		require.NoError(p.t, err)
		require.Equal(p.t, op, r.op, "a batch holds events of one operation")
		key := fmt.Sprintf("%d/%d", r.Epoch, r.Seq)
		if known, ok := p.bytes[key]; ok {
			require.Equal(p.t, known, text, "copies are byte-equal")
		}
		p.bytes[key] = text
	}
	if !strings.Contains("\n"+strings.Join(p.last, "\n")+"\n", "\n"+strings.Join(events, "\n")+"\n") {
		at, err := parseChain(p.chain)
		require.NoError(p.t, err)
		for _, text := range events {
			r, err := parseRecord(text)
			require.NoError(p.t, err)
			if !continues(at, r.position, r.prev) {
				return wire.Chain{}, &wire.Error{Code: wire.CodeChainBroken, Reason: "does not continue"}
			}
			at = r.position
		}
		p.chain, p.last = at.chain(), append([]string(nil), events...)
	}
	if after != nil {
		return wire.Chain{}, after
	}
	p.answered = append(p.answered, events...)
	return p.chain, nil
}

func (p *plugin) head() wire.Chain {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.chain
}

// objects returns the objects of the events answered well, each once, in order.
func (p *plugin) objects() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := map[string]bool{}
	var all []string
	for _, text := range p.answered {
		e, err := decodeEvent(text)
		require.NoError(p.t, err)
		if !seen[e.Object] {
			seen[e.Object] = true
			all = append(all, e.Object)
		}
	}
	return all
}

// running opens a sink, delivers and observes as the agent would, until stop.
func running(t *testing.T, dir string, p *plugin) (s *Sink, stop func()) {
	t.Helper()
	s, err := Open(Options{Dir: dir, Agent: "a1", Delay: 5 * time.Millisecond, SendTimeout: time.Second, Log: hclog.NewNullLogger()}, p)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { s.Run(ctx) })
	wg.Go(func() {
		for {
			asked := time.Now()
			if err := s.Observe(p.head(), asked); err != nil {
				t.Errorf("observe: %v", err)
			}
			if !rest(ctx, 3*time.Millisecond, nil) {
				return
			}
		}
	})
	return s, func() {
		cancel()
		wg.Wait()
		require.NoError(t, s.Close())
	}
}

func event(op, object string) wire.Event {
	return wire.Event{OpID: op, Operation: wire.KindClone, Object: object, EventType: wire.EventStepStarted}
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// What is recorded reaches the plugin, in order, and Flush waits for that.
func TestSink_DeliversInOrder(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	s, stop := running(t, t.TempDir(), p)
	defer stop()
	var want []string
	for i := range 500 {
		name := strconv.Itoa(i)
		want = append(want, name)
		require.NoError(t, s.Record(soon(t), event("op-"+strconv.Itoa(i/100), name)))
	}
	for i := range 5 {
		require.NoError(t, s.Flush(soon(t), "op-"+strconv.Itoa(i)))
	}
	require.Equal(t, want, p.objects())
	require.Equal(t, wire.Chain{Epoch: "1", Seq: "500", Head: p.head().Head}, p.head())
	require.Zero(t, s.Backlog().Events)
}

// Many goroutines record at once; each event gets one place.
func TestSink_ConcurrentRecords(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	s, stop := running(t, t.TempDir(), p)
	defer stop()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			op := "op-" + strconv.Itoa(i)
			for j := range 20 {
				if err := s.Record(context.Background(), event(op, op+"-"+strconv.Itoa(j)), event(op, op+"+"+strconv.Itoa(j))); err != nil {
					t.Errorf("record: %v", err)
				}
			}
			if err := s.Flush(soon(t), op); err != nil {
				t.Errorf("flush: %v", err)
			}
		})
	}
	wg.Wait()
	require.Len(t, p.objects(), 800)
	require.Equal(t, "1", p.head().Epoch)
}

// An event is delivered by the next start when the agent dies right after Record.
func TestSink_SurvivesRestartBeforeDelivery(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	p.fault = func([]string) (error, error) { return errCut, nil }
	dir := t.TempDir()
	s, stop := running(t, dir, p)
	require.NoError(t, s.Record(soon(t), event("op", "one"), event("op", "two")))
	stop()
	p.heal()
	s, stop = running(t, dir, p)
	defer stop()
	require.NoError(t, s.Record(soon(t), event("op", "three")))
	require.NoError(t, s.Flush(soon(t), "op"))
	require.Equal(t, []string{"one", "two", "three"}, p.objects())
	require.Equal(t, "1", p.head().Epoch, "no new epoch without a loss")
}

// The plugin took a batch and its answer was lost, then the agent died and more
// was recorded: the same batch is sent again exactly, since the first one does
// not stand in a response entry.
func TestSink_AnswerLostThenRestart(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	p.fault = func([]string) (error, error) { return nil, errCut }
	dir := t.TempDir()
	s, stop := running(t, dir, p)
	require.NoError(t, s.Record(soon(t), event("op", "one"), event("op", "two")))
	require.Eventually(t, func() bool { return p.head().Seq == "2" }, 30*time.Second, time.Millisecond)
	require.NoError(t, s.Record(soon(t), event("op", "three")))
	stop()
	p.heal()
	s, stop = running(t, dir, p)
	defer stop()
	require.NoError(t, s.Record(soon(t), event("op", "four")))
	require.NoError(t, s.Flush(soon(t), "op"))
	require.Equal(t, []string{"one", "two", "three", "four"}, p.objects())
	require.Equal(t, "1", p.head().Epoch)
}

// A device that refuses large requests gets smaller ones.
func TestSink_HalvesWhatIsTooLarge(t *testing.T) {
	t.Parallel()
	for name, executed := range map[string]bool{"refused before": false, "executed, answer not written": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlugin(t)
			p.fault = func(events []string) (error, error) {
				if len(strings.Join(events, "")) < 9000 {
					return nil, nil
				}
				if executed {
					return nil, errCut
				}
				return errCut, nil
			}
			s, stop := running(t, t.TempDir(), p)
			defer stop()
			var all []wire.Event
			var want []string
			for i := range 120 {
				all = append(all, event("op", strconv.Itoa(i)))
				want = append(want, strconv.Itoa(i))
			}
			require.NoError(t, s.Record(soon(t), all...))
			require.NoError(t, s.Flush(soon(t), "op"))
			require.Equal(t, want, p.objects())
			require.Equal(t, "1", p.head().Epoch)
		})
	}
}

// A lost state directory begins an epoch that links to the plugin's head.
func TestSink_LostStateBeginsLinkedEpoch(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	s, stop := running(t, t.TempDir(), p)
	require.NoError(t, s.Record(soon(t), event("op", "one")))
	require.NoError(t, s.Flush(soon(t), "op"))
	stop()
	before := p.head()
	s, stop = running(t, t.TempDir(), p)
	defer stop()
	require.NoError(t, s.Record(soon(t), event("op", "two")))
	require.NoError(t, s.Flush(soon(t), "op"))
	e, err := decodeEvent(p.answered[len(p.answered)-1])
	require.NoError(t, err)
	require.Equal(t, []string{"2", "1", before.Head}, []string{e.Epoch, e.Seq, e.Prev})
}

// A plugin whose storage was restored to an older state is told everything that
// is not delivered in a new epoch.
func TestSink_PluginWentBack(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	s, stop := running(t, t.TempDir(), p)
	defer stop()
	require.NoError(t, s.Record(soon(t), event("op", "one")))
	require.NoError(t, s.Flush(soon(t), "op"))
	p.mu.Lock()
	p.chain, p.last, p.bytes = wire.Chain{Epoch: "0", Seq: "0"}, nil, map[string]string{}
	p.mu.Unlock()
	require.NoError(t, s.Record(soon(t), event("op", "two")))
	require.NoError(t, s.Flush(soon(t), "op"))
	require.Equal(t, []string{"one", "two"}, p.objects())
}

// An operation the plugin has pruned does not block the events of others.
func TestSink_RefusedForGoodIsSetAside(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	p.fault = func(events []string) (error, error) {
		if strings.Contains(events[0], `"op_id":"gone"`) {
			return &wire.Error{Code: wire.CodeNotFound, Reason: "no such operation"}, nil
		}
		return nil, nil
	}
	dir := t.TempDir()
	s, stop := running(t, dir, p)
	defer stop()
	require.NoError(t, s.Record(soon(t), event("gone", "one")))
	require.NoError(t, s.Record(soon(t), event("op", "two")))
	require.NoError(t, s.Flush(soon(t), "op"))
	require.Equal(t, []string{"two"}, p.objects())
	aside, err := filepath.Glob(filepath.Join(dir, "refused-*"))
	require.NoError(t, err)
	require.Len(t, aside, 1)
	backlog := s.Backlog()
	require.Equal(t, Backlog{Recorded: 2, Refused: 1}, backlog, "nothing waits, and what misses the record is counted")
}

// A binding that an operator can mend does not lose events.
func TestSink_MendableRefusalWaits(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	refusals := 0
	p.fault = func([]string) (error, error) {
		if refusals++; refusals < 5 {
			return &wire.Error{Code: wire.CodeNotYourOperation, Reason: "bound to another"}, nil
		}
		return nil, nil
	}
	s, stop := running(t, t.TempDir(), p)
	defer stop()
	require.NoError(t, s.Record(soon(t), event("op", "one")))
	require.NoError(t, s.Flush(soon(t), "op"))
	require.Equal(t, []string{"one"}, p.objects())
}

// A full spool refuses instead of forgetting.
func TestSink_FullSpoolRefuses(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	s, err := Open(Options{Dir: t.TempDir(), Agent: "a1", MaxBytes: 1000, Log: hclog.NewNullLogger()}, p)
	require.NoError(t, err)
	require.NoError(t, s.Observe(p.head(), time.Now()))
	var refused error
	recorded := 0
	for range 10 {
		if refused = s.Record(soon(t), event("op", "x")); refused != nil {
			break
		}
		recorded++
	}
	backlog := s.Backlog()
	require.Equal(t, recorded, backlog.Events)
	require.Positive(t, backlog.Bytes)
	require.LessOrEqual(t, backlog.Bytes, 1000)
	require.Positive(t, backlog.Oldest)
	var coded *wire.Error
	require.ErrorAs(t, refused, &coded)
	require.Equal(t, wire.CodeAuditUnavailable, coded.Code)
	require.NoError(t, s.Close())
}

// An event whose write fails is not in the chain, and the next one takes its
// place.
func TestSink_FailedWriteLeavesNoGap(t *testing.T) {
	t.Parallel()
	p := newPlugin(t)
	dir := t.TempDir()
	s, stop := running(t, dir, p)
	defer stop()
	require.NoError(t, s.Record(soon(t), event("op", "one")))
	s.spoolMu.Lock()
	whole := s.spool.file
	unwritable, err := os.Open(whole.Name())
	require.NoError(t, err)
	s.spool.file = unwritable
	s.spoolMu.Unlock()
	require.Error(t, s.Record(soon(t), event("op", "lost")))
	require.EqualValues(t, 1, s.Backlog().Recorded, "what is not on disk is not counted")
	require.NoError(t, unwritable.Close())
	s.spoolMu.Lock()
	s.spool.file = whole
	s.spoolMu.Unlock()
	err = s.Record(soon(t), event("op", "two"))
	if errors.Is(err, errBroken) { // cutting needs a writable file, so this spool is given up: closed, not skipped
		return
	}
	require.NoError(t, err)
	require.NoError(t, s.Flush(soon(t), "op"))
	require.Equal(t, []string{"one", "two"}, p.objects())
}

// Whatever fails, and whenever the agent restarts, every recorded event is
// answered well at least once, in order, without a second epoch.
func TestSink_RandomFaultsAndRestarts(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 1))
			p := newPlugin(t)
			faulty := rand.New(rand.NewPCG(seed, 2))
			p.fault = func([]string) (error, error) {
				switch faulty.IntN(6) {
				case 0:
					return errCut, nil
				case 1:
					return nil, errCut
				default:
					return nil, nil
				}
			}
			dir := t.TempDir()
			var want []string
			for start := range 6 {
				s, stop := running(t, dir, p)
				for range random.IntN(30) {
					name := strconv.Itoa(start) + "-" + strconv.Itoa(len(want))
					require.NoError(t, s.Record(soon(t), event("op-"+strconv.Itoa(random.IntN(2)), name)))
					want = append(want, name)
				}
				stop()
				torn(t, dir, random)
			}
			p.heal()
			s, stop := running(t, dir, p)
			defer stop()
			require.Eventually(t, func() bool { return s.Backlog().Events == 0 }, 20*time.Second, 5*time.Millisecond)
			require.Equal(t, want, p.objects())
			if len(want) > 0 {
				require.Equal(t, "1", p.head().Epoch)
			}
		})
	}
}

// torn leaves the beginning of a line behind, as a crash during a write would.
func torn(t *testing.T, dir string, random *rand.Rand) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	require.NoError(t, err)
	if len(names) == 0 || random.IntN(2) == 0 {
		return
	}
	line := encodeLine(`{"v":1,"epoch":"1","seq":"99999","op_id":"op"}`)
	file, err := os.OpenFile(names[len(names)-1], os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = file.Write(line[:1+random.IntN(len(line)-2)])
	require.NoError(t, err)
	require.NoError(t, file.Close())
}
