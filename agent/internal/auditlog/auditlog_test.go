package auditlog

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const accessor = "dbops_12345678"

// device writes an audit file as Vault's file device does: a request and a response
// entry for each request.
type device struct {
	t      *testing.T
	at     time.Time
	lines  []string
	chains wire.Chains
	ids    int
	bytes  int // written by an endless file
}

func newDevice(t *testing.T) *device {
	t.Helper()
	return &device{
		t: t, at: time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC),
		chains: wire.Chains{MountAccessor: accessor, Agents: map[string]wire.AgentChain{}, Facts: wire.Chain{Epoch: "0", Seq: "0"}},
	}
}

func entityOf(agent string) string { return "entity-of-" + agent }

// request is what is written for one request; change may falsify it.
type requestOf struct {
	path, accessor, mount, entity, err string
	request, response                  map[string]any
}

func (d *device) write(r requestOf) {
	d.t.Helper()
	d.ids++
	for _, entryType := range []string{typeRequest, typeResponse} {
		d.at = d.at.Add(time.Millisecond)
		body := map[string]any{
			"time": d.at.Format(time.RFC3339Nano), "type": entryType, "auth": map[string]any{"entity_id": r.entity, "client_token": "hmac-sha256:00"},
			"request": map[string]any{
				"id": fmt.Sprintf("request-%d", d.ids), "operation": "update", "path": r.mount + r.path, "mount_point": r.mount,
				"mount_accessor": r.accessor, "data": r.request,
			},
		}
		if entryType == typeResponse {
			body["response"] = map[string]any{"mount_point": r.mount, "data": r.response}
			if r.err != "" {
				body["error"] = r.err
			}
		}
		content, err := json.Marshal(body)
		require.NoError(d.t, err)
		d.lines = append(d.lines, string(content))
	}
}

// other writes an entry that has nothing to do with us.
func (d *device) other() {
	d.write(requestOf{path: "data/x", mount: "secret/", accessor: "kv_1", entity: "e", request: map[string]any{"a": "hmac-sha256:11"}})
}

// batch writes n further events of an agent.
func (d *device) batch(agent string, n int) []string {
	d.t.Helper()
	known := d.chains.Agents[agent]
	if known.Epoch == "" {
		known = wire.AgentChain{Chain: wire.Chain{Epoch: "1", Seq: "0"}, Entities: []string{entityOf(agent)}}
	}
	var list []string
	for range n {
		seq, err := strconv.Atoi(known.Seq)
		require.NoError(d.t, err)
		text, hash, err := wire.Event{
			V: 1, T: d.at, Agent: agent, Epoch: known.Epoch, Seq: strconv.Itoa(seq + 1), OpID: "op-" + agent, Operation: wire.KindClone,
			Source: "prod", Target: "staging", User: wire.User{EntityID: "entity-alice", Name: "alice"}, EventType: wire.EventStepStarted,
			Severity: wire.SeverityInfo, Outcome: wire.OutcomeStarted, Phase: wire.StepCopy, Prev: known.Head,
		}.Encode()
		require.NoError(d.t, err)
		known.Seq, known.Head = strconv.Itoa(seq+1), hash
		list = append(list, text)
	}
	d.chains.Agents[agent] = known
	d.send(agent, list)
	return list
}

func (d *device) send(agent string, list []string) {
	chain := d.chains.Agents[agent].Chain
	d.write(d.events(agent, list, chain))
}

func (d *device) events(agent string, list []string, chain wire.Chain) requestOf {
	return requestOf{
		path: "agents/" + agent + "/operations/op-" + agent + "/events", mount: "dbops/", accessor: accessor, entity: entityOf(agent),
		request: map[string]any{wire.EventsKey: list}, response: map[string]any{"epoch": chain.Epoch, "seq": chain.Seq, "head": chain.Head},
	}
}

// epoch makes the next batch of an agent begin a new epoch.
func (d *device) epoch(agent string) {
	known := d.chains.Agents[agent]
	epoch, err := strconv.Atoi(known.Epoch)
	require.NoError(d.t, err)
	known.Epoch, known.Seq = strconv.Itoa(epoch+1), "0"
	d.chains.Agents[agent] = known
}

