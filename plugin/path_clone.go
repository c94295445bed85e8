package plugin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/oklog/ulid/v2"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Limits on what a requester may write, in bytes.
const (
	maxRequestIDBytes = 128
	maxReasonBytes    = 1024
)

// freeText reads what a person wrote for others to read, without what looks
// personal in it. Its length is checked before that is looked for, since in a long
// text it takes long.
func freeText(d *framework.FieldData, field string) (string, error) {
	text := fieldOf[string](d, field)
	if len(text) > maxReasonBytes {
		return "", invalidField(field, "is longer than %d bytes", maxReasonBytes)
	}
	return wire.RedactPersonal(text), nil
}

func (b *backend) requestPaths() []*framework.Path {
	source, target := framework.GenericNameRegex("source"), framework.GenericNameRegex("target")
	backup := framework.GenericNameRegex("backup")
	fields := func() map[string]*framework.FieldSchema {
		return map[string]*framework.FieldSchema{
			"source":     {Type: framework.TypeString, Description: "Connection to copy from."},
			"target":     {Type: framework.TypeString, Description: "Connection to copy to."},
			"request_id": {Type: framework.TypeString, Description: "Makes repeats safe: the same id with the same content answers the same operation. Belongs to the caller's entity."},
			"reason":     {Type: framework.TypeString, Description: "Why, in the requester's words."},

			wire.OptionOwner:   {Type: framework.TypeString, Default: "stable", Description: `Owner of the copied objects: "stable", the role behind the target's write purpose, or "source", the same names as at the source.`},
			wire.OptionACL:     {Type: framework.TypeString, Default: "drop", Description: `Grants: "drop" or "keep".`},
			wire.OptionJobs:    {Type: framework.TypeString, Default: "2", Description: "Tables copied at once, 1 to 16."},
			wire.OptionReplace: {Type: framework.TypeString, Default: "true", Description: `"true" replaces an existing target database on success, "false" refuses it.`},
		}
	}
	paths := []*framework.Path{{
		Pattern: "clone/" + source + "/" + target + "$",
		Fields:  fields(),
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.UpdateOperation: &framework.PathOperation{Callback: b.pathClone, ForwardPerformanceStandby: true},
		},
		HelpSynopsis: "Ask for a clone of one database into another server.",
		HelpDescription: `
Policies decide at once; an allowed clone is stored and answered with its id and
state, and an agent takes it from there. Read operations/<id> to follow it.`,
	}}
	for kind, pattern := range map[wire.Kind]string{
		wire.KindMerge:   "merge/" + source + "/" + target + "$",
		wire.KindMigrate: "migrate/" + source + "/" + target + "$",
		wire.KindBackup:  "backup/" + source + "$",
		wire.KindRestore: "restore/" + backup + "/" + target + "$",
	} {
		f := fields()
		f["backup"] = &framework.FieldSchema{Type: framework.TypeString, Description: "Backup to restore."}
		paths = append(paths, &framework.Path{
			Pattern: pattern,
			Fields:  f,
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: &framework.PathOperation{Callback: b.refuseKind(kind)},
			},
			HelpSynopsis:    "Ask for a " + string(kind) + "; this version refuses.",
			HelpDescription: "The README has a table of what this version can do.",
		})
	}
	return paths
}

// refuseKind answers requests for what this version cannot do. Nobody learns even
// that without an identity.
func (b *backend) refuseKind(kind wire.Kind) framework.OperationFunc {
	return func(_ context.Context, req *logical.Request, _ *framework.FieldData) (*logical.Response, error) {
		if _, err := b.identify(req); err != nil {
			return nil, err
		}
		return nil, &wire.Error{
			Code: wire.CodeUnsupported, Reason: fmt.Sprintf("%s is not built yet", kind),
			Hint: "see the table of what is not built yet in the README",
		}
	}
}

// cloneOptions reads and checks the options, defaults filled in, so that what is
// stored says everything.
func cloneOptions(d *framework.FieldData) (map[string]string, error) {
	options := map[string]string{}
	for _, name := range wire.OptionNames() {
		options[name] = fieldOf[string](d, name)
	}
	oneOf := func(name string, values ...string) error {
		if !slices.Contains(values, options[name]) {
			return invalidField(name, "must be one of %s", strings.Join(values, ", "))
		}
		return nil
	}
	if err := oneOf(wire.OptionOwner, "stable", "source"); err != nil {
		return nil, err
	}
	if err := oneOf(wire.OptionACL, "drop", "keep"); err != nil {
		return nil, err
	}
	if err := oneOf(wire.OptionReplace, "true", "false"); err != nil {
		return nil, err
	}
	jobs, err := strconv.Atoi(options[wire.OptionJobs])
	if err != nil || jobs < 1 || jobs > 16 {
		return nil, invalidField(wire.OptionJobs, "must be a number from 1 to 16")
	}
	options[wire.OptionJobs] = strconv.Itoa(jobs)
	return options, nil
}

