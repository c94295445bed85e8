package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// identities is Vault's identity store in tests.
type identities struct {
	logical.StaticSystemView

	mu       sync.Mutex
	entities map[string]*logical.Entity
	groups   map[string][]*logical.Group
}

func (i *identities) EntityInfo(id string) (*logical.Entity, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.entities[id], nil
}

func (i *identities) GroupsForEntity(id string) ([]*logical.Group, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.groups[id], nil
}

func (i *identities) ReplicationState() consts.ReplicationState { return 0 }

// fakeAccounts stands for the databases: it remembers who is logged in to what.
type fakeAccounts struct {
	mu         sync.Mutex
	endpoints  map[string]wire.Endpoint
	configs    map[string]string
	identities map[string]wire.ServerIdentity
	open       map[string]accountRequest // by record id
	issued     int
	endFails   error
	issueFails error
	onIssue    func()
	now        func() time.Time
	at         map[string]time.Time // of issue, by record id
	// onEnd is told of every account that is gone.
	onEnd func(context.Context, logical.Storage, *accountRecord) error
}

var _ operationAccounts = (*fakeAccounts)(nil)

func (f *fakeAccounts) issueAccount(_ context.Context, _ logical.Storage, r accountRequest) (issuedAccount, error) {
	if f.onIssue != nil {
		f.onIssue()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.issueFails != nil {
		return issuedAccount{}, f.issueFails
	}
	f.issued++
	id := fmt.Sprintf("record-%d", f.issued)
	f.open[id], f.at[id] = r, f.now()
	return issuedAccount{RecordID: id, Username: "user-" + id, leasedCredential: leasedCredential{Password: wire.NewSecret("hunter2")}, TTL: r.TTL}, nil
}

func (f *fakeAccounts) renewAccount(_ context.Context, _ logical.Storage, id string, _ time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.open[id]; !ok {
		return errors.New("no such account")
	}
	return nil
}

func (f *fakeAccounts) endAccount(ctx context.Context, s logical.Storage, id string) error {
	f.mu.Lock()
	r, ok := f.open[id]
	at := f.at[id]
	delete(f.open, id)
	f.mu.Unlock()
	if !ok {
		return nil
	}
	return f.onEnd(ctx, s, &accountRecord{
		ID: id, Username: "user-" + id, OperationID: r.OperationID, Side: r.Side, Purpose: r.Purpose, Fence: r.Fence, CreatedAt: at,
	})
}

func (f *fakeAccounts) endLeased(ctx context.Context, s logical.Storage, id string) error {
	return f.endAccount(ctx, s, id)
}

func (f *fakeAccounts) endOperationAccounts(ctx context.Context, s logical.Storage, op string, side wire.Side) error {
	f.mu.Lock()
	if f.endFails != nil {
		defer f.mu.Unlock()
		return f.endFails
	}
	var ids []string
	for id, r := range f.open {
		if r.OperationID == op && (side == "" || r.Side == side) {
			ids = append(ids, id)
		}
	}
	f.mu.Unlock()
	slices.Sort(ids)
	for _, id := range ids {
		if err := f.endAccount(ctx, s, id); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeAccounts) endpoint(_ context.Context, _ logical.Storage, name string) (wire.Endpoint, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ep, ok := f.endpoints[name]
	if !ok {
		return wire.Endpoint{}, "", notFound("connection %q has no config", name)
	}
	return ep, f.configs[name], nil
}

func (f *fakeAccounts) serverIdentity(_ context.Context, _ logical.Storage, name string) (wire.ServerIdentity, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	identity, ok := f.identities[name]
	if !ok {
		return wire.ServerIdentity{}, errors.New("connection refused")
	}
	return identity, nil
}

func (f *fakeAccounts) openAccounts() []accountRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []accountRequest
	for _, r := range f.open {
		all = append(all, r)
	}
	return all
}

// testClock is time in tests.
type testClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *testClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *testClock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// desk is one mount of the engine with prod and staging, an agent a1 and a
// policy that lets alice clone.
type desk struct {
	t       *testing.T
	b       *backend
	storage logical.Storage
	system  *identities
	db      *fakeAccounts
	clock   *testClock
}

const (
	alice     = "entity-alice"
	bob       = "entity-bob"
	agentOne  = "entity-a1"
	agentTwo  = "entity-a2"
	approle   = "auth_approle_1"
	wholeHour = 3600
)

func newDesk(t *testing.T) *desk {
	t.Helper()
	m := &desk{
		t: t, storage: &logical.InmemStorage{}, clock: &testClock{at: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)},
		system: &identities{
			StaticSystemView: logical.StaticSystemView{DefaultLeaseTTLVal: time.Hour, MaxLeaseTTLVal: 24 * time.Hour},
			entities: map[string]*logical.Entity{
				alice: {ID: alice, Name: "alice"}, bob: {ID: bob, Name: "bob"},
				agentOne: {ID: agentOne, Name: "entity_1234", Aliases: []*logical.Alias{{MountAccessor: approle, Metadata: map[string]string{"role_name": "a1"}}}},
				agentTwo: {ID: agentTwo, Name: "entity_5678", Aliases: []*logical.Alias{{MountAccessor: approle, Metadata: map[string]string{"role_name": "a2"}}}},
			},
			groups: map[string][]*logical.Group{bob: {{ID: "group-ops"}}},
		},
		db: &fakeAccounts{
			endpoints: map[string]wire.Endpoint{
				"prod":    {Engine: wire.EnginePostgres, Host: "db1", Port: 5432, Database: "shop", SSLMode: "verify-full"},
				"staging": {Engine: wire.EnginePostgres, Host: "db2", Port: 5432, Database: "shop", SSLMode: "verify-full"},
			},
			configs: map[string]string{"prod": "c1", "staging": "c2"}, identities: map[string]wire.ServerIdentity{}, open: map[string]accountRequest{}, at: map[string]time.Time{},
		},
	}
	m.db.now = m.clock.now
	m.restart()
	m.must(m.write("", "connections/prod", "purposes", "inspect=i,read=r", "labels", "tier=gold"))
	m.must(m.write("", "connections/staging", "purposes", "inspect=i,write=w", "labels", "tier=dev"))
	m.must(m.write("", "agents/a1", "accessor", approle))
	m.must(m.write("", "agents/a2", "accessor", approle))
	m.must(m.write("", "policies/dev", "entities", alice, "sources", "prod", "targets", "staging", "allowed_operations", "clone", "max_operations_per_hour", 100))
	return m
}

