package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// factWrites is a storage whose writes below a prefix fail while told so.
type factWrites struct {
	logical.Storage
	prefix string
	fail   bool
	// landed: they take effect all the same.
	landed bool
	puts   int
}

func (s *factWrites) Put(ctx context.Context, e *logical.StorageEntry) error {
	if !strings.HasPrefix(e.Key, s.prefix) {
		return s.Storage.Put(ctx, e)
	}
	s.puts++
	if s.fail {
		if s.landed {
			_ = s.Storage.Put(ctx, e)
		}
		return errors.New("storage is away")
	}
	return s.Storage.Put(ctx, e)
}

func rotated(n int) wire.Fact {
	return wire.Fact{EventType: wire.EventCredentialRotated, Outcome: wire.OutcomeSuccess, Connection: "prod", Username: "app" + strconv.Itoa(n)}
}

func (m *desk) store() {
	m.t.Helper()
	require.NoError(m.t, m.b.storeFacts(m.t.Context(), m.storage))
}

// facts reads one answer of the path and checks that it is a chain behind head.
func (m *desk) facts(head string) (all []wire.Fact, answer wire.FactsResponse) {
	m.t.Helper()
	data := m.must(m.read("", "facts"))
	answer = into[wire.FactsResponse](m, data)
	for _, text := range answer.Facts {
		var f wire.Fact
		require.NoError(m.t, json.Unmarshal([]byte(text), &f))
		require.Equal(m.t, head, f.Prev)
		head = wire.EventHash(text)
		all = append(all, f)
	}
	return all, answer
}

func (m *desk) ack(seq string) {
	m.t.Helper()
	m.must(m.write("", "facts/ack", "seq", seq))
}

// Facts outlive a restart, are handed out in order as one chain until they are
// acknowledged, and only what was handed out can be.
func TestFacts_HandedOutUntilAcknowledged(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	for i := range 250 {
		m.b.noteFact(rotated(i))
	}
	none, _ := m.facts("")
	require.Empty(t, none, "what a crash would lose is not handed out")
	m.store()
	resp, err := m.write("", "facts/ack", "seq", "1")
	m.refused(wire.CodeConflict, resp, err)
	first, answer := m.facts("")
	require.Len(t, first, factsAtOnce)
	require.Equal(t, "250", answer.Waiting)
	require.Equal(t, "1", first[0].Seq)
	require.Equal(t, wire.Chain{Epoch: "0", Seq: "0"}, m.chains().Facts)

	m.restart()
	again, same := m.facts("")
	require.Equal(t, answer, same, "byte-equal copies")
	require.Equal(t, first, again)
	resp, err = m.write("", "facts/ack", "seq", "101")
	m.refused(wire.CodeConflict, resp, err)
	m.ack(answer.Seq)
	m.ack(answer.Seq)
	m.ack("3")
	require.Equal(t, wire.Chain{Epoch: "1", Seq: "100", Head: answer.Head}, m.chains().Facts)

	m.b.noteFact(rotated(250))
	m.store()
	m.restart()
	second, answer := m.facts(answer.Head)
	require.Equal(t, "101", second[0].Seq)
	m.ack(answer.Seq)
	third, answer := m.facts(answer.Head)
	require.Len(t, third, 51)
	require.Equal(t, "app250", third[50].Username)
	m.ack(answer.Seq)
	keys, err := m.storage.List(t.Context(), prefixFactsStored)
	require.NoError(t, err)
	require.Empty(t, keys)

	m.restart()
	m.b.noteFact(rotated(251))
	m.store()
	last, _ := m.facts(answer.Head)
	require.Len(t, last, 1)
	require.Equal(t, "252", last[0].Seq)
}