func input(name string, lines []string) Input {
	return Input{Name: name, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(strings.Join(lines, "\n") + "\n")), nil
	}}
}

func (d *device) verify(lines []string, options ...VerifyOptions) Report {
	d.t.Helper()
	var o VerifyOptions
	if len(options) > 0 {
		o = options[0]
	}
	report, err := Verify(context.Background(), d.chains, []Input{input("audit.log", lines)}, o)
	require.NoError(d.t, err)
	return report
}

// three is a file with events of three agents, three batches each, and other
// entries in between. Batch b of agent a stands in lines 2*(a+b*4)+1 and +2.
func three(t *testing.T) *device {
	t.Helper()
	d := newDevice(t)
	for range 3 {
		for _, agent := range []string{"a", "b", "c"} {
			d.batch(agent, 4)
		}
		d.other()
	}
	return d
}

func kinds(r Report) []Kind {
	var all []Kind
	for _, p := range r.Problems {
		all = append(all, p.Kind)
	}
	return all
}

// What was written is intact; each chain is followed to the end that Vault knows.
func TestVerify_Intact(t *testing.T) {
	t.Parallel()
	d := three(t)
	d.epoch("a")
	d.batch("a", 2)
	report := d.verify(d.lines)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.Empty(t, report.Notes)
	require.Len(t, report.Chains, 3)
	require.Equal(t, ChainFacts{Chain: "a", First: "1/1", Last: "2/2", Events: 14, End: "2/2", Confirmed: true}, report.Chains[0])
	require.Equal(t, ChainFacts{Chain: "b", First: "1/1", Last: "1/12", Events: 12, End: "1/12", Confirmed: true}, report.Chains[1])
}

// A copy that is byte-equal proves nothing more and harms nothing, whether it was
// sent again, stands in another device's file or in an older copy of the same one.
func TestVerify_CopiesAreFine(t *testing.T) {
	t.Parallel()
	d := three(t)
	last := d.batch("a", 3)
	d.send("a", last)
	d.send("a", last[1:2])
	report := d.verify(d.lines)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.EqualValues(t, 4, report.Chains[0].Copies)

	report, err := Verify(context.Background(), d.chains, []Input{input("second", d.lines), input("old", d.lines[:9]), input("first", d.lines)}, VerifyOptions{})
	require.NoError(t, err)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.EqualValues(t, 15, report.Chains[0].Events)
}

// Rotated files may be given in any order, compressed or not, and each may be read
// from where it is.
func TestVerify_RotatedFiles(t *testing.T) {
	t.Parallel()
	d := three(t)
	dir := t.TempDir()
	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	_, err := zip.Write([]byte(strings.Join(d.lines[:8], "\n") + "\n"))
	require.NoError(t, err)
	require.NoError(t, zip.Close())
	older, newer := filepath.Join(dir, "audit.log.1.gz"), filepath.Join(dir, "audit.log")
	require.NoError(t, os.WriteFile(older, zipped.Bytes(), 0o600))
	require.NoError(t, os.WriteFile(newer, []byte(strings.Join(d.lines[8:16], "\n")+"\n"), 0o600))
	inputs := []Input{File("-", strings.NewReader(strings.Join(d.lines[16:], "\n"))), File(newer, nil), File(older, nil)}
	report, err := Verify(context.Background(), d.chains, inputs, VerifyOptions{})
	require.NoError(t, err)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.Equal(t, "stdin", report.Files[0].Name)

	_, err = Verify(context.Background(), d.chains, []Input{File(filepath.Join(dir, "none"), nil)}, VerifyOptions{})
	var coded *wire.Error
	require.ErrorAs(t, err, &coded)
	require.Equal(t, wire.CodeConfig, coded.Code)
}