// restart throws the instance away, as a crash or a failover does, and makes a new
// one on the same storage.
func (m *desk) restart() {
	m.t.Helper()
	b := newBackend(DefaultVersion, m.clock.now)
	b.ops = newOperationState(m.db)
	m.db.onEnd = b.noteAccountEnded
	require.NoError(m.t, b.Setup(context.Background(), &logical.BackendConfig{
		Logger: hclog.NewNullLogger(), System: m.system, StorageView: m.storage, BackendUUID: "11111111-2222-3333-4444-555555555555",
	}))
	m.b = b
	m.t.Cleanup(func() { b.clean(context.Background()) })
}

func (m *desk) handle(entity string, op logical.Operation, path string, fields ...any) (*logical.Response, error) {
	m.t.Helper()
	data := map[string]any{}
	for i := 0; i < len(fields); i += 2 {
		data[fields[i].(string)] = fields[i+1]
	}
	return m.b.HandleRequest(context.Background(), &logical.Request{
		Operation: op, Path: path, Data: data, Storage: m.storage, EntityID: entity, MountPoint: "dbops/",
	})
}

func (m *desk) write(entity, path string, fields ...any) (*logical.Response, error) {
	m.t.Helper()
	return m.handle(entity, logical.UpdateOperation, path, fields...)
}

func (m *desk) read(entity, path string, fields ...any) (*logical.Response, error) {
	m.t.Helper()
	return m.handle(entity, logical.ReadOperation, path, fields...)
}

func (m *desk) must(resp *logical.Response, err error) map[string]any {
	m.t.Helper()
	require.NoError(m.t, err)
	if resp == nil {
		return nil
	}
	require.False(m.t, resp.IsError(), "%v", resp.Data)
	return resp.Data
}

// refused checks that the answer is a 4xx with the code, in a form that the other
// side reads back, and returns it.
func (m *desk) refused(code wire.Code, resp *logical.Response, err error) wire.Error {
	m.t.Helper()
	require.Error(m.t, err)
	require.Nil(m.t, resp)
	var coded logical.HTTPCodedError
	require.ErrorAs(m.t, err, &coded)
	parsed := wire.ParseError(err.Error())
	require.NotNil(m.t, parsed, "%v", err)
	require.Equal(m.t, code, parsed.Code, "%v", err)
	require.Equal(m.t, code.Info().HTTP, coded.Code())
	require.True(m.t, coded.Code() >= 400 && coded.Code() < 500, "%v", err)
	require.NotEmpty(m.t, parsed.Reason)
	return *parsed
}

func into[T any](m *desk, data map[string]any) T {
	m.t.Helper()
	content, err := json.Marshal(data)
	require.NoError(m.t, err)
	var value T
	require.NoError(m.t, json.Unmarshal(content, &value))
	return value
}

func (m *desk) clone(fields ...any) wire.Operation {
	m.t.Helper()
	return into[wire.Operation](m, m.must(m.write(alice, "clone/prod/staging", fields...)))
}

// cloneInto asks for a clone into a target of its own, on another server.
func (m *desk) cloneInto(target string) string {
	m.t.Helper()
	m.db.mu.Lock()
	m.db.endpoints[target] = wire.Endpoint{Engine: wire.EnginePostgres, Host: "host-of-" + target, Port: 5432, Database: "shop", SSLMode: "verify-full"}
	m.db.configs[target] = "config-of-" + target
	m.db.mu.Unlock()
	m.must(m.write("", "connections/"+target, "purposes", "inspect=i,write=w", "labels", "tier=dev"))
	return into[wire.Operation](m, m.must(m.write(alice, "clone/prod/"+target))).ID
}