// Many facts of one second are stored together, in chunks below Vault's limit.
func TestFacts_StoredTogetherInChunks(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	s := &factWrites{Storage: m.storage, prefix: "facts/"}
	for i := range factsKept {
		f := rotated(i)
		f.Detail, f.Object = strings.Repeat("é", 5000), strings.Repeat("x", 5000)
		m.b.noteFact(f)
	}
	require.NoError(t, m.b.storeFacts(t.Context(), s))
	require.Equal(t, factsKept/factsInChunk, s.puts)
	keys, err := m.storage.List(t.Context(), prefixFactsStored)
	require.NoError(t, err)
	for _, key := range keys {
		entry, err := m.storage.Get(t.Context(), prefixFactsStored+key)
		require.NoError(t, err)
		require.Less(t, len(entry.Value), 512<<10)
	}
	require.NoError(t, m.b.storeFacts(t.Context(), s))
	require.Equal(t, factsKept/factsInChunk, s.puts, "nothing new, no write")
}

// A write that fails, whether it took effect or not, loses no fact and forks no
// chain.
func TestFacts_FailedWrites(t *testing.T) {
	t.Parallel()
	for _, landed := range []bool{false, true} {
		m := newDesk(t)
		s := &factWrites{Storage: m.storage, prefix: prefixFactsStored, fail: true, landed: landed}
		m.b.noteFact(rotated(1))
		require.Error(t, m.b.storeFacts(t.Context(), s))
		m.b.noteFact(rotated(2))
		require.Error(t, m.b.storeFacts(t.Context(), s))
		s.fail = false
		require.NoError(t, m.b.storeFacts(t.Context(), s))
		m.restart()
		all, answer := m.facts("")
		require.Len(t, all, 2)

		s = &factWrites{Storage: m.storage, prefix: keyFactsAcked, fail: true, landed: landed}
		require.Error(t, m.b.ackFacts(t.Context(), s, 1))
		m.b.noteFact(rotated(3))
		m.store()
		head := ""
		if landed {
			head = wire.EventHash(answer.Facts[0])
		}
		all, _ = m.facts(head)
		require.Len(t, all, map[bool]int{false: 3, true: 2}[landed])
	}
}

// More than are kept are counted by type, and told once there is room; what anybody
// can cause does not push out the rest.
func TestFacts_Overflow(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	for i := range 2 * factsKept {
		resp, err := m.read(alice, fmt.Sprintf("creds/none-%d", i%10))
		require.True(t, err != nil || resp.IsError())
		m.b.noteRefusal(&logical.Request{Path: fmt.Sprintf("creds/r%d", i), EntityID: alice}, &wire.Error{Code: wire.CodeRateLimited})
		if i%300 == 299 { // their windows pass, so that each is a fact of its own
			m.clock.pass(2 * repeatWindow)
			m.store()
		}
	}
	m.b.facts.mu.Lock()
	require.LessOrEqual(t, len(m.b.facts.waiting)+len(m.b.facts.noted), factsThatAreMany+len(wire.EventTypes()))
	require.LessOrEqual(t, len(m.b.facts.repeats), repeatsKept)
	m.b.facts.mu.Unlock()
	for i := range factsKept {
		m.b.noteFact(rotated(i))
	}
	m.store()
	types, lost, head := map[wire.EventType]int{}, 0, ""
	for {
		all, answer := m.facts(head)
		if len(all) == 0 {
			break
		}
		for _, f := range all {
			types[f.EventType]++
			if f.EventType == wire.EventFactsLost && f.Object == string(wire.EventCredentialRotated) {
				count, err := strconv.Atoi(f.Count)
				require.NoError(t, err)
				lost += count
			}
		}
		head = answer.Head
		m.ack(answer.Seq)
		m.store()
	}
	require.Equal(t, factsKept, types[wire.EventCredentialRotated]+lost, "%v", types)
	require.Greater(t, types[wire.EventCredentialRotated], 400)
	require.Positive(t, types[wire.EventFactsLost])
}

// Equal refusals within a minute are one fact, and one more that counts them.
func TestFacts_RefusalsAreCounted(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	for range 40 {
		resp, err := m.write(bob, "clone/prod/staging")
		m.refused(wire.CodeDenied, resp, err)
	}
	resp, err := m.write("entity-a2", "agents/a1/poll", "version", 1)
	m.refused(wire.CodeNotYourOperation, resp, err)
	m.store()
	m.clock.pass(repeatWindow)
	m.store()
	all, _ := m.facts("")
	require.Len(t, all, 3)
	denied, unauthorized, again := all[0], all[1], all[2]
	require.Equal(t, wire.EventAccessDenied, denied.EventType)
	require.Equal(t, wire.OutcomeDenied, denied.Outcome)
	require.Equal(t, bob, denied.EntityID)
	require.Contains(t, denied.Object, "clone/prod/staging")
	require.Empty(t, denied.Count)
	require.Equal(t, wire.EventUnauthorized, unauthorized.EventType)
	require.Equal(t, wire.SeverityCritical, unauthorized.Severity)
	require.Equal(t, "39", again.Count)
}