// Each thing that can be done to a file is told by its kind, the events concerned,
// and the line.
func TestVerify_Tampering(t *testing.T) {
	t.Parallel()
	batch := func(agent, n int) int { return 2 * (agent + n*4) } // index of the request's line
	escaped := func(text string) string {
		content, err := json.Marshal(text)
		require.NoError(t, err)
		return string(content[1 : len(content)-1])
	}
	for name, c := range map[string]struct {
		tamper func(d *device, lines []string) []string
		kinds  []Kind
		from   string
		to     string
		line   int64 // that some place of the first problem names
		says   string
	}{
		"deleted": {
			func(_ *device, l []string) []string { i := batch(1, 1); return slices.Delete(l, i, i+2) },
			[]Kind{KindMissing},
			"1/5", "1/8", int64(batch(1, 2)), "agent b: events 1/5 to 1/8: missing between event 1/4 at audit.log:4 and event 1/9 at audit.log:18",
		},
		"answer deleted": {
			func(_ *device, l []string) []string { i := batch(1, 1) + 1; return slices.Delete(l, i, i+1) },
			[]Kind{KindMissing},
			"1/5", "1/8", int64(batch(1, 2)) + 1, "missing",
		},
		"altered": {
			func(_ *device, l []string) []string {
				i := batch(0, 1) + 1
				l[i] = strings.Replace(l[i], escaped(`"source":"prod"`), escaped(`"source":"prob"`), 1)
				return l
			},
			[]Kind{KindAltered, KindDiffers},
			"1/5", "1/6", int64(batch(0, 1)) + 2, "one of the two was altered",
		},
		"last event altered": {
			func(_ *device, l []string) []string {
				for _, i := range []int{batch(2, 2), batch(2, 2) + 1} {
					at := strings.LastIndex(l[i], escaped(`"source":"prod"`))
					l[i] = l[i][:at] + escaped(`"source":"prob"`) + l[i][at+len(escaped(`"source":"prod"`)):]
				}
				return l
			},
			[]Kind{KindAltered, KindDiffers},
			"1/12", "1/12", int64(batch(2, 2)) + 2, "is not the one that Vault knows",
		},
		"number altered": {
			func(_ *device, l []string) []string {
				for _, i := range []int{batch(0, 1), batch(0, 1) + 1} {
					l[i] = strings.Replace(l[i], escaped(`"seq":"8"`), escaped(`"seq":"4611686018427387904"`), 1)
				}
				return l
			},
			[]Kind{KindAltered, KindAltered, KindDiffers},
			"1/8", "1/4611686018427387904", int64(batch(0, 1)) + 2, "calls itself",
		},
		"reordered": {
			func(_ *device, l []string) []string {
				x, y := batch(0, 1), batch(0, 2)
				l[x], l[x+1], l[y], l[y+1] = l[y], l[y+1], l[x], l[x+1]
				return l
			},
			[]Kind{KindReordered},
			"1/5", "1/8", int64(batch(0, 2)) + 2, "entries were put in another order",
		},
		"first two batches reordered": {
			func(_ *device, l []string) []string {
				x, y := batch(0, 0), batch(0, 1)
				l[x], l[x+1], l[y], l[y+1] = l[y], l[y+1], l[x], l[x+1]
				return l
			},
			[]Kind{KindReordered},
			"1/1", "1/4", int64(batch(0, 1)) + 2, "entries were put in another order",
		},
		"tail cut": {
			func(_ *device, l []string) []string { return l[:batch(1, 2)] },
			[]Kind{KindCut, KindCut},
			"1/9", "1/12", int64(batch(1, 1)) + 2, "agent b: events 1/9 to 1/12, which Vault has taken, are missing at the end: the last one in the files is event 1/8 at audit.log:12",
		},
		"everything gone": {
			func(*device, []string) []string { return nil },
			[]Kind{KindCut, KindCut, KindCut},
			"1/1", "1/12", 0, "none of its events is in the files",
		},
		"beginning gone": {
			func(_ *device, l []string) []string { return l[batch(0, 1):] },
			[]Kind{KindBegins, KindBegins, KindBegins},
			"1/1", "1/4", 2, "the files begin after it",
		},
		"agents swapped": {
			func(_ *device, l []string) []string {
				i := batch(0, 1) + 1
				l[i] = strings.Replace(l[i], "dbops/agents/a/operations/op-a/", "dbops/agents/b/operations/op-b/", 1)
				l[i] = strings.Replace(l[i], entityOf("a"), entityOf("b"), 1)
				return l
			},
			[]Kind{KindForged, KindMissing},
			"", "", int64(batch(0, 1)) + 2, `the path is that of agent b, event 1/5 is of agent "a"`,
		},
		"operation swapped": {
			func(_ *device, l []string) []string {
				i := batch(0, 1) + 1
				l[i] = strings.Replace(l[i], "operations/op-a/", "operations/op-b/", 1)
				return l
			},
			[]Kind{KindForged, KindMissing},
			"", "", int64(batch(0, 1)) + 2, `the path is that of operation op-b, event 1/5 is about "op-a"`,
		},
		"entity changed": {
			func(_ *device, l []string) []string {
				i := batch(0, 1) + 1
				l[i] = strings.Replace(l[i], entityOf("a"), "somebody", 1)
				return l
			},
			[]Kind{KindForged, KindMissing},
			"", "", int64(batch(0, 1)) + 2, `it came from entity "somebody"`,
		},
		"line cut short": {
			func(_ *device, l []string) []string {
				i := batch(0, 1) + 1
				l[i] = l[i][:len(l[i])-20]
				return l
			},
			[]Kind{KindDamaged, KindMissing},
			"", "", int64(batch(0, 1)) + 2, "is no entry of an audit device",
		},
		"hashed": {
			func(_ *device, l []string) []string {
				i := batch(0, 1) + 1
				var e map[string]any
				require.NoError(t, json.Unmarshal([]byte(l[i]), &e))
				e["request"].(map[string]any)["data"].(map[string]any)[wire.EventsKey] = []string{"hmac-sha256:00"}
				content, err := json.Marshal(e)
				require.NoError(t, err)
				l[i] = string(content)
				return l
			},
			[]Kind{KindHidden, KindMissing},
			"", "", int64(batch(0, 1)) + 2, "was not tuned",
		},
		"unknown agent": {
			func(d *device, l []string) []string {
				d.send("z", []string{strings.ReplaceAll(d.batch("a", 1)[0], `"agent":"a"`, `"agent":"z"`)})
				return append(l, d.lines[len(d.lines)-4:]...)
			},
			[]Kind{KindForged},
			"", "", 28, "Vault knows no chain of an agent z",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := three(t)
			report := d.verify(c.tamper(d, slices.Clone(d.lines)))
			found := kinds(report)
			slices.Sort(found)
			want := slices.Clone(c.kinds)
			slices.Sort(want)
			require.Equal(t, want, found, "%+v", report.Problems)
			at := slices.IndexFunc(report.Problems, func(p Problem) bool { return strings.Contains(p.Message, c.says) })
			require.GreaterOrEqual(t, at, 0, "%+v", report.Problems)
			p := report.Problems[at]
			require.Equal(t, c.kinds[0], p.Kind)
			if c.from != "" {
				require.Equal(t, c.from, p.From, p.Message)
				require.Equal(t, c.to, p.To, p.Message)
			}
			if c.line > 0 {
				require.True(t, slices.ContainsFunc(p.Places, func(place Place) bool { return place.Line == c.line && place.File == "audit.log" }), "%+v", p.Places)
			}
		})
	}
}

