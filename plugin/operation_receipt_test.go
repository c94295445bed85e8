package plugin

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/receipt"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

var updateGolden = flag.Bool("update", false, "write the golden files anew")

// idle reports whether no receipt is being made.
func (w *receiptWork) idle() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.making) == 0
}

// statement is what a receipt's payload is decoded to.
type statement struct {
	Type          string `json:"_type"`
	PredicateType string `json:"predicateType"`
	Subject       []struct {
		Name   string
		Digest map[string]string
	}
	Predicate wire.Receipt
}

// opened decodes an envelope, without looking at its signature.
func opened(t *testing.T, text string) (dsse.Envelope, statement) {
	t.Helper()
	var envelope dsse.Envelope
	require.NoError(t, json.Unmarshal([]byte(text), &envelope))
	payload, err := envelope.DecodeB64Payload()
	require.NoError(t, err)
	var s statement
	require.NoError(t, json.Unmarshal(payload, &s))
	return envelope, s
}

func (m *desk) receipt(id string) statement {
	m.t.Helper()
	data := m.must(m.read(alice, "operations/"+id+"/receipt"))
	require.Equal(m.t, data["receipt_digest"], wire.Digest([]byte(data["text"].(string))))
	_, s := opened(m.t, data["text"].(string))
	require.Equal(m.t, "https://in-toto.io/Statement/v1", s.Type)
	require.Equal(m.t, wire.ReceiptPredicateType, s.PredicateType)
	require.Equal(m.t, id, s.Predicate.Attested.Request.OperationID)
	return s
}

// The receipt of a clone says what the plugin knows by itself, account by account
// and claim by claim, and apart from it what the agent told.
func TestReceipt_OfAClone(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	resp, err := m.read(alice, "operations/"+id+"/receipt")
	m.refused(wire.CodeConflict, resp, err)
	chain := &testChain{agent: "a1", epoch: 1}
	op := m.operation(id)
	m.must(m.events("a1", id, chain.event(op, step(wire.EventStepFinished, wire.StepSwitch, "success"))))
	m.clock.pass(time.Minute)
	report := `{"tables":[],"tables_root":"sha256:ab","snapshot":"00-1","sandbox":{"worker_image_id":"sha256:w","base_image_id":"sha256:b"},"audit":{"devices":2}}`
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "succeeded", "rows", "10", "bytes", "9007199254740993", "tables", "1", "report", report))
	m.settle()

	s := m.receipt(id)
	a := s.Predicate.Attested
	require.Equal(t, wire.User{EntityID: alice, Name: "alice"}, a.Request.Requester)
	require.Equal(t, []wire.ReceiptPolicy{{Name: "dev", Version: "1"}}, a.Decision.Policies)
	require.Equal(t, "c1", a.Pins["config/prod"])
	require.Len(t, a.Pins, 7)
	require.Equal(t, m.b.ops.operation(id).Pins.TargetLogin.Digest, a.Pins["roles/w"])
	require.Equal(t, op.PlanDigest, a.PlanDigest)
	require.Equal(t, op.ShapeDigest, a.ShapeDigest)
	require.True(t, a.ShapeConfirmed)
	require.False(t, a.Incomplete)
	require.Len(t, a.Claims, 2)
	require.Equal(t, wire.PhasePlanning, a.Claims[0].Phase)
	require.Equal(t, "0", a.Claims[0].Chain.Seq)
	require.Equal(t, wire.PhaseRunning, a.Claims[1].Phase)
	require.Equal(t, wire.Chain{Epoch: "1", Seq: "1", Head: chain.head}, *a.Claims[1].Chain)
	require.Equal(t, m.clock.now(), a.Claims[1].To)
	require.Equal(t, []wire.ReceiptAccount{
		{Side: wire.Source, Connection: "prod", Purpose: wire.PurposeRead, Username: "user-record-1", Fence: fence, IssuedAt: m.clock.now().Add(-time.Minute), EndedAt: m.clock.now()},
		{Side: wire.Target, Connection: "staging", Purpose: wire.PurposeWrite, Username: "user-record-2", Fence: fence, IssuedAt: m.clock.now().Add(-time.Minute), EndedAt: m.clock.now()},
	}, a.Accounts)
	require.Equal(t, wire.StateSucceeded, a.End.State)
	require.Equal(t, wire.EndedByAgent, a.End.By)
	require.Empty(t, a.End.Reason)
	require.Equal(t, m.clock.now(), a.End.At)
	require.Equal(t, &wire.Reported{
		Outcome: wire.StateSucceeded, Rows: "10", Bytes: "9007199254740993", Tables: "1", ReportDigest: wire.Digest([]byte(report)),
		ReportHead: wire.ReportHead{
			TablesRoot: "sha256:ab", Snapshot: "00-1", Audit: &wire.AuditCheck{Devices: 2},
			Sandbox: &wire.SandboxFacts{WorkerImageID: "sha256:w", BaseImageID: "sha256:b"},
		},
	}, s.Predicate.ReportedByAgent)
	require.Len(t, s.Subject, 3)
	require.Equal(t, strings.TrimPrefix(op.PlanDigest, "sha256:"), s.Subject[1].Digest["sha256"])

	require.Equal(t, m.must(m.read("", "all/operations/"+id+"/receipt")), m.must(m.read(alice, "operations/"+id+"/receipt")))
	resp, err = m.read(bob, "operations/"+id+"/receipt")
	m.refused(wire.CodeNotFound, resp, err)
	before := m.must(m.read(alice, "operations/"+id+"/receipt"))
	m.restart()
	m.settle()
	require.Equal(t, before, m.must(m.read(alice, "operations/"+id+"/receipt")), "a receipt never changes")
}

