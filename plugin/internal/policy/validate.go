package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// Validate returns a *wire.Error naming the field that is wrong, or nil.
func (p Policy) Validate() error {
	for _, check := range []func() *wire.Error{p.validateWho, p.validateWhat, p.validatePreset, p.validateLimits, p.validateObligations} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (p Policy) validateWho() *wire.Error {
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
	return nil
}

func (p Policy) validateWhat() *wire.Error {
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
	for field, labels := range map[string]map[string]string{
		"source_labels": p.SourceLabels, "target_labels": p.TargetLabels, FieldAgentLabels: p.AgentLabels,
	} {
		if _, ok := labels[""]; ok {
			return invalid(field, "a key is empty")
		}
	}
	for _, kind := range p.AllowedOperations {
		if kind != Any && !wire.Kind(kind).Valid() {
			return invalid(RuleAllowedOperations, fmt.Sprintf("%q is not a kind of operation; known are %s and *", kind, kinds()))
		}
	}
	return nil
}

func (p Policy) validatePreset() *wire.Error {
	if p.Preset != "" && !slices.Contains(Presets(), p.Preset) {
		return invalid(FieldPreset, fmt.Sprintf("%q is not a preset; known are %s", p.Preset, strings.Join(Presets(), ", ")))
	}
	if p.Preset == PresetMinimum {
		return nil
	}
	for _, rule := range []struct {
		field string
		value bool
	}{{RuleRequireAuthentication, p.RequireAuthentication}, {RuleEnableNetworkIsolation, p.EnableNetworkIsolation}} {
		if !rule.value {
			return invalid(rule.field, "false exists only with preset=minimum, and even there lifts nothing")
		}
	}
	return nil
}

func (p Policy) validateLimits() *wire.Error {
	for _, limit := range []struct {
		field string
		value int64
	}{
		{RuleMaxOperationsPerHour, int64(p.MaxOperationsPerHour)},
		{RuleMaxOperationsPerHourSource, int64(p.MaxOperationsPerHourSource)},
		{RuleMaxOperationsPerHourTarget, int64(p.MaxOperationsPerHourTarget)},
		{RuleMaxOperationsPerHourMount, int64(p.MaxOperationsPerHourMount)},
		{RuleMaxConcurrent, int64(p.MaxConcurrent)},
		{RuleMaxDuration, int64(p.MaxDuration)},
		{RuleMaxBytes, p.MaxBytes},
		{RuleMaxRows, p.MaxRows},
		{RuleCloneTTL, int64(p.CloneTTL)},
	} {
		if limit.value < 0 {
			return invalid(limit.field, "must not be negative; 0 means no limit")
		}
	}
	return nil
}

func (p Policy) validateObligations() *wire.Error {
	if slices.Contains(p.Agents, "") {
		return invalid(RuleAgents, "an element is empty")
	}
	switch p.UndecidedColumns {
	case "", UndecidedStop, UndecidedCopy:
	default:
		return invalid(RuleUndecidedColumns, fmt.Sprintf("%q is neither %s nor %s", p.UndecidedColumns, UndecidedStop, UndecidedCopy))
	}
	if _, err := loadZone(p.AllowedHoursTimeZone); err != nil {
		return invalid(FieldAllowedHoursTimeZone, fmt.Sprintf("%q is not an IANA time zone such as Europe/Berlin", p.AllowedHoursTimeZone))
	}
	if p.AllowedHoursTimeZone != "" && len(p.AllowedHours) == 0 {
		return invalid(FieldAllowedHoursTimeZone, "a time zone needs allowed_hours")
	}
	if _, err := ParseHours(p.AllowedHours, p.AllowedHoursTimeZone); err != nil {
		return invalid(RuleAllowedHours, err.Error())
	}
	return p.Approvals.validate()
}

func (a *Approvals) validate() *wire.Error {
	switch {
	case a == nil:
		return nil
	case a.Count < 0:
		return invalid(FieldApprovalsCount, "must not be negative; 0 asks for no approval")
	case a.Count == 0:
		return invalid(FieldApprovalsCount, "approvals_groups and approvals_ttl need an approvals_count")
	case len(a.Groups) == 0:
		return invalid(FieldApprovalsGroups, "name at least one group id whose members may approve")
	case a.TTL < 0:
		return invalid(FieldApprovalsTTL, "must not be negative; 0 means the default")
	}
	for _, id := range a.Groups {
		if strings.TrimSpace(id) == "" || id == Any {
			return invalid(FieldApprovalsGroups, "groups are ids of identity groups")
		}
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
