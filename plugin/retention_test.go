package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/oklog/ulid/v2"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
)

// keys are all keys in storage that hold text.
func (m *desk) keys(text string) []string {
	m.t.Helper()
	all, err := logical.CollectKeys(context.Background(), m.storage)
	require.NoError(m.t, err)
	all = slices.DeleteFunc(all, func(key string) bool { return !strings.Contains(key, text) })
	slices.Sort(all)
	return all
}

// succeeded brings an operation to its end, with plan, report and receipt.
func (m *desk) succeeded() string {
	m.t.Helper()
	id, fence := m.running()
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "succeeded", "rows", "1", "bytes", "1", "tables", "1", "report", `{"tables":[]}`))
	m.settle()
	require.Len(m.t, m.keys("operation-plan/"+id), 2)
	require.Len(m.t, m.keys("operation-report/"+id), 2)
	require.Len(m.t, m.keys("operation-receipt/"+id), 2)
	return id
}

// cancelled is an operation that nobody took.
func (m *desk) cancelled() string {
	m.t.Helper()
	id := m.clone().ID
	m.must(m.write(alice, "operations/"+id+"/cancel"))
	m.settle()
	return id
}

func (m *desk) prune() int {
	m.t.Helper()
	pruned, err := m.b.prune(context.Background(), m.storage)
	require.NoError(m.t, err)
	return pruned
}

func (m *desk) gone(id string) {
	m.t.Helper()
	for _, path := range []string{"", "/plan", "/report", "/receipt"} {
		resp, err := m.read(alice, "operations/"+id+path)
		m.refused(wire.CodeNotFound, resp, err)
		resp, err = m.read("", "all/operations/"+id+path)
		m.refused(wire.CodeNotFound, resp, err)
	}
	listed, _ := m.must(m.handle("", logical.ListOperation, "all/operations"))["keys"].([]string)
	require.NotContains(m.t, listed, id)
}

// An operation is kept for its retention after its end, to the second, and then goes
// with everything that belongs to it. What its agent has told stays a chain, and its
// request_id is free.
func TestRetention_RemovesWhatIsOver(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	before := m.keys("")
	id, other := m.succeeded(), m.cancelled()
	chain := &testChain{agent: "a1", epoch: 1}
	op := m.operation(id)
	m.must(m.events("a1", id, chain.event(op)))
	wanted := m.clone("request_id", "ticket-1").ID
	m.must(m.write(alice, "operations/"+wanted+"/cancel"))
	m.settle()
	m.clock.pass(time.Hour)
	unfinished := m.clone().ID

	m.clock.pass(defaultRetention - time.Hour)
	require.Zero(t, m.prune(), "not before it is over")
	m.receipt(id)
	m.clock.pass(time.Second)
	require.Equal(t, 3, m.prune())
	for _, each := range []string{id, other, wanted} {
		m.gone(each)
		require.Empty(t, m.keys(each))
	}
	require.Equal(t, []string{"operation/" + unfinished}, m.keys(unfinished))
	m.counted(`dbops_operations_pruned_total 3`)
	require.Zero(t, m.prune(), "once is enough")

	require.Contains(t, m.keys(""), prefixChain+"a1")
	m.restart()
	m.gone(id)
	require.Equal(t, chain.head, m.poll("a1").Chain.Head)
	require.NotEqual(t, wanted, m.clone("request_id", "ticket-1").ID)

	// Nothing else is left but what was there before anybody asked for anything.
	left := slices.DeleteFunc(m.keys(""), func(key string) bool {
		return slices.Contains(before, key) || strings.HasPrefix(key, prefixOperation) || strings.HasPrefix(key, prefixChain) ||
			strings.HasPrefix(key, prefixSigningKey) || strings.HasPrefix(key, "facts/") || key == keyMount
	})
	require.Empty(t, left)
}