func (b *backend) pathClone(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
	who, err := b.identify(req)
	if err != nil {
		return nil, err
	}
	options, err := cloneOptions(d)
	if err != nil {
		return nil, err
	}
	reason, err := freeText(d, "reason")
	if err != nil {
		return nil, err
	}
	requestID := fieldOf[string](d, "request_id")
	if len(requestID) > maxRequestIDBytes {
		return nil, invalidField("request_id", "is longer than %d bytes", maxRequestIDBytes)
	}
	op := wire.Operation{
		Kind: wire.KindClone, Source: fieldOf[string](d, "source"), Target: fieldOf[string](d, "target"),
		Requester: who.User, Reason: reason, RequestID: wire.RedactPersonal(requestID), Options: options,
	}
	if err := b.loadOperations(ctx, req.Storage); err != nil {
		return nil, err
	}
	r, err := b.requestOperation(ctx, req.Storage, who, op, keyOfRequest(requestID))
	if err != nil {
		return nil, err
	}
	return b.operationResponse(r)
}

// contentDigest is the digest of what was asked for, without who and when.
func contentDigest(op wire.Operation) (string, error) {
	content, err := json.Marshal([]any{op.Kind, op.Source, op.Target, op.Options, op.Reason})
	if err != nil {
		return "", fmt.Errorf("encode request: %w", err)
	}
	return wire.Digest(content), nil
}

// requestOperation decides about op and stores it when it is allowed. What needs
// a database is asked before the entity's lock is taken.
func (b *backend) requestOperation(ctx context.Context, s logical.Storage, who caller, op wire.Operation, key string) (*operationRecord, error) {
	digest, err := contentDigest(op)
	if err != nil {
		return nil, err
	}
	if known, err := b.repeated(who, key, digest); known != nil || err != nil {
		return known, err
	}
	named := policy.Request{
		Entity: who.EntityID, Groups: who.Groups, Kind: op.Kind,
		Source: []policy.Connection{{Name: op.Source}}, Target: []policy.Connection{{Name: op.Target}},
	}
	if d, foreclosed := b.ops.policySet().Foreclosed(named); foreclosed {
		b.metrics.decided(d)
		return nil, refusal(d)
	}
	sides, err := b.operationSides(ctx, s, op)
	if err != nil {
		return nil, err
	}
	if err := b.checkSameDatabase(ctx, s, sides); err != nil {
		return nil, err
	}
	if err := sides.checkPurposes(); err != nil {
		return nil, err
	}

	defer b.ops.lock("entity/" + who.EntityID)()
	if known, err := b.repeated(who, key, digest); known != nil || err != nil {
		return known, err
	}
	now := b.now().UTC().Round(0) // the wall clock alone: it is what is stored
	id, err := b.ops.newOperationID(now)
	if err != nil {
		return nil, err
	}
	op.ID, op.State, op.CreatedAt, op.UpdatedAt = id, wire.StateRequested, now, now
	ask := b.policyRequest(who, op.Kind, sides)

	// The decision and the reservation of its place in the rate windows are one
	// step under the mutex, so that a limit of N admits exactly N whoever asks.
	o := b.ops
	o.mu.Lock()
	databases := sides.databases()
	ask.History = o.history(ask, databases)
	op.Decision = fulfillable(o.compile().Evaluate(ask, now))
	versions := policyVersions(o.compile().Policies(), op.Decision.Policies)
	r := &operationRecord{
		Operation: op, operationHistory: operationHistory{Kept: true, PolicyVersions: versions}, ContentDigest: digest,
		AdmittedAt: latest(now, o.latestAdmission()), Databases: databases, RequesterAliases: who.Aliases,
	}
	if keyOfRequest(op.RequestID) != key {
		r.RequestKey = key
	}
	if op.Decision.Allowed {
		o.admit(r.admission())
	}
	o.mu.Unlock()
	b.metrics.decided(op.Decision)
	if !op.Decision.Allowed {
		return nil, refusal(op.Decision)
	}
	if err := putStored(ctx, s, prefixOperation+id, r); err != nil {
		// It may have been written all the same. Its place in the windows is kept
		// until the storage was asked, which the next request does first.
		b.opsInvalidate(prefixOperation + id)
		return nil, err
	}
	o.mu.Lock()
	o.place(r)
	o.mu.Unlock()
	b.metrics.requested.WithLabelValues(string(op.Kind)).Inc()
	return r, nil
}