// There is a receipt of every operation that has ended, however that came about,
// and it says who ended it.
func TestReceipt_OfEveryEnd(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	for name, test := range map[string]struct {
		end   func(m *desk) string
		state wire.State
		by    string
		code  wire.Code
	}{
		"cancelled before anybody took it": {func(m *desk) string {
			id := m.clone().ID
			m.must(m.write(alice, "operations/"+id+"/cancel"))
			return id
		}, wire.StateCancelled, wire.EndedByPlugin, wire.CodeCancelled},
		"expired": {func(m *desk) string {
			id := m.clone().ID
			m.clock.pass(maxWait + time.Minute)
			m.settle()
			return id
		}, wire.StateExpired, wire.EndedByPlugin, wire.CodeExpired},
		"denied on the plan": {func(m *desk) string {
			id := m.clone().ID
			fence := m.poll("a1").Claims[0].Fence
			text, _ := planText(func(h *wire.ShapeHead, _ *wire.Estimates) { h.Target.Database = "another" })
			m.must(m.sendPlan("a1", id, fence, text))
			return id
		}, wire.StateDenied, wire.EndedByPlugin, wire.CodeDenied},
		"failed by its agent": {func(m *desk) string {
			id, fence := m.running()
			m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "failed", "code", "engine", "reason", "out of luck", "step", "copy"))
			return id
		}, wire.StateFailed, wire.EndedByAgent, wire.CodeEngine},
		"agent lost": {func(m *desk) string {
			id, _ := m.running()
			m.clock.pass(defaultGrace + time.Second)
			m.settle()
			m.clock.pass(defaultGrace + time.Second)
			claim := m.poll("a2").Claims[0]
			require.Equal(m.t, wire.PhaseCleanup, claim.Phase)
			resp, err := m.read(alice, "operations/"+id+"/receipt")
			require.Contains(m.t, m.refused(wire.CodeCleanup, resp, err).Reason, "agent a2")
			m.must(m.work("a2", id, "accounts/target", "fence", claim.Fence))
			m.must(m.work("a2", id, "finish", "fence", claim.Fence, "outcome", "succeeded"))
			return id
		}, wire.StateFailed, wire.EndedByPlugin, wire.CodeAgentLost},
	} {
		t.Run(name, func(t *testing.T) {
			id := test.end(m)
			m.settle()
			m.settle()
			s := m.receipt(id)
			require.Equal(t, test.state, s.Predicate.Attested.End.State)
			require.Equal(t, test.by, s.Predicate.Attested.End.By)
			if test.by == wire.EndedByAgent {
				require.Empty(t, s.Predicate.Attested.End.Code)
				require.Equal(t, test.code, s.Predicate.ReportedByAgent.Code)
			} else {
				require.Equal(t, test.code, s.Predicate.Attested.End.Code)
				require.Nil(t, s.Predicate.ReportedByAgent)
			}
			require.Equal(t, len(s.Predicate.Attested.Claims) > 1, len(s.Predicate.Attested.Accounts) > 0)
			if test.code == wire.CodeAgentLost {
				require.Len(t, s.Predicate.Attested.Claims, 3)
				require.Len(t, s.Predicate.Attested.Accounts, 3)
				require.Equal(t, "done", s.Predicate.Attested.End.Cleanup)
			}
		})
	}
}