// What the engine does on its own is a fact: it ends what nobody took.
func TestFacts_OperationsEndedByTheEngine(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	op := m.clone()
	m.clock.pass(48 * time.Hour)
	m.settle()
	require.Equal(t, wire.StateExpired, m.operation(op.ID).State)
	m.store()
	all, _ := m.facts("")
	require.Len(t, all, 1)
	require.Equal(t, wire.EventOperationFinished, all[0].EventType)
	require.Equal(t, op.ID, all[0].OpID)
	require.Equal(t, wire.CodeExpired, all[0].Code)
}

// One agent at a time is told to fetch facts, another when it does not, and none
// without an audit device; only the agent itself reads them on its path.
func TestFacts_OneAgentFetches(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	require.Empty(t, m.poll("a1").Facts)
	m.b.noteFact(rotated(1))
	m.store()
	require.Empty(t, m.pollWith("a2", 0, "0").Facts)
	require.Equal(t, "1", m.poll("a1").Facts)
	require.Empty(t, m.poll("a2").Facts)
	m.clock.pass(factsHeldFor)
	require.Equal(t, "1", m.poll("a2").Facts)
	require.Empty(t, m.poll("a1").Facts)

	resp, err := m.read("entity-a1", "agents/a2/facts")
	m.refused(wire.CodeNotYourOperation, resp, err)
	answer := into[wire.FactsResponse](m, m.must(m.read("entity-a2", "agents/a2/facts")))
	require.Len(t, answer.Facts, 1)
	resp, err = m.write("entity-a1", "agents/a2/facts", "seq", answer.Seq)
	m.refused(wire.CodeNotYourOperation, resp, err)
	m.must(m.write("entity-a2", "agents/a2/facts", "seq", answer.Seq))
	require.Empty(t, m.poll("a2").Facts)
	resp, err = m.write("", "facts/ack", "seq", "many")
	require.Equal(t, "seq", m.refused(wire.CodeInvalid, resp, err).Field)
}

// Each end of a login that nobody asked for is a fact, and so are failures, once.
func TestFacts_Logins(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	now := m.clock.now()
	asked := &accountRecord{Connection: "prod", Role: "r", Username: "u1", ExpiresAt: now.Add(time.Hour)}
	over := &accountRecord{Connection: "prod", Role: "r", Username: "u2", ExpiresAt: now, OperationID: "op-1"}
	m.b.noteEnded(asked, 0)
	m.b.noteEnded(over, 0)
	m.b.noteEnded(asked, 2)
	m.b.noteNotEnded(over, &revocation{Attempts: 1, Code: wire.CodeUnavailable})
	m.b.noteNotEnded(over, &revocation{Attempts: 2, Code: wire.CodeUnavailable})
	m.b.noteOrphan("prod", "u3")
	m.b.noteRotated("prod", "app", "u4", &wire.Error{Code: wire.CodeUnavailable})
	m.store()
	all, _ := m.facts("")
	var told []string
	for _, f := range all {
		told = append(told, string(f.EventType)+" "+f.Username+" "+f.Outcome+" "+string(f.Severity)+" "+string(f.Code))
	}
	require.Equal(t, []string{
		"session_expired u2 success info ", "session_expired u1 success info ", "revocation_failed u2 failure error unavailable",
		"suspicious_activity u3 success warning ", "credential_rotated u4 failure error unavailable",
	}, told)
}

// Noting never waits for storage: with one that hangs, ten thousand are noted at once.
func TestFacts_NotingIsFree(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.b.facts.storing.Lock()
	defer m.b.facts.storing.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 10000 {
			m.b.noteFact(rotated(i))
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("noting waits")
	}
}