// keyOfRequest is what a request_id is known by: what people write into one is not
// kept when it looks personal. It is "" without one.
func keyOfRequest(requestID string) string {
	if requestID == "" {
		return ""
	}
	return wire.Digest([]byte(requestID))
}

// repeated answers the operation that the request_id with that key already made.
func (b *backend) repeated(who caller, key, digest string) (*operationRecord, error) {
	if key == "" {
		return nil, nil
	}
	b.ops.mu.RLock()
	defer b.ops.mu.RUnlock()
	r := b.ops.operations[b.ops.requests[requestKey{who.EntityID, key}]]
	if r == nil {
		return nil, nil
	}
	if r.ContentDigest != digest {
		return nil, &wire.Error{
			Code: wire.CodeRequestIDReused, Field: "request_id",
			Reason: fmt.Sprintf("request_id was used for operation %s with other content", r.ID),
			Hint:   "use a new request_id for a new request",
		}
	}
	return r, nil
}

// newOperationID makes ids that sort by the time of their request, also within one
// millisecond.
func (o *operationState) newOperationID(now time.Time) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	id, err := ulid.New(ulid.Timestamp(now), o.entropy)
	if err != nil {
		return "", fmt.Errorf("make operation id: %w", err)
	}
	return "op-" + strings.ToLower(id.String()), nil
}

// refusal is a decision as an error.
func refusal(d wire.Decision) *wire.Error {
	e := &wire.Error{Code: d.Code, Reason: d.Reason, Policy: d.Policy, Rule: d.Rule, RetryAt: d.RetryAt}
	switch d.Rule {
	case policy.RuleDefaultDeny:
		e.Hint = "a policy must name the entity or one of its groups, the source and the target"
	case policy.RuleLabels:
		e.Hint = "set the label on connections/<name>"
	}
	return e
}

// operationSide is one end of an operation with all that decides about it.
type operationSide struct {
	side     wire.Side
	endpoint wire.Endpoint
	facts    connectionRecord
	config   string // digest
	// identity is where it leads as far as known: asked now, or seen by an
	// inspection.
	identity *wire.ServerIdentity
	// inspected: identity is from the plan of this operation.
	inspected bool
	// sameAddress are other connections configured with the same address and
	// database, sameDatabaseName those of other addresses that have a database of
	// this name, by the digest of their config.
	sameAddress      []string
	sameDatabaseName map[string]string
}

// server is the one it leads to, "" while that is not known.
func (s *operationSide) server() string {
	if s.identity == nil {
		return ""
	}
	return s.identity.Server
}

type operationSides struct {
	source, target operationSide
}

func (s *operationSides) both() []*operationSide { return []*operationSide{&s.source, &s.target} }

// operationSides reads what is known of both connections, without asking any
// server.
func (b *backend) operationSides(ctx context.Context, s logical.Storage, op wire.Operation) (*operationSides, error) {
	sides := &operationSides{source: operationSide{side: wire.Source}, target: operationSide{side: wire.Target}}
	for i, name := range []string{op.Source, op.Target} {
		side := sides.both()[i]
		var err error
		if side.endpoint, side.facts, side.config, err = b.operationEndpoint(ctx, s, name); err != nil {
			return nil, err
		}
		if known := side.facts.Identity; known != nil && known.Config == side.config {
			identity := known.ServerIdentity
			identity.Database = side.endpoint.Database
			side.identity = &identity
		}
	}
	b.ops.mu.RLock()
	names := slices.Sorted(maps.Keys(b.ops.connections))
	b.ops.mu.RUnlock()
	for _, name := range names {
		ep, _, config, err := b.operationEndpoint(ctx, s, name)
		if err != nil {
			continue // without a config it leads nowhere
		}
		for _, side := range sides.both() {
			switch {
			case name == side.endpoint.Connection:
			case sameEndpoint(ep, side.endpoint):
				side.sameAddress = append(side.sameAddress, name)
			case ep.Engine == side.endpoint.Engine && ep.Database == side.endpoint.Database:
				if side.sameDatabaseName == nil {
					side.sameDatabaseName = map[string]string{}
				}
				side.sameDatabaseName[name] = config
			}
		}
	}
	return sides, nil
}