// An operation that changes while its receipt is made gets one of what it is then, and
// at once; that its logins have ended is told once.
func TestReceipt_ChangedMeanwhile(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	m.onWrite(prefixReceipt, true, func() error {
		before := m.b.ops.operation(id)
		m.b.endAccountsSoon(m.storage, id)
		require.Eventually(t, func() bool {
			m.b.ops.mu.RLock()
			defer m.b.ops.mu.RUnlock()
			return !m.b.ops.ending[id]
		}, 30*time.Second, time.Millisecond)
		require.True(t, before == m.b.ops.operation(id), "nothing was left to end")
		_, err := m.b.updateOperation(t.Context(), m.storage, id, func(r *operationRecord) error {
			r.Cleanup = cleanupFailed
			return nil
		})
		return err
	})
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "failed", "code", "engine"))
	require.Eventually(t, func() bool { return !m.b.ops.operation(id).ReceiptDue }, 30*time.Second, time.Millisecond)
	require.Equal(t, string(cleanupFailed), m.receipt(id).Predicate.Attested.End.Cleanup)
}

// While an account lives there is no receipt, and the refusal says what to do.
func TestReceipt_NotBeforeAccountsAreGone(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	m.db.set(func(f *fakeAccounts) { f.endFails = errors.New("no route to host") })
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "failed", "code", "engine"))
	m.settle()
	resp, err := m.read(alice, "operations/"+id+"/receipt")
	refused := m.refused(wire.CodeCleanup, resp, err)
	require.Contains(t, refused.Reason, "accounts")
	require.Contains(t, refused.Hint, "revocations/")
	require.NotContains(t, m.must(m.read(alice, "operations/"+id)), "receipt_digest")

	m.db.set(func(f *fakeAccounts) { f.endFails = nil })
	// A record of an account that nobody counted is enough to wait.
	require.NoError(t, putStored(t.Context(), m.storage, prefixAccount+id+"/01", accountRecord{ID: id + "/01"}))
	m.clock.pass(endAccountsPause)
	m.settle()
	resp, err = m.read(alice, "operations/"+id+"/receipt")
	m.refused(wire.CodeCleanup, resp, err)
	require.NoError(t, deleteStored(t.Context(), m.storage, prefixAccount+id+"/01"))
	m.clock.pass(receiptPause)
	m.settle()
	require.Len(t, m.receipt(id).Predicate.Attested.Accounts, 2)
	require.Equal(t, m.must(m.read(alice, "operations/"+id+"/receipt"))["receipt_digest"], m.must(m.read(alice, "operations/"+id))["receipt_digest"])
}