// Chains may begin in the middle when older files are gone and one says so.
func TestVerify_Partial(t *testing.T) {
	t.Parallel()
	d := three(t)
	report := d.verify(d.lines[8:], VerifyOptions{Partial: true})
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.Len(t, report.Notes, 3)
	require.False(t, d.verify(d.lines[8:]).Intact())
}

// Vault that lost its last writes shows as a fork, and events that were written
// while the files were read are no problem.
func TestVerify_EndsOfChains(t *testing.T) {
	t.Parallel()
	d := three(t)
	back := d.chains.Agents["a"]
	d.chains.Agents["a"] = back
	later := newDevice(t)
	*later = *d
	later.chains.Agents = map[string]wire.AgentChain{"a": back, "b": d.chains.Agents["b"], "c": d.chains.Agents["c"]}
	d.batch("a", 3)
	newest := d.lines
	d.chains = later.chains
	report := d.verify(newest)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.Equal(t, "1/15", report.Chains[0].Last)
	require.Equal(t, "1/12", report.Chains[0].End)
	require.True(t, report.Chains[0].Confirmed)

	d.epoch("a") // continues 1/12, although 1/13 to 1/15 were written
	d.batch("a", 1)
	report = d.verify(d.lines)
	require.Equal(t, []Kind{KindDiffers}, kinds(report), "%+v", report.Problems)
	require.Contains(t, report.Problems[0].Message, "Vault's storage was set back")
}