func (m *desk) operation(id string) wire.Operation {
	m.t.Helper()
	return into[wire.Operation](m, m.must(m.read("", "all/operations/"+id)))
}

func (m *desk) poll(agent string, held ...string) wire.PollResponse {
	m.t.Helper()
	return m.pollWith(agent, 4, "1", held...)
}

func (m *desk) pollWith(agent string, slots int, audit string, held ...string) wire.PollResponse {
	m.t.Helper()
	return into[wire.PollResponse](m, m.must(m.write("entity-"+agent, "agents/"+agent+"/poll",
		"version", 1, "boot", "b", "free_slots", slots, "held", held, "audit_devices", audit)))
}

func (m *desk) work(agent, id, what string, fields ...any) (*logical.Response, error) {
	m.t.Helper()
	return m.write("entity-"+agent, "agents/"+agent+"/operations/"+id+"/"+what, fields...)
}

func planText(change ...func(*wire.ShapeHead, *wire.Estimates)) (text, shape string) {
	head := wire.ShapeHead{
		Kind: wire.KindClone, Strategy: "stream", Why: "only one there is", Tables: 1,
		Source: wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "1001", Database: "shop", DatabaseID: "5", Version: "15.1", TLS: true},
		Target: wire.ServerIdentity{Engine: wire.EnginePostgres, Server: "1002", Database: "shop", Version: "15.1", TLS: true},
	}
	estimates := wire.Estimates{Tables: 1, Rows: 10, Bytes: 100}
	for _, c := range change {
		c(&head, &estimates)
	}
	content, err := json.Marshal(head)
	if err != nil {
		panic(err)
	}
	plan, err := json.Marshal(wire.Plan{Version: 1, Shape: content, Estimates: estimates})
	if err != nil {
		panic(err)
	}
	return string(plan), string(content)
}

func (m *desk) sendPlan(agent, id, fence, text string) (*logical.Response, error) {
	m.t.Helper()
	return m.work(agent, id, "plan", "fence", fence, "part", "0", "parts", "1", "text", text)
}

// running brings a new operation to its running claim on agent a1, the shape
// confirmed.
func (m *desk) running() (id, fence string) {
	m.t.Helper()
	op := m.clone()
	polled := m.poll("a1")
	require.Len(m.t, polled.Claims, 1)
	require.Equal(m.t, op.ID, polled.Claims[0].OperationID)
	text, shape := planText()
	answer := into[wire.PlanResponse](m, m.must(m.sendPlan("a1", op.ID, polled.Claims[0].Fence, text)))
	require.Equal(m.t, wire.StateRunning, answer.State)
	require.NotNil(m.t, answer.Claim)
	fence = answer.Claim.Fence
	for _, side := range []string{"source", "target"} {
		m.must(m.work("a1", op.ID, "accounts/"+side, "fence", fence))
	}
	m.must(m.sendPlan("a1", op.ID, fence, shape))
	return op.ID, fence
}

// chainOf is an agent's own idea of its chain.
type testChain struct {
	agent      string
	epoch, seq int
	head       string
}

func (c *testChain) event(op wire.Operation, change ...func(*wire.Event)) string {
	c.seq++
	e := wire.Event{
		V: 1, T: time.Unix(0, 0).UTC(), Agent: c.agent, Epoch: strconv.Itoa(c.epoch), Seq: strconv.Itoa(c.seq), OpID: op.ID,
		Operation: op.Kind, Source: op.Source, Target: op.Target, User: op.Requester, EventType: wire.EventStepStarted,
		Severity: wire.SeverityInfo, Outcome: "started", Phase: wire.StepCopy, Prev: c.head,
	}
	for _, f := range change {
		f(&e)
	}
	text, hash, err := e.Encode()
	if err != nil {
		panic(err)
	}
	c.head = hash
	return text
}

func step(t wire.EventType, s wire.Step, outcome string) func(*wire.Event) {
	return func(e *wire.Event) { e.EventType, e.Phase, e.Outcome = t, s, outcome }
}

func (m *desk) events(agent, id string, texts ...string) (*logical.Response, error) {
	m.t.Helper()
	return m.work(agent, id, "events", wire.EventsKey, texts)
}

// settle lets work in the background end.
func (m *desk) settle() {
	m.t.Helper()
	require.NoError(m.t, m.b.enforceDeadlines(context.Background(), m.storage))
	require.Eventually(m.t, func() bool {
		m.b.ops.mu.RLock()
		defer m.b.ops.mu.RUnlock()
		return len(m.b.ops.ending) == 0 && m.b.receipts.idle()
	}, 5*time.Second, time.Millisecond)
}

func sidesOf(records []accountRequest) []string {
	var all []string
	for _, r := range records {
		all = append(all, string(r.Side)+"/"+string(r.Purpose))
	}
	slices.Sort(all)
	return all
}
