package runner_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

const (
	agentName = "a1"
	opID      = "clone-01ARZ3NDEKTSV4RRFFQ69G5FAV"
)

// fakeVault speaks the work protocol as the plugin does, for one operation, and
// can fail in ways a real one cannot be made to. The real one is tested end to
// end.
type fakeVault struct {
	t      *testing.T
	server *httptest.Server

	mu        sync.Mutex
	state     wire.State
	fence     int
	cancel    bool
	cleanup   bool // the operation has ended and left something: a claim to clean it
	cleaned   bool
	cleaning  *wire.FinishRequest // how the claim to clean ended
	dropped   bool                // the claim was given to somebody else
	autoRun   bool                // running follows planning without a pause
	changed   bool                // the shape is not the approved one any more
	plan      wire.Plan
	answer    *wire.PlanResponse
	finish    *wire.FinishRequest
	finishes  int
	leases    map[string]wire.Side
	issued    map[string]int // by fence and side
	ttl       int64          // of accounts, ms
	maxMS     int64
	devices   int
	polls     int
	chain     wire.Chain
	last      []string
	delivered []wire.Event
	down      bool
	// fault answers a request instead of the plugin: before it was executed, or
	// after. Called under mu.
	fault func(path string, body []byte) (before, after int)
	held  []string
}

func newFakeVault(t *testing.T) *fakeVault {
	t.Helper()
	v := &fakeVault{
		t: t, state: wire.StateRequested, autoRun: true, leases: map[string]wire.Side{}, issued: map[string]int{},
		ttl: 60_000, devices: 1, chain: wire.Chain{Epoch: "0", Seq: "0"},
	}
	v.server = httptest.NewServer(v)
	t.Cleanup(v.server.Close)
	return v
}

func (v *fakeVault) set(change func(v *fakeVault)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(v)
}

func get[T any](v *fakeVault, read func(v *fakeVault) T) T {
	v.mu.Lock()
	defer v.mu.Unlock()
	return read(v)
}

func (v *fakeVault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	if v.down {
		reply(w, http.StatusServiceUnavailable, map[string]any{"errors": []string{"Vault is sealed"}})
		return
	}
	before, after := 0, 0
	if v.fault != nil {
		before, after = v.fault(path, body)
	}
	if before != 0 {
		reply(w, before, map[string]any{"errors": []string{"fault before"}})
		return
	}
	envelope, failed := v.handle(path, body)
	if after != 0 {
		reply(w, after, map[string]any{"errors": []string{"fault after"}})
		return
	}
	if failed != nil {
		reply(w, failed.Code.Info().HTTP, map[string]any{"errors": []string{"1 error occurred:\n\t* " + failed.Error() + "\n\n"}})
		return
	}
	reply(w, http.StatusOK, envelope)
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client has gone
}

func data(value any) map[string]any { return map[string]any{"data": value} }

func (v *fakeVault) handle(path string, body []byte) (map[string]any, *wire.Error) {
	mount := wire.Mount("dbops")
	own := mount.AgentOperation(agentName, opID)
	switch {
	case path == "sys/audit":
		devices := map[string]any{}
		for i := range v.devices {
			devices["file"+strconv.Itoa(i)+"/"] = map[string]string{"type": "file"}
		}
		return data(devices), nil
	case path == "sys/mounts/dbops/tune":
		return data(map[string]any{"audit_non_hmac_request_keys": wire.AuditNonHMACRequestKeys()}), nil
	case path == mount.Poll(agentName):
		return v.poll(body)
	case path == mount.Events(agentName, opID):
		return v.events(body)
	case path == "sys/leases/renew":
		var request map[string]string
		v.decode(body, &request)
		if _, ok := v.leases[request["lease_id"]]; !ok {
			return nil, &wire.Error{Code: wire.CodeInvalid, Reason: "lease not found"}
		}
		return map[string]any{"lease_id": request["lease_id"], "lease_duration": v.ttl / 1000}, nil
	case path == "sys/leases/revoke-prefix/"+own:
		v.leases = map[string]wire.Side{}
		return nil, nil
	case strings.HasPrefix(path, own+"/"):
		return v.work(strings.TrimPrefix(path, own+"/"), body)
	default:
		return nil, &wire.Error{Code: wire.CodeNotFound, Reason: "no path " + path}
	}
}