// What others write under our key does not count and is no problem: it is told as
// refused or foreign. A fork that the plugin refused is among it.
func TestVerify_NotCounted(t *testing.T) {
	t.Parallel()
	d := three(t)
	list := d.batch("a", 1)
	forged := strings.Replace(list[0], "prod", "prob", 1)
	kv := d.events("a", []string{forged}, wire.Chain{})
	kv.mount, kv.accessor, kv.path = "secret/", "kv_1", "data/agents/a/operations/op-a/events"
	d.write(kv)
	same := kv
	same.path = "agents/a/operations/op-a/events"
	d.write(same)
	elsewhere := d.events("a", []string{forged}, wire.Chain{})
	elsewhere.path = "policies/x"
	d.write(elsewhere)
	root := d.events("a", []string{forged}, wire.Chain{})
	root.entity, root.err = "", "1 error occurred:\n\t* no_identity: the token has no entity\n\n"
	d.write(root)
	fork := d.events("a", []string{forged}, wire.Chain{})
	fork.err = "1 error occurred:\n\t* chain_broken: event 0 has seq \"13\"\n\n"
	d.write(fork)
	hidden := kv
	hidden.request = map[string]any{wire.EventsKey: []string{"hmac-sha256:00"}}
	d.write(hidden)
	other := d.events("a", nil, wire.Chain{})
	other.request, other.response = nil, map[string]any{wire.EventsKey: []string{forged}}
	d.write(other)

	report := d.verify(d.lines)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.EqualValues(t, 13, report.Chains[0].Events)
	require.Zero(t, report.Chains[0].Copies)
	// Request entries that turn out to be refused are told once, with the answer.
	require.EqualValues(t, 2, report.NotCounted[Refused])
	require.Positive(t, report.NotCounted[Foreign])
	require.Len(t, report.Examples, 7)
}

// Where Vault does not know an agent's entity yet, all its events must come from
// the same one.
func TestVerify_EntityNotKnown(t *testing.T) {
	t.Parallel()
	d := three(t)
	known := d.chains.Agents["a"]
	known.Entities = nil
	d.chains.Agents["a"] = known
	report := d.verify(d.lines)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.Len(t, report.Notes, 1)
	lines := slices.Clone(d.lines)
	lines[9] = strings.Replace(lines[9], entityOf("a"), "somebody", 1)
	require.Contains(t, kinds(d.verify(lines)), KindForged)
}

// Facts are a chain of their own, whoever read them.
func TestVerify_Facts(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	var list []string
	head := ""
	for i := range 6 {
		text, hash, err := wire.Fact{
			V: 1, T: d.at, Seq: strconv.Itoa(i + 1), EventType: wire.EventCredentialRotated, Severity: wire.SeverityInfo,
			Outcome: wire.OutcomeSuccess, Connection: "prod", Username: "app", Prev: head,
		}.Encode()
		require.NoError(t, err)
		list, head = append(list, text), hash
	}
	read := func(path string, facts ...string) {
		d.write(requestOf{path: path, mount: "dbops/", accessor: accessor, entity: "e", response: map[string]any{wire.FactsKey: facts}})
	}
	d.chains.Facts = wire.Chain{Epoch: "1", Seq: "6", Head: head}
	read("agents/a/facts", list[:3]...)
	read("facts", list[:4]...)
	read("agents/b/facts", list[3:]...)
	report := d.verify(d.lines)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.Equal(t, "(facts)", report.Chains[0].Chain)
	require.EqualValues(t, 6, report.Chains[0].Events)
	require.EqualValues(t, 4, report.Chains[0].Copies)
	require.Equal(t, []Kind{KindCut}, kinds(d.verify(d.lines[:4])))
	read("agents/b/facts", strings.Replace(list[5], "app", "apx", 1))
	require.Equal(t, []Kind{KindDiffers}, kinds(d.verify(d.lines)))
}

// Whatever one line of the file becomes, verifying ends, and a file that lost an
// entry of ours is never called intact.
func TestVerify_AnyLineLost(t *testing.T) {
	t.Parallel()
	d := three(t)
	for i := range d.lines {
		lines := slices.Delete(slices.Clone(d.lines), i, i+1)
		ours := strings.Contains(d.lines[i], wire.EventsKey) && strings.Contains(d.lines[i], `"type":"response"`)
		require.Equal(t, !ours, d.verify(lines).Intact(), "line %d", i+1)
	}
}

