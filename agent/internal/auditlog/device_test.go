package auditlog

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
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
