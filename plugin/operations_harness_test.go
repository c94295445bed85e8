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
	looks    map[string]func() // what happens when somebody is looked for, once
}

func (i *identities) EntityInfo(id string) (*logical.Entity, error) {
	i.mu.Lock()
	happens := i.looks[id]
	delete(i.looks, id)
	i.mu.Unlock()
	if happens != nil {
		happens()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	entity := i.entities[id]
	if entity == nil {
		return nil, nil
	}
	// As over gRPC: what is changed later is not in it.
	return &logical.Entity{ID: entity.ID, Name: entity.Name, Aliases: entity.Aliases, Disabled: entity.Disabled}, nil
}

// set changes entities, which stand by id.
func (i *identities) set(change func(entities map[string]*logical.Entity)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i.entities)
}

// onNextLook lets something happen while a request asks who the entity is.
func (i *identities) onNextLook(id string, happens func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.looks = map[string]func(){id: happens}
}

func (i *identities) disable(id string) {
	i.set(func(entities map[string]*logical.Entity) { entities[id].Disabled = true })
}

func (i *identities) remove(id string) {
	i.set(func(entities map[string]*logical.Entity) { delete(entities, id) })
}

func (i *identities) add(entity *logical.Entity) {
	i.set(func(entities map[string]*logical.Entity) { entities[entity.ID] = entity })
}

func (i *identities) alias(id string, aliases ...*logical.Alias) {
	i.set(func(entities map[string]*logical.Entity) { entities[id].Aliases = aliases })
}

func (i *identities) aliases(id string) []*logical.Alias {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.entities[id].Aliases
}

func (i *identities) GroupsForEntity(id string) ([]*logical.Group, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.groups[id], nil
}

func (i *identities) ReplicationState() consts.ReplicationState { return 0 }

// fakeAccounts stands for the databases: it remembers who is logged in to what,
// whichever process asks. Tests change it by set.
type fakeAccounts struct {
	now func() time.Time // never changed

	mu         sync.Mutex
	endpoints  map[string]wire.Endpoint
	configs    map[string]string
	identities map[string]wire.ServerIdentity
	seen       map[string]wire.ServerIdentity // what servers say that have no identity: as the agent has it
	silent     map[string]bool                // servers that do not answer
	grants     map[string]string              // by role, where it is not its name; "" takes the role away
	open       map[string]accountRequest      // by record id
	issued     int
	endFails   error
	issueFails error
	// onIssue and onEnding are called before an account is made or ended.
	onIssue, onEnding func()
	at                map[string]time.Time // of issue, by record id
}

func (f *fakeAccounts) set(change func(*fakeAccounts)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// connect gives a connection this config and endpoint.
func (f *fakeAccounts) connect(name, config string, ep wire.Endpoint) {
	f.set(func(f *fakeAccounts) { f.configs[name], f.endpoints[name] = config, ep })
}

// identify lets the server of a connection say who it is.
func (f *fakeAccounts) identify(name string, identity wire.ServerIdentity) {
	f.set(func(f *fakeAccounts) { f.identities[name] = identity })
}

// processAccounts is how one process reaches the databases.
type processAccounts struct {
	*fakeAccounts
	process *process
	// noteEnded is told of every account that is gone.
	noteEnded func(context.Context, logical.Storage, *accountRecord) error
}

var _ operationAccounts = (*processAccounts)(nil)

// locked runs one effect on the databases.
func (p *processAccounts) locked(effect func() error) error {
	return p.process.does(func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		return effect()
	})
}

// before runs a hook, which may do anything.
func (p *processAccounts) before(hook *func()) {
	p.mu.Lock()
	f := *hook
	p.mu.Unlock()
	if f != nil {
		f()
	}
}

func (p *processAccounts) issueAccount(_ context.Context, _ logical.Storage, r accountRequest) (issued issuedAccount, err error) {
	p.before(&p.onIssue)
	err = p.locked(func() error {
		if p.issueFails != nil {
			return p.issueFails
		}
		p.issued++
		id := fmt.Sprintf("record-%d", p.issued)
		p.open[id], p.at[id] = r, p.now()
		issued = issuedAccount{RecordID: id, Username: "user-" + id, leasedCredential: leasedCredential{Password: wire.NewSecret("hunter2")}, TTL: r.TTL}
		return nil
	})
	return issued, err
}

