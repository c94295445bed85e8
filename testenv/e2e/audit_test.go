package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/stack"
)

// writer is an agent by hand that keeps its chain of events.
type writer struct {
	hand
	op   wire.Operation
	seq  int
	head string
}

// begin claims an operation of alice's and ends it: its events go on after that.
func (w *writer) begin(s *stack.Stack) {
	w.t.Helper()
	id := s.Ask(nil)
	claim := w.claim()
	require.Equal(w.t, id, claim.OperationID)
	op, err := s.Operation(id)
	require.NoError(w.t, err)
	w.op = op
	require.NoError(w.t, w.send(3))
	require.NoError(w.t, w.try(w.mount.Finish(w.name, id), wire.FinishRequest{
		Fence: claim.Fence, Outcome: wire.StateFailed, Code: wire.CodeEngine, Reason: "by hand",
	}, nil))
}

// send sends n further events.
func (w *writer) send(n int) error {
	w.t.Helper()
	list, head := w.events(n)
	err := w.try(w.mount.Events(w.name, w.op.ID), wire.EventsRequest{Events: list}, nil)
	if err == nil {
		w.seq, w.head = w.seq+n, head
	}
	return err
}

// events makes n further events without sending them.
func (w *writer) events(n int) (list []string, head string) {
	w.t.Helper()
	head = w.head
	for i := range n {
		text, hash, err := wire.Event{
			V: 1, T: time.Now().UTC(), Agent: w.name, Epoch: "1", Seq: strconv.Itoa(w.seq + 1 + i), OpID: w.op.ID, Operation: w.op.Kind,
			Source: w.op.Source, Target: w.op.Target, User: w.op.Requester, EventType: wire.EventStepStarted, Severity: wire.SeverityInfo,
			Outcome: wire.OutcomeStarted, Phase: wire.StepCopy, Prev: head,
		}.Encode()
		require.NoError(w.t, err)
		list, head = append(list, text), hash
	}
	return list, head
}

// verified is what of dbops audit verify -json the test reads.
type verified struct {
	Intact bool `json:"intact"`
	Chains []struct {
		Chain     string `json:"chain"`
		Events    int    `json:"events"`
		Copies    int    `json:"copies"`
		Last      string `json:"last"`
		Confirmed bool   `json:"confirmed"`
	} `json:"chains"`
	Problems []struct {
		Kind, Chain, From, To, Message string
		Places                         []struct {
			File string
			Line int
		}
	} `json:"problems"`
	NotCounted map[string]int `json:"not_counted"`
}

// auditFile is a copy of Vault's audit file in lines, with the lines of batches.
type auditFile struct {
	lines []string
	// batches are the indexes of the answers to batches of each agent, in order.
	batches map[string][]int
}

func readAuditFile(t *testing.T, path string, mount wire.Mount) *auditFile {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	f := &auditFile{lines: strings.Split(strings.TrimSpace(string(content)), "\n"), batches: map[string][]int{}}
	for i, line := range f.lines {
		var entry struct {
			Type, Error string
			Request     struct{ Path string }
		}
		require.NoError(t, json.Unmarshal([]byte(line), &entry))
		parts := strings.Split(strings.TrimPrefix(entry.Request.Path, string(mount)+"/"), "/")
		if entry.Type == "response" && entry.Error == "" && len(parts) == 5 && parts[0] == "agents" && parts[4] == "events" {
			f.batches[parts[1]] = append(f.batches[parts[1]], i)
		}
	}
	return f
}

// request returns the index of the request entry that belongs to the answer at i.
func (f *auditFile) request(t *testing.T, i int) int {
	t.Helper()
	id := f.id(t, i)
	for at := i - 1; at >= 0; at-- {
		if strings.Contains(f.lines[at], id) {
			return at
		}
	}
	t.Fatalf("no request for the answer in line %d", i+1)
	return 0
}

func (f *auditFile) id(t *testing.T, i int) string {
	t.Helper()
	var entry struct{ Request struct{ ID string } }
	require.NoError(t, json.Unmarshal([]byte(f.lines[i]), &entry))
	return entry.Request.ID
}