// After a receipt was made its agent may come back and say that something is left
// at the target: a new receipt then names the one it replaces.
func TestReceipt_Superseded(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	_, err := m.b.updateOperation(t.Context(), m.storage, id, func(r *operationRecord) error {
		r.ShapeConfirmed = false // so that nothing has to be cleaned up as far as the plugin knows
		return nil
	})
	require.NoError(t, err)
	m.clock.pass(defaultGrace + time.Second)
	m.settle()
	first := m.must(m.read(alice, "operations/"+id+"/receipt"))["receipt_digest"]
	require.Empty(t, m.receipt(id).Predicate.Attested.Supersedes)
	m.fails(id, fence)
	resp, err := m.read(alice, "operations/"+id+"/receipt")
	m.refused(wire.CodeCleanup, resp, err)
	m.settle()
	claim := m.poll("a1").Claims[0]
	m.must(m.work("a1", id, "finish", "fence", claim.Fence, "outcome", "succeeded"))
	m.settle()
	second := m.receipt(id).Predicate.Attested
	require.Equal(t, first, second.Supersedes)
	require.Equal(t, "done", second.End.Cleanup)
	names, err := m.storage.List(t.Context(), prefixReceipt+id+"/")
	require.NoError(t, err)
	require.Equal(t, []string{"2-0", "head"}, names)
}

// failingPuts is a storage of which the n-th Put below a prefix fails, and all
// after it, as when the process dies.
type failingPuts struct {
	logical.Storage
	prefix string
	left   atomic.Int64
}

func (s *failingPuts) Put(ctx context.Context, e *logical.StorageEntry) error {
	if strings.HasPrefix(e.Key, s.prefix) && s.left.Add(-1) < 0 {
		return errors.New("the process has died")
	}
	return s.Storage.Put(ctx, e)
}

// Wherever the making of a receipt is cut off, it is made again and is the same,
// and until then none can be read.
func TestReceipt_CrashBetween(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	id, fence := m.running()
	m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "succeeded", "report", "{}"))
	m.settle()
	want := m.must(m.read(alice, "operations/"+id+"/receipt"))
	undone := func(r *operationRecord) error {
		r.ReceiptDue, r.ReceiptDigest, r.Receipts = true, "", 0
		return nil
	}
	for _, cut := range []struct {
		prefix string
		puts   int64
	}{{prefixReceipt, 0}, {prefixReceipt, 1}, {prefixOperation, 0}} {
		for _, key := range []string{"head", "1-0"} {
			require.NoError(t, deleteStored(t.Context(), m.storage, prefixReceipt+id+"/"+key))
		}
		_, err := m.b.updateOperation(t.Context(), m.storage, id, undone)
		require.NoError(t, err)
		dying := &failingPuts{Storage: m.storage, prefix: cut.prefix}
		dying.left.Store(cut.puts)
		require.ErrorContains(t, m.b.makeReceipt(t.Context(), dying, id), "died")
		m.restart()
		resp, err := m.read(alice, "operations/"+id+"/receipt")
		m.refused(wire.CodeCleanup, resp, err)
		m.settle()
		require.Equal(t, want, m.must(m.read(alice, "operations/"+id+"/receipt")))
	}
}

// Records of earlier versions decode. What had ended has no receipt, what was
// under way gets one that says that its history is not whole.
func TestReceipt_AfterAnUpgrade(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	ended, fence := m.running()
	m.must(m.work("a1", ended, "finish", "fence", fence, "outcome", "succeeded"))
	m.settle()
	going := m.clone().ID
	for _, id := range []string{ended, going} {
		content, err := json.Marshal(m.b.ops.operation(id))
		require.NoError(t, err)
		var old map[string]any
		require.NoError(t, json.Unmarshal(content, &old))
		for _, field := range []string{"history", "policy_versions", "past_claims", "past_accounts", "ended_at", "ended_by", "receipt_due", "receipts", "receipt_digest"} {
			delete(old, field)
		}
		require.NoError(t, putStored(t.Context(), m.storage, prefixOperation+id, old))
	}
	m.restart()
	m.must(m.write(alice, "operations/"+going+"/cancel"))
	m.settle()
	resp, err := m.read(alice, "operations/"+ended+"/receipt")
	require.Contains(t, m.refused(wire.CodeNotFound, resp, err).Reason, "version")
	require.True(t, m.receipt(going).Predicate.Attested.Incomplete)
}