// What is open stays, however old: it has not ended, has a login, waits for its
// receipt or its cleaning, or somebody must look at its target.
func TestRetention_KeepsWhatIsOpen(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(r *operationRecord){
		"not ended":         func(r *operationRecord) { r.State = wire.StateQueued },
		"a claim":           func(r *operationRecord) { r.Claim = &claimRecord{Agent: "a1", Fence: "9"} },
		"logins":            func(r *operationRecord) { r.EndAccounts = true },
		"no receipt":        func(r *operationRecord) { r.ReceiptDue = true },
		"to be cleaned":     func(r *operationRecord) { r.Cleanup = cleanupPending },
		"cannot be cleaned": func(r *operationRecord) { r.Cleanup = cleanupFailed },
		"admitted later":    func(r *operationRecord) { r.AdmittedAt = r.AdmittedAt.Add(24 * time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newDesk(t)
			id := m.cancelled()
			_, err := m.b.updateOperation(context.Background(), m.storage, id, func(r *operationRecord) error {
				r.AdmittedAt = r.CreatedAt
				open(r)
				return nil
			})
			require.NoError(t, err)
			m.clock.pass(defaultRetention + time.Hour)
			all := m.keys(id)
			require.Zero(t, m.prune())
			require.Equal(t, all, m.keys(id))
		})
	}
	t.Run("a login on record", func(t *testing.T) {
		t.Parallel()
		m := newDesk(t)
		id := m.cancelled()
		record := prefixAccount + id + "/" + ulid.Make().String()
		require.NoError(t, putStored(context.Background(), m.storage, record, accountRecord{}))
		m.clock.pass(defaultRetention + time.Hour)
		require.Zero(t, m.prune())
		require.NoError(t, m.storage.Delete(context.Background(), record))
		require.Equal(t, 1, m.prune())
	})
	t.Run("a lockdown", func(t *testing.T) {
		t.Parallel()
		m := newDesk(t)
		id := m.succeeded()
		m.clock.pass(defaultRetention + time.Hour)
		m.b.lockdown.set(&lockdownRecord{Locked: true})
		require.Zero(t, m.prune())
		m.b.lockdown.set(&lockdownRecord{})
		require.Equal(t, 1, m.prune())
		m.gone(id)
	})
}

// Whatever write a crash comes before or after, an operation is whole or gone for
// whoever reads, and the next rounds leave nothing of it.
func TestRetention_CrashAtEveryWrite(t *testing.T) {
	t.Parallel()
	writes := 0
	for crash := 1; ; crash++ {
		m := newDesk(t)
		id := m.succeeded()
		m.clock.pass(defaultRetention + time.Hour)
		healthy := m.storage
		after := crash%2 == 0
		broken := &breakingStorage{Storage: healthy, left: (crash + 1) / 2, after: after}
		_, err := m.b.prune(context.Background(), broken)
		if err == nil {
			writes = (crash+1)/2 - 1
			require.Empty(t, m.keys(id))
			break
		}
		for range 2 { // the instance goes on, and a new one takes over
			if record := m.keys("operation/" + id); len(record) > 0 && !m.marked(id) {
				m.receipt(id)
				m.must(m.read(alice, "operations/"+id+"/plan"))
				m.must(m.read(alice, "operations/"+id+"/report"))
			} else {
				m.gone(id)
			}
			m.restart()
		}
		if len(m.keys(id)) > 0 {
			require.Contains(t, m.keys(id), "operation/"+id, "the record goes last: without it the rest would be out of reach")
		}
		m.prune()
		require.Empty(t, m.keys(id), "crash %d", crash)
		m.gone(id)
	}
	require.Equal(t, 8, writes, "the mark, the head and a chunk of three texts, the record")
}

func (m *desk) marked(id string) bool {
	m.t.Helper()
	r, err := getStored[operationRecord](context.Background(), m.storage, prefixOperation+id)
	require.NoError(m.t, err)
	return r != nil && r.Pruned
}

var errBroken = errors.New("the storage is gone")

// breakingStorage fails for ever from a write on: before it is done, or after.
type breakingStorage struct {
	logical.Storage
	mu    sync.Mutex
	left  int // writes until it fails
	after bool
}

func (s *breakingStorage) write(do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left--
	switch {
	case s.left > 0:
		return do()
	case s.left == 0 && s.after:
		return errors.Join(do(), errBroken)
	default:
		return errBroken
	}
}