// Random damage to bytes of events never passes.
func TestVerify_AnyByteAltered(t *testing.T) {
	t.Parallel()
	d := three(t)
	random := rand.New(rand.NewPCG(1, 2))
	for range 400 {
		i := random.IntN(len(d.lines))
		if !strings.Contains(d.lines[i], wire.EventsKey) || !strings.Contains(d.lines[i], `"type":"response"`) {
			continue
		}
		line := []byte(d.lines[i])
		from := bytes.Index(line, []byte(`{\"v\"`))
		to := bytes.LastIndex(line, []byte(`\"}"`))
		at := from + random.IntN(to-from)
		if line[at] == '\\' || line[at] == '"' {
			continue
		}
		line[at] ^= 1 << random.IntN(3)
		if line[at] == '\\' || line[at] == '"' || line[at] < ' ' {
			continue
		}
		lines := slices.Clone(d.lines)
		lines[i] = string(line)
		require.False(t, d.verify(lines).Intact(), "%s\n%s", d.lines[i], line)
	}
}

// The reader never panics, whatever stands in a file, and bounds what it reports.
func FuzzVerify(f *testing.F) {
	d := three(&testing.T{})
	f.Add(strings.Join(d.lines, "\n"), 3, byte(' '))
	f.Add(`{"request":{"data":{"dbops_events_v1":null}}}`, 0, byte('x'))
	f.Fuzz(func(t *testing.T, text string, at int, b byte) {
		content := []byte(text)
		if at >= 0 && at < len(content) {
			content[at] = b
		}
		report, err := Verify(context.Background(), d.chains, []Input{input("f", strings.Split(string(content), "\n"))}, VerifyOptions{MaxProblems: 50})
		if err != nil || len(report.Problems) > 50 {
			t.Fatal(err, len(report.Problems))
		}
	})
}

// endless is a file of any size that is made while it is read.
type endless struct {
	d     *device
	left  int
	ready bytes.Buffer
	peak  uint64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.ready.Len() == 0 {
		if e.left == 0 {
			return 0, io.EOF
		}
		if e.left--; e.left%250 == 0 {
			e.peak = max(e.peak, heap())
		}
		e.d.lines = nil
		e.d.batch("a", 20)
		for _, line := range e.d.lines {
			e.d.bytes += len(line)
			e.ready.WriteString(line + "\n")
		}
	}
	return e.ready.Read(p)
}

func (*endless) Close() error { return nil }

