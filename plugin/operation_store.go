package plugin

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/vault/sdk/helper/locksutil"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/oklog/ulid/v2"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Storage keys of operations and what they need.
const (
	prefixPolicy     = "policy/"
	prefixConnection = "connection/"
	prefixAgent      = "agent/"
	prefixChain      = "agent-chain/"
	prefixOperation  = "operation/"
	prefixPlan       = "operation-plan/"   // <id>/head and <id>/<fence>-<random>-<n>
	prefixReport     = "operation-report/" // likewise
)

// operationState is what the plugin keeps in memory about operations, policies,
// connections and agents. All of it but the heartbeats and the plans in transit
// is a copy of the storage.
type operationState struct {
	accounts operationAccounts

	// Locks are held across storage calls, never across database calls. Outer ones
	// serialise the admissions of one entity, the polls and the chain of one
	// agent and the writes of one policy or connection; inner ones the changes of
	// one operation. One outer and one inner lock may be held together, in this
	// order, and no two of a kind: names share locks.
	outer, inner []*locksutil.LockEntry

	// claiming is held while an operation is given to an agent, within the agent's
	// outer lock, and therefore none of those: an agent's name must not share it.
	claiming sync.Mutex

	loading sync.Mutex // held while reading everything from storage

	mu     sync.RWMutex // guards everything below; never held across any call out
	loaded bool
	// started is when this instance began to serve. Whoever was silent before
	// could not be heard, so deadlines start here.
	started     time.Time
	entropy     *ulid.MonotonicEntropy
	dirty       map[string]bool // storage keys to be read again
	policies    map[string]policy.Policy
	compiled    *policy.Set // of policies; nil after a change
	connections map[string]connectionRecord
	agents      map[string]agentRecord
	operations  map[string]*operationRecord
	busy        map[string]bool       // ids of operations with something to do
	pruned      map[string]bool       // ids of operations that are being removed
	requests    map[requestKey]string // operation by what its request_id is known by
	admitted    []admission
	chains      map[string]chainRecord // by agent, read when first asked for
	heard       map[string]agentHeard  // by agent
	claimHeard  map[string]time.Time   // by operation
	progress    map[string]wire.Progress
	parts       map[string]*textParts // plans in transit, by operation
	seen        map[string]seenServer // by connection
	silent      map[sideKey]time.Time // since when servers do not say who they are
	ending      map[string]bool       // operations whose accounts are being ended
	endAfter    map[string]time.Time  // when to try again, by operation

	watching bool // the watcher of deadlines runs
}

type requestKey struct{ entity, key string }

// admission is one entry of the rate windows.
type admission struct {
	id, entity, source, target string
	// databases are those the names led to, as far as it was known then.
	databases map[wire.Side]wire.ServerIdentity
	at        time.Time
}

// agentHeard is what an agent said last; not stored.
type agentHeard struct {
	At           time.Time
	Boot         string
	FreeSlots    int
	AuditDevices string
	// AuditProblem is why no device records events, in the agent's words;
	// AuditUntuned says that the mount hides them.
	AuditProblem string
	AuditUntuned bool
	// BusyAt is when it last held a claim.
	BusyAt time.Time
}

func newOperationState(accounts operationAccounts) *operationState {
	return &operationState{
		accounts: accounts, outer: locksutil.CreateLocks(), inner: locksutil.CreateLocks(),
		entropy: ulid.Monotonic(rand.Reader, 0), dirty: map[string]bool{}, chains: map[string]chainRecord{}, heard: map[string]agentHeard{}, claimHeard: map[string]time.Time{}, silent: map[sideKey]time.Time{},
		progress: map[string]wire.Progress{}, parts: map[string]*textParts{}, seen: map[string]seenServer{}, ending: map[string]bool{}, endAfter: map[string]time.Time{},
	}
}

// lock takes the outer lock of a storage key or entity and returns the unlock.
func (o *operationState) lock(name string) func() {
	l := locksutil.LockForKey(o.outer, name)
	l.Lock()
	return l.Unlock
}

// lockOperation takes the inner lock of an operation and returns the unlock.
func (o *operationState) lockOperation(id string) func() {
	l := locksutil.LockForKey(o.inner, id)
	l.Lock()
	return l.Unlock
}