func (p *processAccounts) renewAccount(_ context.Context, _ logical.Storage, id string, _ time.Duration) error {
	return p.locked(func() error {
		if _, ok := p.open[id]; !ok {
			return errors.New("no such account")
		}
		return nil
	})
}

// endAccount removes the account last: killed before, it is ended once more.
func (p *processAccounts) endAccount(ctx context.Context, s logical.Storage, id string) error {
	p.before(&p.onEnding)
	var record *accountRecord
	err := p.locked(func() error {
		if r, ok := p.open[id]; ok {
			record = &accountRecord{
				ID: id, Username: "user-" + id, OperationID: r.OperationID, Side: r.Side, Purpose: r.Purpose, Fence: r.Fence, CreatedAt: p.at[id],
			}
		}
		return nil
	})
	if err != nil || record == nil {
		return err
	}
	if err := p.noteEnded(ctx, s, record); err != nil {
		return err
	}
	return p.locked(func() error {
		delete(p.open, id)
		return nil
	})
}

func (p *processAccounts) endLeased(ctx context.Context, s logical.Storage, id string) error {
	return p.endAccount(ctx, s, id)
}

func (p *processAccounts) endOperationAccounts(ctx context.Context, s logical.Storage, op string, side wire.Side) error {
	var ids []string
	err := p.locked(func() error {
		for id, r := range p.open {
			if r.OperationID == op && (side == "" || r.Side == side) {
				ids = append(ids, id)
			}
		}
		return p.endFails
	})
	if err != nil {
		return err
	}
	slices.Sort(ids)
	for _, id := range ids {
		if err := p.endAccount(ctx, s, id); err != nil {
			return err
		}
	}
	return nil
}

func (p *processAccounts) endpoint(_ context.Context, _ logical.Storage, name string) (ep wire.Endpoint, config string, err error) {
	err = p.locked(func() error {
		known, ok := p.endpoints[name]
		if !ok {
			return notFound("connection %q has no config", name)
		}
		ep, config = known, p.configs[name]
		return nil
	})
	return ep, config, err
}

func (p *processAccounts) serverIdentity(_ context.Context, _ logical.Storage, name string) (identity wire.ServerIdentity, err error) {
	err = p.locked(func() error {
		known, ok := p.identities[name]
		if !ok {
			known, ok = p.seen[name]
		}
		if !ok || p.silent[name] {
			return &wire.Error{Code: wire.CodeUnavailable, Reason: "connection refused"}
		}
		identity = known
		return nil
	})
	return identity, err
}

func (p *processAccounts) operationLogin(_ context.Context, _ logical.Storage, connection, role string) (l operationLogin, err error) {
	err = p.locked(func() error {
		grant, changed := p.grants[role]
		switch {
		case !changed:
			grant = "GRANT " + role
		case grant == "":
			return &wire.Error{Code: wire.CodeConflict, Reason: fmt.Sprintf("role %q of connection %q does not exist", role, connection)}
		}
		l.PlannedLogin = wire.PlannedLogin{Connection: connection, Role: role, CredentialType: credentialPassword, Creation: []string{grant}}
		l.Digest = wire.Digest([]byte(connection + role + grant))
		return nil
	})
	return l, err
}

// grant changes what logins by a role are granted.
func (f *fakeAccounts) grant(role, statement string) {
	f.set(func(f *fakeAccounts) { f.grants[role] = statement })
}

// made is how many accounts there ever were.
func (f *fakeAccounts) made() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.issued
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
	disk    *logical.InmemStorage // outlives every process
	process *process              // the one under way
	b       *backend              // its engine
	storage logical.Storage       // disk as it reaches it
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
		t: t, disk: &logical.InmemStorage{}, clock: &testClock{at: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)},
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
			configs: map[string]string{"prod": "c1", "staging": "c2"}, identities: map[string]wire.ServerIdentity{}, seen: map[string]wire.ServerIdentity{}, silent: map[string]bool{}, grants: map[string]string{}, open: map[string]accountRequest{}, at: map[string]time.Time{},
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