// However often agents die and accounts are made, and however long names are, the
// record stays far below what Vault stores.
func TestOperationHistory_Bounded(t *testing.T) {
	t.Parallel()
	r := &operationRecord{}
	now := time.Now()
	for n := range 10_000 {
		r.Claim = &claimRecord{Agent: strings.Repeat("a", 63), Fence: strconv.Itoa(n), Phase: wire.PhaseCleanup, ClaimedAt: now}
		r.endClaim(now)
		record := &accountRecord{ID: "op/" + strconv.Itoa(n), Username: strings.Repeat("é", 10_000), Side: wire.Target, Purpose: wire.PurposeWrite, CreatedAt: now}
		require.True(t, r.pastAccount(record, now))
		require.False(t, r.pastAccount(record, now), "noted once")
	}
	require.Len(t, r.PastClaims, maxPastClaims)
	require.Equal(t, 10_000-maxPastClaims, r.ClaimsOmitted)
	require.Equal(t, "0", r.PastClaims[0].Fence)
	require.Equal(t, "9999", r.PastClaims[maxPastClaims-1].Fence)
	require.Len(t, r.PastAccounts, maxPastAccounts)
	require.Equal(t, 10_000-maxPastAccounts, r.AccountsOmitted)
	for i := range r.PastClaims {
		r.PastClaims[i].Chain = &wire.Chain{Epoch: "9223372036854775807", Seq: "9223372036854775807", Head: strings.Repeat("f", 64)}
	}
	content, err := json.Marshal(r)
	require.NoError(t, err)
	require.Less(t, len(content), 128<<10)
}

// goldenKey is a key of tests only.
func goldenKey(t *testing.T) *receipt.Key {
	t.Helper()
	key, err := receipt.NewKey(bytes.NewReader(bytes.Repeat([]byte{7}, 32)))
	require.NoError(t, err)
	return key
}