// A file is streamed: what is remembered does not grow with it.
func TestVerify_BoundedMemory(t *testing.T) {
	d := newDevice(t)
	file := &endless{d: d, left: 2000} // more than 30 MB
	before := heap()
	in := Input{Name: "big", Open: func() (io.ReadCloser, error) { return file, nil }}
	report, err := Verify(context.Background(), wire.Chains{}, []Input{in}, VerifyOptions{})
	require.NoError(t, err)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.Greater(t, d.bytes, 30<<20)
	require.EqualValues(t, 40000, report.Chains[0].Events)
	require.Less(t, file.peak, before+24<<20)
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A search finds what all its conditions say, once, and only what counts unless
// everything is wanted.
func TestSearch_Filters(t *testing.T) {
	t.Parallel()
	d := three(t)
	last := d.batch("a", 1)
	d.send("a", last)
	root := d.events("a", []string{strings.Replace(last[0], "prod", "prob", 1)}, wire.Chain{})
	root.entity, root.err = "", "no_identity: the token has no entity"
	d.write(root)
	at := d.at
	for name, c := range map[string]struct {
		filter Filter
		hits   int
	}{
		"all of ours":      {Filter{}, 37},
		"operation":        {Filter{Operation: "op-b"}, 12},
		"agent":            {Filter{Agent: "a"}, 13},
		"user by id":       {Filter{User: "entity-alice"}, 37},
		"user by name":     {Filter{User: "alice", Agent: "c"}, 12},
		"other user":       {Filter{User: "bob"}, 0},
		"connection":       {Filter{Connection: "staging", Agent: "a"}, 13},
		"other connection": {Filter{Connection: "prob"}, 0},
		"type":             {Filter{Type: "step_started"}, 37},
		"class":            {Filter{Type: "data_modifications"}, 37},
		"other class":      {Filter{Type: "authentication"}, 0},
		"severity":         {Filter{Severity: wire.SeverityWarning}, 0},
		"outcome":          {Filter{Outcome: wire.OutcomeStarted}, 37},
		"since":            {Filter{Since: at}, 0},
		"until":            {Filter{Until: at}, 37},
		"untrusted too":    {Filter{All: true, Agent: "a"}, 14},
	} {
		var hits []Hit
		_, err := Search(context.Background(), d.chains, []Input{input("audit.log", d.lines)}, c.filter, func(h Hit) error {
			hits = append(hits, h)
			return nil
		})
		require.NoError(t, err, name)
		require.Len(t, hits, c.hits, name)
		for _, h := range hits {
			require.Equal(t, h.Standing == Ours, h.Why == "", name)
		}
	}
}

// The answer of a request may be anything in a file that somebody has edited: also
// one that holds nothing.
func TestVerify_AnswerOfNothing(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	d.batch("a", 2)
	d.write(requestOf{path: "facts", mount: "dbops/", accessor: accessor, entity: "e", response: map[string]any{wire.FactsKey: []string{}}})
	answer := strings.Replace(d.lines[3], `"id":"request-2"`, `"id":"request-1"`, 1)
	require.NotEqual(t, d.lines[3], answer)
	report := d.verify([]string{d.lines[0], answer})
	require.Contains(t, kinds(report), KindCut, "%+v", report)
}

// A line of blanks, however long, is not the end of a file.
func TestVerify_LongBlankLine(t *testing.T) {
	t.Parallel()
	d := three(t)
	lines := slices.Insert(slices.Clone(d.lines), 4, strings.Repeat(" ", 2*readBytes))
	report := d.verify(lines)
	require.True(t, report.Intact(), "%+v", report.Problems)
	require.EqualValues(t, len(lines), report.Files[0].Lines)
}

// Events that follow the end as Vault knows it, and stand in the file from before
// Vault was asked, were never taken by Vault. What came while it was asked is fine.
func TestVerify_BeyondTheEnd(t *testing.T) {
	t.Parallel()
	d := three(t)
	known := d.chains.Agents["a"]
	d.batch("a", 3)
	d.chains.Agents["a"] = known

	d.chains.At = d.at.Add(-time.Second)
	require.True(t, d.verify(d.lines).Intact())

	d.chains.At = d.at.Add(time.Hour)
	report := d.verify(d.lines)
	require.Equal(t, []Kind{KindForged}, kinds(report), "%+v", report.Problems)
	require.Equal(t, "1/13", report.Problems[0].From)
	require.Equal(t, "1/15", report.Problems[0].To)
	require.EqualValues(t, len(d.lines), report.Problems[0].Places[0].Line)
}

// An agent that tells a wrong time does not hide what it did from a search by time.
func TestSearch_TimeOfTheEntry(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	text, hash, err := wire.Event{
		V: 1, T: time.Unix(0, 0).UTC(), Agent: "a", Epoch: "1", Seq: "1", OpID: "op-a", Operation: wire.KindClone, EventType: wire.EventBulkDataExport,
		Severity: wire.SeverityInfo, Outcome: wire.OutcomeStarted, User: wire.User{EntityID: "entity-alice"},
	}.Encode()
	require.NoError(t, err)
	d.chains.Agents["a"] = wire.AgentChain{Chain: wire.Chain{Epoch: "1", Seq: "1", Head: hash}, Entities: []string{entityOf("a")}}
	from := d.at
	d.send("a", []string{text})
	find := func(filter Filter) (n int) {
		_, err := Search(context.Background(), d.chains, []Input{input("audit.log", d.lines)}, filter, func(Hit) error { n++; return nil })
		require.NoError(t, err)
		return n
	}
	require.Equal(t, 1, find(Filter{Since: from, Until: from.Add(time.Hour)}))
	require.Equal(t, 0, find(Filter{Since: from.Add(time.Hour)}))
}
