package auditlog

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

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

// What cannot be shown ends the search and is told, also at the end of a file.
func TestSearch_ShowingFails(t *testing.T) {
	t.Parallel()
	d := three(t)
	full, shown := errors.New("no space left"), 0
	_, err := Search(context.Background(), d.chains, []Input{input("audit.log", d.lines)}, Filter{}, func(Hit) error {
		shown++
		return full
	})
	require.ErrorIs(t, err, full)
	require.Equal(t, 1, shown)
}

// An interrupt ends the reading of a pipe that has nothing to say, and standard input.
func TestVerify_InterruptedWhileWaiting(t *testing.T) {
	t.Parallel()
	read, write, err := os.Pipe()
	require.NoError(t, err)
	t.Cleanup(func() { _ = write.Close() })
	silent, _ := io.Pipe()
	for name, in := range map[string]Input{
		"a pipe":         {Name: "pipe", Open: func() (io.ReadCloser, error) { return read, nil }},
		"standard input": File("-", silent),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, interrupt := context.WithCancel(context.Background())
			opened, open := make(chan struct{}), in.Open
			in.Open = func() (io.ReadCloser, error) {
				defer close(opened)
				return open()
			}
			ended := make(chan error, 1)
			go func() {
				_, err := Verify(ctx, wire.Chains{}, []Input{in}, VerifyOptions{})
				ended <- err
			}()
			<-opened
			interrupt()
			select {
			case err := <-ended:
				require.ErrorIs(t, err, context.Canceled)
			case <-time.After(10 * time.Second):
				t.Error("it goes on reading")
			}
		})
	}
}