// The same facts give the same bytes, those of the golden file: an auditor's tools
// depend on the form.
func TestReceipt_Golden(t *testing.T) {
	t.Parallel()
	at := func(minutes int) time.Time { return time.Date(2026, 11, 26, 12, minutes, 0, 5000, time.UTC) }
	digest := func(what string) string { return wire.Digest([]byte(what)) }
	r := &operationRecord{
		Operation: wire.Operation{
			ID: "op-01kaysfqcv4d5nvsxgtv1fbkgs", Kind: wire.KindClone, Source: "prod", Target: "staging", State: wire.StateSucceeded,
			Requester: wire.User{EntityID: "e1", Name: "alice"}, Reason: `ticket <4711> & "more"`, RequestID: "r1", Options: map[string]string{"jobs": "2", "acl": "drop"},
			CreatedAt: at(0), Decision: wire.Decision{Allowed: true, Policies: []string{"b", "a"}, Policy: "a", Rule: "max_rows", Reason: "allowed", MaxRows: 1 << 60, MaxDuration: time.Hour},
			PlanDigest: digest("plan"), ShapeDigest: digest("shape"),
			Result: &wire.Result{Rows: "10", Bytes: "100", Tables: "1", ReportDigest: digest("report")},
		},
		operationHistory: operationHistory{
			Kept: true, EndedAt: at(9), EndedBy: wire.EndedByAgent, ReceiptDue: true,
			PastClaims: []wire.ReceiptClaim{
				{Agent: "a1", Fence: "1", Phase: wire.PhasePlanning, From: at(1), To: at(2), Chain: &wire.Chain{Epoch: "1", Seq: "7", Head: strings.Repeat("0a", 32)}},
				{Agent: "a1", Fence: "2", Phase: wire.PhaseRunning, From: at(2), To: at(9), Chain: &wire.Chain{Epoch: "1", Seq: "41", Head: strings.Repeat("0b", 32)}},
			},
			PastAccounts: []pastAccount{
				{RecordID: "x", Side: wire.Target, Purpose: wire.PurposeWrite, Username: "dbops-u", Fence: "2", Unconfirmed: true, IssuedAt: at(3), EndedAt: at(8)},
			},
		},
		ContentDigest: digest("request"), ShapeConfirmed: true, Switched: true, StartedAt: at(2),
		Pins: &pins{SourceConfig: digest("1"), TargetConfig: digest("2"), SourceFacts: digest("3"), TargetFacts: digest("4"), Policies: digest("5"), PolicyVersions: map[string]string{"a": "3", "b": "1"}},
	}
	head := &wire.ReportHead{
		TablesRoot: digest("root"), Snapshot: "00000003-0000001B-1",
		Sandbox: &wire.SandboxFacts{
			WorkerImageID: digest("worker"), BaseImageID: digest("base"), Runtime: "docker 20.10.24, api 1.41",
			Container: &wire.ContainerFacts{Network: "none", User: "65534:65534", ReadOnlyRoot: true, CapabilitiesDropped: "ALL", MemoryBytes: "1073741824"},
		},
		Audit: &wire.AuditCheck{Devices: 2, CheckedAt: at(7)},
	}
	var texts []string
	for range 20 {
		content, err := receipt.Statement(receiptOf(r, wire.ReceiptMount{ID: "abcdefgh", PluginVersion: "v0.1.0"}, head))
		require.NoError(t, err)
		text, err := receipt.Seal(t.Context(), content, goldenKey(t))
		require.NoError(t, err)
		texts = append(texts, string(content)+"\n"+text+"\n")
		require.Equal(t, texts[0], texts[len(texts)-1])
	}
	golden := filepath.Join("testdata", "receipt.golden")
	if *updateGolden {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, []byte(texts[0]), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), texts[0])
}

// A new key signs from its making on; what older ones have signed stays
// verifiable with what keys answers, and their private halves are gone.
func TestKeys_Rotation(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	finished := func() string {
		id, fence := m.running()
		m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "failed", "code", "engine"))
		m.settle()
		return m.must(m.read(alice, "operations/"+id+"/receipt"))["text"].(string)
	}
	texts := []string{finished()}
	ids := []string{m.must(m.read("", "keys"))["current"].(string)}
	for range 2 {
		m.clock.pass(time.Hour)
		ids = append(ids, m.must(m.write("", "keys/rotate"))["current"].(string))
		texts = append(texts, finished())
	}
	m.restart()
	answer := m.must(m.read("", "keys"))
	require.Equal(t, ids[2], answer["current"])
	listed := answer["keys"].([]map[string]any)
	require.Len(t, listed, 3)
	var bundle string
	for i, key := range listed {
		require.Equal(t, ids[2-i], key["id"])
		require.Equal(t, i > 0, key["retired_at"] != nil)
		bundle += key["public_key"].(string)
	}
	require.Equal(t, bundle, answer["pem"])
	for i, text := range texts {
		envelope, _ := opened(t, text)
		require.Equal(t, ids[i], envelope.Signatures[0].KeyID)
	}
	stored, err := loadAll[signingKey](t.Context(), m.storage, prefixSigningKey)
	require.NoError(t, err)
	require.Len(t, stored, 3)
	for _, key := range stored {
		require.Equal(t, key.ID == ids[2], key.Seed != "", "only the one that signs is whole")
	}
}