func (v *fakeVault) decode(body []byte, into any) {
	if err := json.Unmarshal(body, into); err != nil {
		v.t.Errorf("request cannot be read: %v", err)
	}
}

func (v *fakeVault) claim(phase wire.Phase) wire.Claim {
	end := func(name string) wire.Endpoint {
		return wire.Endpoint{Connection: name, Engine: wire.EnginePostgres, Host: "127.0.0.1", Port: 1, Database: "shop"}
	}
	c := wire.Claim{
		OperationID: opID, Fence: strconv.Itoa(v.fence), Phase: phase, Kind: wire.KindClone, Source: end("prod"), Target: end("staging"),
		Requester: wire.User{EntityID: "e1", Name: "alice"}, AccountTTLMilli: v.ttl, MaxDurationMilli: v.maxMS,
	}
	if phase == wire.PhaseRunning {
		c.PlanDigest = "sha256:plan"
	}
	return c
}

func (v *fakeVault) phase() wire.Phase {
	if v.cleanup {
		return wire.PhaseCleanup
	}
	return v.state.ClaimPhase()
}

func (v *fakeVault) poll(body []byte) (map[string]any, *wire.Error) {
	var request wire.PollRequest
	v.decode(body, &request)
	v.polls++
	v.held = request.Held
	response := wire.PollResponse{Claims: []wire.Claim{}, Cancel: []string{}, Drop: []string{}, NextPollMS: 60, Chain: v.chain}
	current := opID + ":" + strconv.Itoa(v.fence)
	// As in the plugin, an older claim on what the agent still holds is not dropped:
	// the answer to its plan, which told it the new one, may be under way.
	for _, held := range request.Held {
		if !strings.HasPrefix(held, opID+":") || v.dropped || v.phase() == "" {
			response.Drop = append(response.Drop, held)
		}
	}
	if v.state == wire.StateRequested && request.FreeSlots > 0 {
		v.state = wire.StatePlanning
		v.fence++
		current = opID + ":" + strconv.Itoa(v.fence)
	}
	if v.state == wire.StateQueued && request.FreeSlots > 0 {
		v.state = wire.StateRunning
		v.fence++
		current = opID + ":" + strconv.Itoa(v.fence)
	}
	if phase := v.phase(); phase != "" && !v.dropped && !slices.Contains(request.Held, current) {
		response.Claims = append(response.Claims, v.claim(phase))
	}
	if v.cancel && v.state.ClaimPhase() != "" {
		response.Cancel = append(response.Cancel, opID)
	}
	return data(response), nil
}

func (v *fakeVault) stale(fence string) *wire.Error {
	if fence != strconv.Itoa(v.fence) || v.dropped {
		return &wire.Error{Code: wire.CodeStaleClaim, Reason: "the claim is not the current one"}
	}
	return nil
}