// loadOperations makes the memory equal to the storage: everything at first, later
// only what was invalidated.
func (b *backend) loadOperations(ctx context.Context, s logical.Storage) error {
	o := b.ops
	o.mu.RLock()
	ready := o.loaded && len(o.dirty) == 0
	o.mu.RUnlock()
	if ready {
		return nil
	}
	o.loading.Lock()
	defer o.loading.Unlock()
	o.mu.RLock()
	loaded := o.loaded
	dirty := slices.Collect(maps.Keys(o.dirty))
	o.mu.RUnlock()
	if loaded {
		for _, key := range dirty {
			if err := b.reloadStored(ctx, s, key); err != nil {
				return err
			}
		}
		return nil
	}
	policies, err := loadAll[policy.Policy](ctx, s, prefixPolicy)
	if err != nil {
		return err
	}
	connections, err := loadAll[connectionRecord](ctx, s, prefixConnection)
	if err != nil {
		return err
	}
	agents, err := loadAll[agentRecord](ctx, s, prefixAgent)
	if err != nil {
		return err
	}
	operations, err := loadAll[operationRecord](ctx, s, prefixOperation)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.policies, o.connections, o.agents = policies, connections, agents
	o.compiled = nil
	o.operations = make(map[string]*operationRecord, len(operations))
	o.busy, o.pruned, o.requests, o.admitted = map[string]bool{}, map[string]bool{}, map[requestKey]string{}, nil
	for _, r := range operations {
		o.place(&r)
	}
	o.started = b.now()
	o.loaded = true
	return nil
}

func loadAll[T any](ctx context.Context, s logical.Storage, prefix string) (map[string]T, error) {
	names, err := listStored(ctx, s, prefix)
	if err != nil {
		return nil, err
	}
	all := make(map[string]T, len(names))
	for _, name := range names {
		value, err := getStored[T](ctx, s, prefix+name)
		if err != nil {
			return nil, err
		}
		if value != nil {
			all[name] = *value
		}
	}
	return all, nil
}

// reloadStored reads one key again. The caller holds o.loading.
func (b *backend) reloadStored(ctx context.Context, s logical.Storage, key string) error {
	o := b.ops
	// Forget the mark first: one set while we read means that we must read again.
	o.mu.Lock()
	delete(o.dirty, key)
	o.mu.Unlock()
	prefix, name, _ := strings.Cut(key, "/")
	var err error
	switch prefix + "/" {
	case prefixPolicy:
		err = reloadInto(ctx, s, o, key, name, func() map[string]policy.Policy {
			o.compiled = nil
			return o.policies
		})
	case prefixConnection:
		err = reloadInto(ctx, s, o, key, name, func() map[string]connectionRecord { return o.connections })
	case prefixAgent:
		err = reloadInto(ctx, s, o, key, name, func() map[string]agentRecord { return o.agents })
	case prefixOperation:
		defer o.lockOperation(name)()
		var r *operationRecord
		if r, err = getStored[operationRecord](ctx, s, key); err == nil {
			o.mu.Lock()
			if r == nil {
				o.remove(name)
			} else {
				o.place(r)
			}
			o.mu.Unlock()
		}
	}
	if err != nil {
		o.mu.Lock()
		o.dirty[key] = true
		o.mu.Unlock()
	}
	return err
}

func reloadInto[T any](ctx context.Context, s logical.Storage, o *operationState, key, name string, into func() map[string]T) error {
	value, err := getStored[T](ctx, s, key)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if value == nil {
		delete(into(), name)
	} else {
		into()[name] = *value
	}
	return nil
}

// place puts a record into memory. The caller holds o.mu.
func (o *operationState) place(r *operationRecord) {
	if r.Pruned {
		o.remove(r.ID)
		o.pruned[r.ID] = true
		return
	}
	if _, known := o.operations[r.ID]; !known {
		o.withdraw(r.ID) // its reservation
		o.admit(r.admission())
	}
	o.operations[r.ID] = r
	if key := r.requestKey(); key != "" {
		o.requests[requestKey{r.Requester.EntityID, key}] = r.ID
	}
	if r.busy() {
		o.busy[r.ID] = true
	} else {
		delete(o.busy, r.ID)
		delete(o.endAfter, r.ID)
	}
	if r.Claim == nil {
		o.forgetSilence(r.ID)
		delete(o.claimHeard, r.ID)
		delete(o.progress, r.ID)
		delete(o.parts, r.ID)
	}
}

