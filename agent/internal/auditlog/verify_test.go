package auditlog

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

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