// A rotation that dies between the new key and the retirement of the old one is
// finished by whoever reads the keys next.
func TestKeys_CrashInRotation(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	m.must(m.read("", "keys"))
	dying := &failingPuts{Storage: m.storage, prefix: prefixSigningKey}
	dying.left.Store(1)
	_, err := m.b.HandleRequest(t.Context(), &logical.Request{Operation: logical.UpdateOperation, Path: "keys/rotate", Storage: dying})
	require.Error(t, err)
	m.restart()
	listed := m.must(m.read("", "keys"))["keys"].([]map[string]any)
	require.Len(t, listed, 2)
	require.NotContains(t, listed[0], "retired_at")
	require.Contains(t, listed[1], "retired_at")
	stored, err := loadAll[signingKey](t.Context(), m.storage, prefixSigningKey)
	require.NoError(t, err)
	whole := 0
	for _, key := range stored {
		if key.Seed != "" {
			whole++
		}
	}
	require.Equal(t, 1, whole)
}

// The private key stands in seal-wrapped storage entries and nowhere else: in no
// other entry, answer or log line, in no encoding.
func TestKeys_PrivateKeyNowhere(t *testing.T) {
	t.Parallel()
	m := newDesk(t)
	var log bytes.Buffer
	m.restartLogged(hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Trace}))
	require.NoError(t, m.b.Initialize(t.Context(), &logical.InitializationRequest{Storage: m.storage}))

	var answers bytes.Buffer
	seeds := map[string]bool{}
	note := func() {
		stored, err := loadAll[signingKey](t.Context(), m.storage, prefixSigningKey)
		require.NoError(t, err)
		for _, key := range stored {
			if key.Seed != "" {
				seeds[key.Seed] = true
			}
		}
	}
	note()
	for range 2 {
		id, fence := m.running()
		m.must(m.work("a1", id, "finish", "fence", fence, "outcome", "failed", "code", "engine"))
		require.Eventually(t, func() bool {
			resp, err := m.read(alice, "operations/"+id+"/receipt")
			return err == nil && resp != nil
		}, 30*time.Second, 10*time.Millisecond)
		for _, path := range []string{"keys", "info", "operations/" + id, "operations/" + id + "/receipt", "all/operations", "agents/a1", "policies/dev"} {
			fmt.Fprintln(&answers, m.must(m.read(alice, path)))
		}
		fmt.Fprintln(&answers, m.must(m.write("", "keys/rotate")))
		note()
	}
	require.Len(t, seeds, 3)
	m.b.clean(t.Context()) // nobody writes to the log any more

	var rest bytes.Buffer
	var walk func(prefix string)
	walk = func(prefix string) {
		names, err := m.storage.List(t.Context(), prefix)
		require.NoError(t, err)
		for _, name := range names {
			if strings.HasSuffix(name, "/") {
				walk(prefix + name)
				continue
			}
			entry, err := m.storage.Get(t.Context(), prefix+name)
			require.NoError(t, err)
			if !strings.HasPrefix(prefix+name, prefixSigningKey) {
				rest.Write(entry.Value)
			}
		}
	}
	walk("")
	require.Contains(t, m.b.SpecialPaths().SealWrapStorage, prefixSigningKey)
	require.Greater(t, rest.Len(), 1000)
	require.Greater(t, answers.Len(), 1000)
	require.Contains(t, log.String(), "receipts are signed with a new key")
	for seed := range seeds {
		raw, err := base64.StdEncoding.DecodeString(seed)
		require.NoError(t, err)
		require.Len(t, raw, 32)
		for _, form := range []string{seed, string(raw), hex.EncodeToString(raw), base64.RawURLEncoding.EncodeToString(raw)} {
			for what, content := range map[string]string{"storage": rest.String(), "answers": answers.String(), "log": log.String()} {
				require.NotContains(t, content, form, what)
			}
		}
	}
}