// A real audit file with the events of three agents, one of which made a real
// clone, is intact; whatever is done to it afterwards is told, with what and where.
// Events that the plugin refused, or that were written elsewhere under the same
// key, count for nothing.
func TestAudit_VerifyRealFile(t *testing.T) {
	t.Parallel()
	s := stack.New(t, stack.Options{WithoutAgent: true})
	s.Source.Exec(stack.Database, "CREATE TABLE marker (n int)", "INSERT INTO marker SELECT generate_series(1, 100)")
	one := &writer{hand: hand{t, s.Mount(), "one", s.AgentIdentity("one")}}
	two := &writer{hand: hand{t, s.Mount(), "two", s.AgentIdentity("two")}}
	one.begin(s)
	two.begin(s)
	s.StartAgent()
	clone := s.Succeed(nil, 2*time.Minute)
	for range 3 {
		require.NoError(t, one.send(2))
		require.NoError(t, two.send(2))
	}

	t.Run("refused", func(t *testing.T) {
		list, _ := one.events(1)
		body := wire.EventsRequest{Events: list}
		path := s.Mount().Events(one.name, one.op.ID)
		intruder := hand{t, s.Mount(), one.name, two.vault}
		var answer *api.ResponseError
		require.ErrorAs(t, intruder.try(path, body, nil), &answer, "another agent's path")
		require.Equal(t, 403, answer.StatusCode)
		root := hand{t, s.Mount(), one.name, s.Vault.Client}
		refused(t, root.try(path, body, nil), wire.CodeNoIdentity)
		refused(t, one.try(s.Mount().Events(one.name, two.op.ID), body, nil), wire.CodeNotYourOperation)
		forked := strings.Replace(list[0], `"seq":"`+strconv.Itoa(one.seq+1), `"seq":"`+strconv.Itoa(one.seq), 1)
		refused(t, one.try(path, wire.EventsRequest{Events: []string{forked}}, nil), wire.CodeChainBroken)
	})
	t.Run("elsewhere", func(t *testing.T) {
		list, _ := one.events(1)
		require.NoError(t, s.Vault.Client.Sys().Mount("kv", &api.MountInput{Type: "kv", Config: api.MountConfigInput{AuditNonHMACRequestKeys: []string{wire.EventsKey}}}))
		_, err := s.Vault.Client.Logical().Write("kv/agents/one/operations/"+one.op.ID+"/events", map[string]any{wire.EventsKey: list})
		require.NoError(t, err)
		s.Write("policies/forged", map[string]any{"sources": "x", "targets": "x", "operations": "clone", "allowed_operations": "clone", "entities": "nobody", wire.EventsKey: list})
	})
	last, head := two.events(2)
	for range 2 { // the second time as if the answer had been lost
		require.NoError(t, two.try(s.Mount().Events(two.name, two.op.ID), wire.EventsRequest{Events: last}, nil))
	}
	two.seq, two.head = two.seq+2, head

	_, auditor := s.Person("auditor", "dbops-auditor")
	dir := t.TempDir()
	chains := filepath.Join(dir, "chains.json")
	text, stderr, status := s.CLI(auditor, "audit", "chains", "-json")
	require.Zero(t, status, stderr)
	require.NoError(t, os.WriteFile(chains, []byte(text), 0o600))
	verify := func(t *testing.T, want int, args ...string) verified {
		t.Helper()
		stdout, stderr, status := s.CLI(auditor, append([]string{"audit", "verify", "-json"}, args...)...)
		require.Equal(t, want, status, "%s%s", stdout, stderr)
		var v verified
		require.NoError(t, json.Unmarshal([]byte(stdout), &v), stdout)
		require.Equal(t, want == 0, v.Intact)
		return v
	}
	// As it is, read from Vault and from the file.
	for _, args := range [][]string{{s.Vault.AuditFile()}, {"-chains=" + chains, s.Vault.AuditFile()}} {
		v := verify(t, 0, args...)
		found := map[string]string{}
		for _, c := range v.Chains {
			if c.Chain != "(facts)" {
				require.True(t, c.Confirmed, "%+v", c)
				found[c.Chain] = c.Last
			}
		}
		require.Len(t, found, 3)
		require.Equal(t, "1/9", found["one"])
		require.Equal(t, "1/11", found["two"])
		require.GreaterOrEqual(t, v.NotCounted["refused"], 4, "%+v", v.NotCounted)
		require.GreaterOrEqual(t, v.NotCounted["foreign"], 2, "%+v", v.NotCounted)
	}

	file := readAuditFile(t, s.Vault.AuditFile(), s.Mount())
	require.Len(t, file.batches["one"], 4)
	require.Len(t, file.batches["two"], 6, "one of them came twice")
	b1, b2 := file.batches["one"], file.batches["two"]
	for name, c := range map[string]struct {
		tamper          func(lines []string) []string
		kind, chain     string
		from, to, names string
		line            int // index in the file before it was altered; 0: any
	}{
		"deleted": {func(l []string) []string {
			return slices.Delete(slices.Delete(l, b1[1], b1[1]+1), file.request(t, b1[1]), file.request(t, b1[1])+1)
		}, "missing", "one", "1/4", "1/5", "missing between event 1/3", b1[0]},
		"altered": {func(l []string) []string {
			l[b1[1]] = strings.Replace(l[b1[1]], `\"source\":\"prod\"`, `\"source\":\"prob\"`, 1)
			return l
		}, "differs", "one", "1/4", "1/4", "differs between the request", b1[1]},
		"altered in both entries": {func(l []string) []string {
			for _, i := range []int{b1[1], file.request(t, b1[1])} {
				l[i] = strings.Replace(l[i], `\"source\":\"prod\"`, `\"source\":\"prob\"`, 1)
			}
			return l
		}, "altered", "one", "1/4", "1/5", "does not continue", b1[1]},
		"reordered": {func(l []string) []string {
			l[b1[1]], l[b1[2]] = l[b1[2]], l[b1[1]]
			return l
		}, "reordered", "one", "1/4", "1/5", "another order", b1[2]},
		"tail cut":            {func(l []string) []string { return l[:b1[3]-1] }, "cut", "one", "1/8", "1/9", "missing at the end", b1[2]},
		"older file restored": {func(l []string) []string { return l[:b2[0]+1] }, "cut", stack.AgentName, "", "", "none of its events is in the files", 0},
		"two agents' events swapped": {func(l []string) []string {
			l[b1[2]], l[b2[2]] = swapEvents(t, l[b1[2]], l[b2[2]])
			return l
		}, "forged", "one", "", "", `is of agent "two"`, b1[2]},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".log")
			lines := c.tamper(slices.Clone(file.lines))
			require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
			v := verify(t, wire.CodeChainBroken.Info().Exit, "-chains="+chains, path)
			for _, p := range v.Problems {
				if p.Kind != c.kind || p.Chain != c.chain || !strings.Contains(p.Message, c.names) || c.from != "" && (p.From != c.from || p.To != c.to) {
					continue
				}
				t.Log(p.Message)
				for _, place := range p.Places {
					if c.line == 0 || place.File == path && place.Line == c.line+1 {
						return
					}
				}
			}
			t.Fatalf("not told: %+v", v.Problems)
		})
	}
	t.Run("batch duplicated", func(t *testing.T) {
		path := filepath.Join(dir, "duplicated.log")
		lines := slices.Insert(slices.Clone(file.lines), b1[1]+1, file.lines[b1[1]])
		require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
		v := verify(t, 0, "-chains="+chains, path)
		for _, chain := range v.Chains {
			require.Equal(t, map[string]int{"one": 2, "two": 2}[chain.Chain], chain.Copies, "%+v", chain)
		}
	})
	t.Run("search", func(t *testing.T) {
		found, stderr, status := s.CLI(auditor, "audit", "search", "-json", "-operation="+clone.ID, "-type=bulk_data_export", s.Vault.AuditFile())
		require.Zero(t, status, stderr)
		require.Equal(t, 1, strings.Count(found, "\n"), found)
		require.Contains(t, found, `"event_type":"bulk_data_export"`)
		found, _, _ = s.CLI(auditor, "audit", "search", "-agent=two", "-user="+two.op.Requester.EntityID, s.Vault.AuditFile())
		require.Equal(t, two.seq+1, strings.Count(found, "\n"), "a headline, and each event once\n%s", found)
	})
}

// swapEvents exchanges the events of two entries.
func swapEvents(t *testing.T, a, b string) (string, string) {
	t.Helper()
	var first, second map[string]any
	require.NoError(t, json.Unmarshal([]byte(a), &first))
	require.NoError(t, json.Unmarshal([]byte(b), &second))
	dataOf := func(entry map[string]any) map[string]any {
		return entry["request"].(map[string]any)["data"].(map[string]any)
	}
	x, y := dataOf(first), dataOf(second)
	x[wire.EventsKey], y[wire.EventsKey] = y[wire.EventsKey], x[wire.EventsKey]
	left, err := json.Marshal(first)
	require.NoError(t, err)
	right, err := json.Marshal(second)
	require.NoError(t, err)
	return string(left), string(right)
}
