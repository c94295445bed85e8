package policy

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/ryanuber/go-glob"
)

// Any stands for every entity in [Policy.Entities] and for every kind in
// [Policy.AllowedOperations].
const Any = "*"

// Policy says who may do what under which rules. Who and what select the
// requests it speaks about; the rules restrict them.
type Policy struct {
	Name    string `json:"name"`
	Version int64  `json:"version"` // grows with each write

	// Who: an entity id of Entities, [Any], or membership of a group id of
	// Groups. A policy without any of them speaks about nobody.
	Entities []string `json:"entities"`
	Groups   []string `json:"groups"`

	// What. Operations selects by kind, empty means every kind. Sources and
	// Targets are globs of connection names; none matches nothing. Labels
	// select by glob on the value of each key; a connection must match all.
	Operations   []wire.Kind       `json:"operations"`
	Sources      []string          `json:"sources"`
	Targets      []string          `json:"targets"`
	SourceLabels map[string]string `json:"source_labels,omitempty"`
	TargetLabels map[string]string `json:"target_labels,omitempty"`

	// The six rules of the seed.

	// RequireAuthentication: an entity must stand behind the request. One is
	// needed anyway; false lifts nothing.
	RequireAuthentication bool `json:"require_authentication"`
	// AllowCrossEngineOperations permits source and target of different engines.
	AllowCrossEngineOperations bool `json:"allow_cross_engine_operations"`
	// EnableNetworkIsolation: only in a sandbox without any network. Every
	// sandbox is one; false lifts nothing.
	EnableNetworkIsolation bool `json:"enable_network_isolation"`
	// AuditOperations: only on agents that see a working audit device. Others
	// get no claim; false lifts nothing.
	AuditOperations bool `json:"audit_operations"`
	// MaxOperationsPerHour limits the operations of one entity in any 60
	// minutes; 0 means no limit.
	MaxOperationsPerHour int `json:"max_operations_per_hour"`
	// AllowedOperations are the kinds permitted, or [Any]. None permits nothing,
	// which makes the policy a prohibition.
	AllowedOperations []string `json:"allowed_operations"`

	// Limits of the same kind on other things than the entity, because one
	// person may be two entities. 0 means no limit.
	MaxOperationsPerHourSource int `json:"max_operations_per_hour_source"`
	MaxOperationsPerHourTarget int `json:"max_operations_per_hour_target"`
	MaxOperationsPerHourMount  int `json:"max_operations_per_hour_mount"`

	MaxConcurrent        int           `json:"max_concurrent"` // unfinished operations of one entity; 0: no limit
	MaxDuration          time.Duration `json:"max_duration"`   // nanoseconds; 0: the plugin's default
	MaxBytes             int64         `json:"max_bytes"`      // 0: no limit
	MaxRows              int64         `json:"max_rows"`       // 0: no limit
	RequireTLS           bool          `json:"require_tls"`    // on both sides
	AllowProtectedTarget bool          `json:"allow_protected_target"`

	// Approvals asks for people's consent to the plan; nil asks for none.
	Approvals *Approvals `json:"approvals,omitempty"`
}

// Approvals says who has to agree to an operation before it runs.
type Approvals struct {
	Count  int           `json:"count"`  // different people, at least 1
	Groups []string      `json:"groups"` // ids; an approver is a member of one of them
	TTL    time.Duration `json:"ttl"`    // nanoseconds an approval holds; 0: the plugin's default
}

func (a *Approvals) validate() *wire.Error {
	switch {
	case a == nil:
		return nil
	case a.Count < 0:
		return invalid(RuleApprovals+"_count", "must not be negative; 0 asks for no approval")
	case a.Count == 0:
		return invalid(RuleApprovals+"_count", "approvals_groups and approvals_ttl need an approvals_count")
	case len(a.Groups) == 0:
		return invalid(RuleApprovals+"_groups", "name at least one group id whose members may approve")
	case a.TTL < 0:
		return invalid(RuleApprovals+"_ttl", "must not be negative; 0 means the default")
	}
	for _, id := range a.Groups {
		if strings.TrimSpace(id) == "" || id == Any {
			return invalid(RuleApprovals+"_groups", "groups are ids of identity groups")
		}
	}
	return nil
}

// Names of the rules, as they stand in decisions and as fields of policies.
const (
	RuleRequireAuthentication      = "require_authentication"
	RuleAllowCrossEngineOperations = "allow_cross_engine_operations"
	RuleEnableNetworkIsolation     = "enable_network_isolation"
	RuleAuditOperations            = "audit_operations"
	RuleMaxOperationsPerHour       = "max_operations_per_hour"
	RuleAllowedOperations          = "allowed_operations"
	RuleMaxOperationsPerHourSource = "max_operations_per_hour_source"
	RuleMaxOperationsPerHourTarget = "max_operations_per_hour_target"
	RuleMaxOperationsPerHourMount  = "max_operations_per_hour_mount"
	RuleMaxConcurrent              = "max_concurrent"
	RuleMaxBytes                   = "max_bytes"
	RuleMaxRows                    = "max_rows"
	RuleRequireTLS                 = "require_tls"
	RuleAllowProtectedTarget       = "allow_protected_target"
	RuleApprovals                  = "approvals"       // fields: approvals_count, approvals_groups, approvals_ttl
	RuleLabels                     = "labels"          // every label key that a policy mentions is carried
	RuleDefaultDeny                = "default_deny"    // no policy matches
	RuleSameDatabase               = "same_database"   // decided outside of policies
	RuleServerIdentity             = "server_identity" // decided outside of policies
)