// restart kills the process, as a crash or a failover does, and begins a new one
// on the same storage.
func (m *desk) restart() {
	m.t.Helper()
	m.restartLogged(hclog.NewNullLogger())
}

func (m *desk) restartLogged(log hclog.Logger) {
	m.t.Helper()
	if m.process != nil {
		m.process.kill()
		m.b.clean(context.Background())
	}
	m.process = &process{}
	m.storage = &processStorage{Storage: m.disk, process: m.process}
	b := newBackend(DefaultVersion, m.clock.now, systemUptime())
	b.ops = newOperationState(&processAccounts{fakeAccounts: m.db, process: m.process, noteEnded: b.noteAccountEnded})
	require.NoError(m.t, b.Setup(context.Background(), &logical.BackendConfig{
		Logger: log, System: m.system, StorageView: m.storage, BackendUUID: "11111111-2222-3333-4444-555555555555",
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
	return decode[T](m.t, data)
}

func (m *desk) clone(fields ...any) wire.Operation {
	m.t.Helper()
	return into[wire.Operation](m, m.must(m.write(alice, "clone/prod/staging", fields...)))
}

// cloneInto asks for a clone into a target of its own, on another server.
func (m *desk) cloneInto(target string) string {
	m.t.Helper()
	m.db.connect(target, "config-of-"+target, wire.Endpoint{Engine: wire.EnginePostgres, Host: "host-of-" + target, Port: 5432, Database: "shop", SSLMode: "verify-full"})
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

// storedPlan is a plan's text as it is kept and approved: the agent's, and the logins
// that the plugin puts behind it.
func storedPlan(text string) string {
	login := func(side wire.Side, purpose wire.Purpose, connection, role string) operationLogin {
		return operationLogin{PlannedLogin: wire.PlannedLogin{
			Side: side, Purpose: purpose, Connection: connection, Role: role, CredentialType: credentialPassword, Creation: []string{"GRANT " + role},
		}}
	}
	whole, err := withLogins(text, map[wire.Side]operationLogin{
		wire.Source: login(wire.Source, wire.PurposeRead, "prod", "r"), wire.Target: login(wire.Target, wire.PurposeWrite, "staging", "w"),
	})
	if err != nil {
		panic(err)
	}
	return whole
}

func (m *desk) sendPlan(agent, id, fence, text string) (*logical.Response, error) {
	m.t.Helper()
	m.answerAs(id, text)
	return m.work(agent, id, "plan", "fence", fence, "part", "0", "parts", "1", "text", text)
}

// answerAs has the servers of an operation say to Vault what they have said to the
// agent, but for those that a test has given another answer.
func (m *desk) answerAs(id, text string) {
	var plan wire.Plan
	var head wire.ShapeHead
	r := m.b.ops.operation(id)
	if r == nil || json.Unmarshal([]byte(text), &plan) != nil || json.Unmarshal(plan.Shape, &head) != nil {
		return // the plugin says what is wrong
	}
	m.db.set(func(f *fakeAccounts) { f.seen[r.Source], f.seen[r.Target] = head.Source, head.Target })
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

// fails ends what agent a1 does under a claim so that the target is to be cleaned.
func (m *desk) fails(id, fence string, fields ...any) {
	m.t.Helper()
	m.must(m.work("a1", id, "finish", append([]any{
		"fence", fence, "outcome", "failed", "code", string(wire.CodeEngine), "cleanup_needed", true,
	}, fields...)...))
}

// failed is a run that has ended so.
func (m *desk) failed() (id string) {
	m.t.Helper()
	id, fence := m.running()
	m.fails(id, fence)
	m.settle()
	return id
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
	}, 30*time.Second, time.Millisecond)
}

func sidesOf(records []accountRequest) []string {
	var all []string
	for _, r := range records {
		all = append(all, string(r.Side)+"/"+string(r.Purpose))
	}
	slices.Sort(all)
	return all
}