// databases are those that both sides are known to lead to.
func (s *operationSides) databases() map[wire.Side]wire.ServerIdentity {
	all := map[wire.Side]wire.ServerIdentity{}
	for _, side := range s.both() {
		if side.identity != nil {
			all[side.side] = *side.identity
		}
	}
	return all
}

// checkPurposes refuses when a role that the operation will need is not set.
func (s *operationSides) checkPurposes() error {
	for _, phase := range []wire.Phase{wire.PhasePlanning, wire.PhaseRunning} {
		for _, side := range s.both() {
			purpose := phase.Purposes()[side.side]
			if purpose != "" && side.facts.Purposes[purpose] == "" {
				return &wire.Error{
					Code: wire.CodeInvalid, Field: "purposes",
					Reason: fmt.Sprintf("connection %s has no role for purpose %s", side.endpoint.Connection, purpose),
					Hint:   fmt.Sprintf("write connections/%s purposes=%s=<role>, together with the other purposes", side.endpoint.Connection, purpose),
				}
			}
		}
	}
	return nil
}

// checkSameDatabase refuses when both sides are one database: by name, by
// configured endpoint, and by the servers' own identity when they answer.
func (b *backend) checkSameDatabase(ctx context.Context, s logical.Storage, sides *operationSides) error {
	if e := sides.knownSame(); e != nil {
		return e
	}
	b.askServers(ctx, s, sides)
	if e := sides.knownSame(); e != nil {
		return e
	}
	return nil
}

// knownSame refuses when both sides are one database as far as it is known.
func (s *operationSides) knownSame() *wire.Error {
	source, target := s.source.endpoint, s.target.endpoint
	switch {
	case source.Connection == target.Connection:
		return sameDatabase(source, target, "the same connection")
	case sameEndpoint(source, target):
		return sameDatabase(source, target, "the same address and database")
	case s.source.identity != nil && s.target.identity != nil && s.source.identity.Same(*s.target.identity):
		return sameDatabase(source, target, "the same database of one server")
	}
	return nil
}

func sameDatabase(source, target wire.Endpoint, why string) *wire.Error {
	return &wire.Error{
		Code: wire.CodeSameDatabase, Rule: policy.RuleSameDatabase,
		Reason: fmt.Sprintf("source %s and target %s are %s", source.Connection, target.Connection, why),
	}
}

// policyRequest is what policies are asked: each side under the name asked for,
// and under every other name whose last seen identity is the same database.
func (b *backend) policyRequest(who caller, kind wire.Kind, sides *operationSides) policy.Request {
	return policy.Request{
		Entity: who.EntityID, Groups: who.Groups, Kind: kind,
		Source: b.namesOf(&sides.source), Target: b.namesOf(&sides.target), ZonesInUse: b.ops.zonesInUse(),
		// Workers have no network but the sockets of their two databases, and only
		// agents that report a working audit device get claims.
		Isolated: true, Audited: true,
	}
}

func (b *backend) namesOf(side *operationSide) []policy.Connection {
	name := side.endpoint.Connection
	names := []policy.Connection{{
		Name: name, Engine: side.endpoint.Engine, Labels: side.facts.Labels, Zone: side.facts.Zone, Protected: side.facts.Protected, TLS: side.encrypted(),
	}}
	b.ops.mu.RLock()
	defer b.ops.mu.RUnlock()
	for other, facts := range b.ops.connections {
		if other == name {
			continue
		}
		inspected := side.identity != nil && facts.Identity != nil && facts.Identity.Same(*side.identity)
		if inspected || b.ops.saidToBe(side, other) || slices.Contains(side.sameAddress, other) {
			names = append(names, policy.Connection{Name: other, Engine: side.endpoint.Engine, Labels: facts.Labels, Zone: facts.Zone, Protected: facts.Protected})
		}
	}
	return names
}

// zonesInUse tells whether any connection has a zone.
func (o *operationState) zonesInUse() bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	for _, c := range o.connections {
		if c.Zone != "" {
			return true
		}
	}
	return false
}

// encrypted tells whether sessions to the side are encrypted whatever the server
// wants; an inspection that was not says no in any case.
func (s *operationSide) encrypted() bool {
	switch s.endpoint.SSLMode {
	case "require", "verify-ca", "verify-full":
		return !s.inspected || s.identity.TLS
	}
	return false
}

// sameEndpoint tells whether two endpoints are one database by their address.
func sameEndpoint(x, y wire.Endpoint) bool {
	return x.Engine == y.Engine && x.Database == y.Database && x.Port == y.Port && strings.EqualFold(x.Host, y.Host)
}