// Validate returns a *wire.Error naming the field that is wrong, or nil.
func (p Policy) Validate() error {
	if len(p.Entities) == 0 && len(p.Groups) == 0 {
		return invalid("entities", "name at least one entity id or group id; entities=* means everybody")
	}
	for _, id := range slices.Concat(p.Entities, p.Groups) {
		if strings.TrimSpace(id) == "" {
			return invalid("entities", "an id of entities or groups is empty")
		}
	}
	if slices.Contains(p.Groups, Any) {
		return invalid("groups", "groups are ids; use entities=* for everybody")
	}
	for _, kind := range p.Operations {
		if !kind.Valid() {
			return invalid("operations", fmt.Sprintf("%q is not a kind of operation; known are %s", kind, kinds()))
		}
	}
	if len(p.Sources) == 0 {
		return invalid("sources", "name at least one connection or glob; * means every source")
	}
	if len(p.Targets) == 0 {
		return invalid("targets", "name at least one connection or glob; * means every target")
	}
	if slices.Contains(p.Sources, "") {
		return invalid("sources", "an element is empty")
	}
	if slices.Contains(p.Targets, "") {
		return invalid("targets", "an element is empty")
	}
	for field, labels := range map[string]map[string]string{"source_labels": p.SourceLabels, "target_labels": p.TargetLabels} {
		if _, ok := labels[""]; ok {
			return invalid(field, "a key is empty")
		}
	}
	for _, kind := range p.AllowedOperations {
		if kind != Any && !wire.Kind(kind).Valid() {
			return invalid(RuleAllowedOperations, fmt.Sprintf("%q is not a kind of operation; known are %s and *", kind, kinds()))
		}
	}
	for _, limit := range []struct {
		field string
		value int64
	}{
		{RuleMaxOperationsPerHour, int64(p.MaxOperationsPerHour)},
		{RuleMaxOperationsPerHourSource, int64(p.MaxOperationsPerHourSource)},
		{RuleMaxOperationsPerHourTarget, int64(p.MaxOperationsPerHourTarget)},
		{RuleMaxOperationsPerHourMount, int64(p.MaxOperationsPerHourMount)},
		{RuleMaxConcurrent, int64(p.MaxConcurrent)},
		{"max_duration", int64(p.MaxDuration)},
		{RuleMaxBytes, p.MaxBytes},
		{RuleMaxRows, p.MaxRows},
	} {
		if limit.value < 0 {
			return invalid(limit.field, "must not be negative; 0 means no limit")
		}
	}
	if err := p.Approvals.validate(); err != nil {
		return err
	}
	return nil
}

func invalid(field, reason string) *wire.Error {
	return &wire.Error{Code: wire.CodeInvalid, Field: field, Reason: reason}
}

func kinds() string {
	names := make([]string, 0, len(wire.Kinds()))
	for _, kind := range wire.Kinds() {
		names = append(names, string(kind))
	}
	return strings.Join(names, ", ")
}

// LabelKeys returns, sorted, every label key that any of the policies selects
// by.
func LabelKeys(policies []Policy) []string {
	seen := map[string]bool{}
	for _, p := range policies {
		for key := range p.SourceLabels {
			seen[key] = true
		}
		for key := range p.TargetLabels {
			seen[key] = true
		}
	}
	keys := make([]string, 0, len(seen))
	for key := range seen {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

func (p Policy) matchesWho(r Request) bool {
	if slices.Contains(p.Entities, Any) || slices.Contains(p.Entities, r.Entity) {
		return true
	}
	for _, group := range r.Groups {
		if slices.Contains(p.Groups, group) {
			return true
		}
	}
	return false
}

func (p Policy) matchesKind(r Request) bool {
	return len(p.Operations) == 0 || slices.Contains(p.Operations, r.Kind)
}

func matchesConnection(globs []string, labels map[string]string, c Connection) bool {
	if !slices.ContainsFunc(globs, func(g string) bool { return glob.Glob(g, c.Name) }) {
		return false
	}
	for key, pattern := range labels {
		value, ok := c.Labels[key]
		if !ok || !glob.Glob(pattern, value) {
			return false
		}
	}
	return true
}

// matches tells whether p speaks about the request, and whether it does so by
// the names that were asked for, not only by another name of the same database.
func (p Policy) matches(r Request) (matched, asAsked bool) {
	if !p.matchesWho(r) || !p.matchesKind(r) {
		return false, false
	}
	side := func(globs []string, labels map[string]string, names []Connection) (matched, first bool) {
		if len(names) == 0 { // an operation without that side
			return true, true
		}
		for i, c := range names {
			if matchesConnection(globs, labels, c) {
				matched = true
				first = first || i == 0
			}
		}
		return matched, first
	}
	anySource, firstSource := side(p.Sources, p.SourceLabels, r.Source)
	anyTarget, firstTarget := side(p.Targets, p.TargetLabels, r.Target)
	return anySource && anyTarget, firstSource && firstTarget
}