// remove takes a record out of memory. The caller holds o.mu.
func (o *operationState) remove(id string) {
	o.withdraw(id)
	delete(o.pruned, id)
	r, ok := o.operations[id]
	if !ok {
		return
	}
	delete(o.operations, id)
	delete(o.busy, id)
	o.forgetSilence(id)
	delete(o.claimHeard, id)
	delete(o.progress, id)
	delete(o.parts, id)
	delete(o.endAfter, id)
	if key := r.requestKey(); key != "" {
		delete(o.requests, requestKey{r.Requester.EntityID, key})
	}
}

// operation returns the record of id, or nil. It must not be changed.
func (o *operationState) operation(id string) *operationRecord {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.operations[id]
}

// policySet returns the policies ready for decisions.
func (o *operationState) policySet() *policy.Set {
	o.mu.RLock()
	set := o.compiled
	o.mu.RUnlock()
	if set != nil {
		return set
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.compile()
}

// compile is policySet for a caller that holds o.mu.
func (o *operationState) compile() *policy.Set {
	if o.compiled == nil {
		o.compiled = policy.Compile(slices.Collect(maps.Values(o.policies)))
	}
	return o.compiled
}

// policyList returns all policies.
func (o *operationState) policyList() []policy.Policy {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return slices.Collect(maps.Values(o.policies))
}

// busyOperations returns the records with something to do, oldest first.
func (o *operationState) busyOperations() []*operationRecord {
	o.mu.RLock()
	records := make([]*operationRecord, 0, len(o.busy))
	for id := range o.busy {
		records = append(records, o.operations[id])
	}
	o.mu.RUnlock()
	slices.SortFunc(records, func(x, y *operationRecord) int { return strings.Compare(x.ID, y.ID) })
	return records
}

// updateOperation changes one operation: change gets a copy, which is stored with
// one Put and then takes effect. An error of change leaves everything as it was
// and is returned as it is. No record means nil, nil.
func (b *backend) updateOperation(ctx context.Context, s logical.Storage, id string, change func(*operationRecord) error) (*operationRecord, error) {
	defer b.ops.lockOperation(id)()
	current := b.ops.operation(id)
	if current == nil {
		return nil, nil
	}
	next, err := current.clone()
	if err != nil {
		return nil, err
	}
	if err := change(next); err != nil {
		return nil, err
	}
	if err := b.noteChains(ctx, s, current, next); err != nil {
		return nil, err
	}
	if next.State.Final() && next.Result != nil && next.Result.Hint == "" {
		next.Result.Hint = next.Result.Code.Hint()
	}
	if err := b.storeOperation(ctx, s, next); err != nil {
		return nil, err
	}
	b.metrics.moved(current, next, b.now())
	return next, nil
}

// storeOperation writes a record and puts it into memory. The caller holds the
// operation's lock.
func (b *backend) storeOperation(ctx context.Context, s logical.Storage, r *operationRecord) error {
	if err := putStored(ctx, s, prefixOperation+r.ID, r); err != nil {
		// It may have been written all the same: the storage knows.
		b.opsInvalidate(prefixOperation + r.ID)
		return err
	}
	b.ops.mu.Lock()
	b.ops.place(r)
	b.ops.mu.Unlock()
	return nil
}

// opsInvalidate marks a storage key to be read again before its next use.
func (b *backend) opsInvalidate(key string) {
	if agent, ok := strings.CutPrefix(key, prefixChain); ok {
		b.ops.mu.Lock()
		delete(b.ops.chains, agent)
		b.ops.mu.Unlock()
		return
	}
	for _, prefix := range []string{prefixPolicy, prefixConnection, prefixAgent, prefixOperation} {
		if strings.HasPrefix(key, prefix) {
			b.ops.mu.Lock()
			b.ops.dirty[key] = true
			b.ops.mu.Unlock()
			return
		}
	}
}

// errNoOperation answers for an id that does not exist or is not the caller's.
func errNoOperation(id string) error {
	return notFound("%s", fmt.Sprintf("there is no operation %q", id))
}