func (s *breakingStorage) Put(ctx context.Context, e *logical.StorageEntry) error {
	return s.write(func() error { return s.Storage.Put(ctx, e) })
}

func (s *breakingStorage) Delete(ctx context.Context, key string) error {
	return s.write(func() error { return s.Storage.Delete(ctx, key) })
}

// standby is Vault on a node that only reads.
type standby struct{ *identities }

func (standby) ReplicationState() consts.ReplicationState {
	return consts.ReplicationPerformanceStandby
}

// readOnly is storage on such a node; it counts who tries to write.
type readOnly struct {
	logical.Storage
	tries int
}

func (s *readOnly) Put(context.Context, *logical.StorageEntry) error {
	s.tries++
	return logical.ErrReadOnly
}

func (s *readOnly) Delete(context.Context, string) error {
	s.tries++
	return logical.ErrReadOnly
}

// A node that only reads removes nothing and tries nothing, and what the active node
// removes is gone there as soon as it hears of the mark.
func TestRetention_Standby(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id := m.succeeded()
	storage := &readOnly{Storage: m.storage}
	b := newBackend(DefaultVersion, m.clock.now, systemUptime())
	b.ops = newOperationState(&processAccounts{fakeAccounts: m.db, process: m.process, noteEnded: b.noteAccountEnded})
	require.NoError(t, b.Setup(context.Background(), &logical.BackendConfig{
		Logger: hclog.NewNullLogger(), System: standby{m.system}, StorageView: storage, BackendUUID: "11111111-2222-3333-4444-555555555555",
	}))
	t.Cleanup(func() { b.clean(context.Background()) })
	require.NoError(t, b.loadOperations(context.Background(), storage))
	m.clock.pass(defaultRetention + time.Hour)
	require.NoError(t, b.periodic(context.Background(), &logical.Request{Storage: storage}))
	require.False(t, b.pruning.Load())
	require.Zero(t, storage.tries)
	require.NotNil(t, b.ops.operation(id))

	// The active one comes as far as the mark.
	_, err := m.b.prune(context.Background(), &breakingStorage{Storage: m.storage, left: 2})
	require.ErrorIs(t, err, errBroken)
	require.True(t, m.marked(id))
	b.invalidate(context.Background(), prefixOperation+id)
	require.NoError(t, b.loadOperations(context.Background(), storage))
	require.Nil(t, b.ops.operation(id))
	require.Equal(t, 1, m.prune())
	b.invalidate(context.Background(), prefixOperation+id)
	require.NoError(t, b.loadOperations(context.Background(), storage))
	require.Empty(t, b.ops.pruned)
	require.Zero(t, storage.tries)
}

// On the active node Vault's tick does it, in the background, and a mount of a newer
// version is left alone.
func TestRetention_Tick(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id := m.succeeded()
	m.clock.pass(defaultRetention + time.Hour)
	tick := func() {
		require.NoError(t, m.b.periodic(context.Background(), &logical.Request{Operation: logical.RollbackOperation, Storage: m.storage}))
	}
	m.b.refusal.Store(&wire.Error{Code: wire.CodeConflict})
	tick()
	require.False(t, m.b.pruning.Load())
	m.b.refusal.Store(nil)
	require.NotEmpty(t, m.keys(id))
	tick()
	require.Eventually(t, func() bool { return len(m.keys(id)) == 0 && !m.b.pruning.Load() }, 30*time.Second, time.Millisecond)
}