func (v *fakeVault) work(rest string, body []byte) (map[string]any, *wire.Error) {
	switch rest {
	case "plan":
		var request wire.PlanRequest
		v.decode(body, &request)
		return v.planned(request)
	case "finish":
		var request wire.FinishRequest
		v.decode(body, &request)
		if v.cleanup && v.stale(request.Fence) == nil {
			v.cleanup, v.cleaned, v.cleaning = false, request.Outcome == wire.StateSucceeded, &request
			return data(wire.FinishResponse{State: v.state}), nil
		}
		if v.finish == nil {
			if failed := v.stale(request.Fence); failed != nil {
				return nil, failed
			}
			if v.state.ClaimPhase() == "" {
				return nil, &wire.Error{Code: wire.CodeConflict, Reason: "nobody holds a claim"}
			}
			v.finish, v.state = &request, request.Outcome
		}
		v.finishes++
		return data(wire.FinishResponse{State: v.state}), nil
	}
	purpose, side := wire.PurposeInspect, wire.Side(strings.TrimPrefix(rest, "accounts/inspect/"))
	if !strings.HasPrefix(rest, "accounts/inspect/") {
		side = wire.Side(strings.TrimPrefix(rest, "accounts/"))
		purpose = v.phase().Purposes()[side]
	}
	var request wire.AccountRequest
	v.decode(body, &request)
	if failed := v.stale(request.Fence); failed != nil {
		return nil, failed
	}
	if v.phase().Purposes()[side] != purpose || purpose == "" {
		return nil, &wire.Error{Code: wire.CodeConflict, Reason: "no such account in this state"}
	}
	key := request.Fence + string(side)
	if v.issued[key]++; v.issued[key] > 3 {
		return nil, &wire.Error{Code: wire.CodeRateLimited, Reason: "three accounts were issued"}
	}
	for id, leased := range v.leases {
		if leased == side {
			delete(v.leases, id)
		}
	}
	claim := v.claim(v.phase())
	endpoint := claim.Source
	if side == wire.Target {
		endpoint = claim.Target
	}
	lease := fmt.Sprintf("dbops/agents/%s/operations/%s/accounts/%s/%d", agentName, opID, side, v.issued[key])
	v.leases[lease] = side
	return map[string]any{
		"lease_id": lease, "lease_duration": v.ttl / 1000,
		"data": map[string]any{"endpoint": endpoint, "username": "u-" + key, "password": "hunter2-" + key, "ttl_ms": v.ttl},
	}, nil
}

func (v *fakeVault) planned(request wire.PlanRequest) (map[string]any, *wire.Error) {
	if v.answer != nil && request.Fence == strconv.Itoa(v.fence-1) {
		return data(v.answer), nil // asked again: the answer was lost
	}
	if failed := v.stale(request.Fence); failed != nil {
		return nil, failed
	}
	if v.state == wire.StateRunning {
		if v.changed || wire.Digest([]byte(request.Text)) != wire.Digest(v.plan.Shape) {
			return nil, &wire.Error{Code: wire.CodePlanChanged, Reason: "the source has changed since it was planned", Hint: "ask again"}
		}
		return data(wire.PlanResponse{State: v.state}), nil
	}
	v.decode([]byte(request.Text), &v.plan)
	v.state = wire.StateQueued
	v.answer = &wire.PlanResponse{State: v.state, PlanDigest: "sha256:plan"}
	if v.autoRun {
		v.state = wire.StateRunning
		v.fence++
		claim := v.claim(wire.PhaseRunning)
		v.answer = &wire.PlanResponse{State: v.state, PlanDigest: "sha256:plan", Claim: &claim}
	}
	return data(v.answer), nil
}

func (v *fakeVault) events(body []byte) (map[string]any, *wire.Error) {
	var request wire.EventsRequest
	v.decode(body, &request)
	for _, text := range request.Events {
		var e wire.Event
		v.decode([]byte(text), &e)
		if e.OpID != opID || e.Source != "prod" || e.Target != "staging" || e.User.EntityID != "e1" || e.Operation != wire.KindClone {
			return nil, &wire.Error{Code: wire.CodeInvalid, Reason: "the event is not about the operation"}
		}
	}
	if !strings.Contains("\n"+strings.Join(v.last, "\n")+"\n", "\n"+strings.Join(request.Events, "\n")+"\n") {
		epoch, seq, head := v.chain.Epoch, v.chain.Seq, v.chain.Head
		for _, text := range request.Events {
			var e wire.Event
			v.decode([]byte(text), &e)
			number := func(s string) int { n, _ := strconv.Atoi(s); return n }
			next := e.Epoch == epoch && number(e.Seq) == number(seq)+1 || number(e.Epoch) == number(epoch)+1 && e.Seq == "1"
			if !next || e.Prev != head {
				return nil, &wire.Error{Code: wire.CodeChainBroken, Reason: "does not continue"}
			}
			epoch, seq, head = e.Epoch, e.Seq, wire.EventHash(text)
			v.delivered = append(v.delivered, e)
		}
		v.chain, v.last = wire.Chain{Epoch: epoch, Seq: seq, Head: head}, request.Events
	}
	return data(v.chain), nil
}