// Rounds are bounded: many that are over at once go over several, the oldest first.
// Each round is told as one fact and another one with a count.
func TestRetention_Rounds(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	first := m.cancelled()
	template, err := m.b.ops.operation(first).clone()
	require.NoError(t, err)
	ids := []string{first}
	for n := range prunedAtOnce + 20 {
		id := "op-" + strings.ToLower(ulid.MustNew(ulid.Timestamp(m.clock.now())+uint64(n+1), ulid.DefaultEntropy()).String())
		template.ID = id
		require.NoError(t, putStored(context.Background(), m.storage, prefixOperation+id, template))
		ids = append(ids, id)
	}
	m.restart()
	m.clock.pass(defaultRetention + time.Second)
	require.Equal(t, prunedAtOnce, m.prune())
	for n, id := range ids {
		require.Len(t, m.keys("operation/"+id), map[bool]int{true: 0, false: 1}[n < prunedAtOnce], "%d", n)
	}
	m.clock.pass(2 * time.Minute)
	require.Equal(t, 21, m.prune())
	require.Empty(t, m.keys(prefixOperation))
	require.NoError(t, m.b.storeFacts(context.Background(), m.storage))
	told := map[string]int{}
	stored, err := loadAll[factsChunk](context.Background(), m.storage, prefixFactsStored)
	require.NoError(t, err)
	for _, chunk := range stored {
		for _, text := range chunk.Facts {
			var f wire.Fact
			require.NoError(t, json.Unmarshal([]byte(text), &f))
			if f.EventType == wire.EventOperationPruned {
				told[f.Count]++
			}
		}
	}
	require.Equal(t, map[string]int{"": 2, fmt.Sprint(prunedAtOnce - 1): 1}, told)
}

// However short the retention that somebody stored, the operations that rate windows
// are made of stay, and so does a day to look at what happened.
func TestRetention_NeverShorterThanRateWindows(t *testing.T) {
	t.Parallel()
	require.Greater(t, shortestRetention, 2*policy.Window)
	require.Greater(t, shortestRetention, maxWait)
	m := newDesk(t)
	require.NoError(t, putStored(context.Background(), m.storage, keySettings, settings{Retention: time.Minute}))
	m.must(m.write("", "policies/dev", "max_operations_per_hour", 2))
	m.cancelled()
	m.cancelled()
	m.clock.pass(59 * time.Minute)
	require.Zero(t, m.prune())
	resp, err := m.write(alice, "clone/prod/staging")
	require.Error(t, err)
	require.Equal(t, wire.CodeRateLimited, wire.ParseError(err.Error()).Code, "%v %v", resp, err)
	m.clock.pass(shortestRetention)
	require.Equal(t, 2, m.prune())

	// Where the clock went back, an operation is as old as the window says it is.
	id := m.cancelled()
	m.clock.pass(-2 * time.Hour)
	later := m.cancelled()
	m.clock.pass(shortestRetention + time.Hour)
	require.Zero(t, m.prune())
	require.NotEmpty(t, m.keys(id))
	require.NotEmpty(t, m.keys(later))
}

// The setting answers what holds, takes what is long enough or for ever, and stays.
func TestSettings_Retention(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	holds := func(want time.Duration) {
		t.Helper()
		require.Equal(t, map[string]any{"retention": int64(want.Seconds())}, m.must(m.read("", "settings")))
	}
	holds(defaultRetention)
	for _, value := range []any{"23h", 1, "86399", "-1h", -5, int64(1) << 40} {
		resp, err := m.write("", "settings", "retention", value)
		require.Equal(t, "retention", m.refused(wire.CodeInvalid, resp, err).Field, "%v", value)
	}
	resp, err := m.write("", "settings")
	require.Equal(t, "retention", m.refused(wire.CodeInvalid, resp, err).Field)
	holds(defaultRetention)
	require.Contains(t, testenv.README(t), "\n    vault write dbops/settings retention=365d\n")
	m.must(m.write("", "settings", "retention", "365d"))
	m.restart()
	holds(365 * 24 * time.Hour)

	id := m.cancelled()
	m.clock.pass(364 * 24 * time.Hour)
	require.Zero(t, m.prune())
	m.must(m.write("", "settings", "retention", "0"))
	holds(0)
	m.clock.pass(10 * 365 * 24 * time.Hour)
	require.Zero(t, m.prune(), "for ever")
	m.must(m.write("", "settings", "retention", "24h"))
	require.Eventually(t, func() bool { return len(m.keys(id)) == 0 }, 30*time.Second, 5*time.Millisecond, "a round begins with the writing")
	m.gone(id)

	m.must(m.write("", "lockdown", "reason", "test"))
	resp, err = m.write("", "settings", "retention", "48h")
	require.Error(t, err)
	require.Nil(t, resp)
	holds(24 * time.Hour)
}
