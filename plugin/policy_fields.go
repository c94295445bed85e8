package plugin

import (
	"time"

	"github.com/hashicorp/vault/sdk/framework"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/policy"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// defaultOperationsPerHour is what a policy permits that does not say.
const defaultOperationsPerHour = 10

// newPolicy has the defaults of a policy that says nothing.
func newPolicy() policy.Policy {
	return policy.Policy{
		RequireAuthentication: true, EnableNetworkIsolation: true, AuditOperations: true, MaxOperationsPerHour: defaultOperationsPerHour,
	}
}

func policyFields() map[string]*framework.FieldSchema {
	list := func(d string) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeCommaStringSlice, Description: d}
	}
	labels := func(d string) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeKVPairs, Description: d}
	}
	text := func(d string) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeString, Description: d}
	}
	flag := func(d string, def bool) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeBool, Default: def, Description: d}
	}
	number := func(d string) *framework.FieldSchema {
		return &framework.FieldSchema{Type: framework.TypeInt, Description: d + " 0 means no limit."}
	}
	perHour := number("Operations of one entity in any 60 minutes.")
	perHour.Default = defaultOperationsPerHour
	return map[string]*framework.FieldSchema{
		"name":             text("Name of the policy."),
		policy.FieldPreset: text("maximum, balanced or minimum: gives its level of the first six rules to those that are not given."),
		"entities":         list("Who: entity ids; * means everybody."),
		"groups":           list("Who: ids of identity groups."),
		"operations":       list("What: kinds of operation the policy speaks about; all when empty."),
		"sources":          list("What: connection names of sources, globs allowed."),
		"targets":          list("What: connection names of targets, globs allowed."),
		"source_labels":    labels("What: label values the source must have, globs allowed."),
		"target_labels":    labels("What: label values the target must have, globs allowed."),

		policy.RuleRequireAuthentication:      flag("An entity must stand behind the request. One is needed anyway; false needs preset=minimum and lifts nothing.", true),
		policy.RuleAllowCrossEngineOperations: flag("Source and target may be of different engines.", false),
		policy.RuleEnableNetworkIsolation:     flag("Only in a sandbox without a network. Every sandbox is one; false needs preset=minimum and lifts nothing.", true),
		policy.RuleAuditOperations:            flag("Only on agents that see a working audit device. Others get no work; false lifts nothing.", true),
		policy.RuleMaxOperationsPerHour:       perHour,
		policy.RuleAllowedOperations:          list("Kinds of operation permitted, or *. None makes the policy a prohibition."),

		policy.RuleMaxOperationsPerHourSource: number("Operations from one source, under all its names, in any 60 minutes."),
		policy.RuleMaxOperationsPerHourTarget: number("Operations into one target, under all its names, in any 60 minutes."),
		policy.RuleMaxOperationsPerHourMount:  number("Operations of the whole mount in any 60 minutes."),
		policy.RuleMaxConcurrent:              number("Unfinished operations of one entity."),
		policy.RuleMaxDuration:                {Type: framework.TypeDurationSecond, Description: "How long planning and running may take. 0 means the default of 4 hours."},
		policy.RuleMaxBytes:                   {Type: framework.TypeInt64, Description: "Bytes of the source. 0 means no limit."},
		policy.RuleMaxRows:                    {Type: framework.TypeInt64, Description: "Rows of the source. 0 means no limit."},
		policy.RuleAllowedHours:               list(`When, by Vault's clock: "mon-fri 08:00-18:00", "sat 22:00-06:00", "00:00-24:00"; always when empty.`),
		policy.FieldAllowedHoursTimeZone:      text("IANA name of the zone of allowed_hours; UTC when empty."),
		policy.RuleRequireTLS:                 flag("Both connections must be encrypted.", false),
		policy.RuleAllowProtectedTarget:       flag("The target may be a protected connection.", false),
		policy.RuleAllowCrossZone:             flag("Source and target may be in different zones.", false),
		policy.RuleAgents:                     list("Names of the agents that may take the operation, globs allowed; every agent when empty."),
		policy.FieldAgentLabels:               labels("Label values such an agent must have, globs allowed."),

		policy.FieldApprovalsCount:  {Type: framework.TypeInt, Description: "Different people who must approve the plan. 0 means none."},
		policy.FieldApprovalsGroups: list("Ids of identity groups whose members may approve."),
		policy.FieldApprovalsTTL:    {Type: framework.TypeDurationSecond, Description: "How long an approval holds. 0 means the plugin's default."},

		policy.RuleMask:             text("Masking profile that must be applied."),
		policy.RuleUndecidedColumns: text(`Columns that look personal and have no treatment: "stop" the plan or "copy"; with a mask stop is the default.`),
		policy.RulePreview:          flag("Rows may be read while planning, for samples and the preview of a merge.", false),
		policy.RuleCloneTTL:         {Type: framework.TypeDurationSecond, Description: "How long a clone may live at most. 0 means no end."},
	}
}

// changePolicy puts the fields that were given into p. After an error p is none.
func changePolicy(p *policy.Policy, d *framework.FieldData) error {
	if preset, ok := fieldGiven[string](d, policy.FieldPreset); ok {
		p.ApplyPreset(preset)
	}
	setGiven[[]string](d, map[string]*[]string{
		"entities": &p.Entities, "groups": &p.Groups, "sources": &p.Sources, "targets": &p.Targets,
		policy.RuleAllowedOperations: &p.AllowedOperations, policy.RuleAllowedHours: &p.AllowedHours, policy.RuleAgents: &p.Agents,
	})
	setGiven[string](d, map[string]*string{
		policy.FieldAllowedHoursTimeZone: &p.AllowedHoursTimeZone, policy.RuleMask: &p.Mask, policy.RuleUndecidedColumns: &p.UndecidedColumns,
	})
	setGiven[bool](d, map[string]*bool{
		policy.RuleRequireAuthentication: &p.RequireAuthentication, policy.RuleAllowCrossEngineOperations: &p.AllowCrossEngineOperations,
		policy.RuleEnableNetworkIsolation: &p.EnableNetworkIsolation, policy.RuleAuditOperations: &p.AuditOperations,
		policy.RuleRequireTLS: &p.RequireTLS, policy.RuleAllowProtectedTarget: &p.AllowProtectedTarget,
		policy.RuleAllowCrossZone: &p.AllowCrossZone, policy.RulePreview: &p.Preview,
	})
	setGiven[int](d, map[string]*int{
		policy.RuleMaxOperationsPerHour: &p.MaxOperationsPerHour, policy.RuleMaxOperationsPerHourSource: &p.MaxOperationsPerHourSource,
		policy.RuleMaxOperationsPerHourTarget: &p.MaxOperationsPerHourTarget, policy.RuleMaxOperationsPerHourMount: &p.MaxOperationsPerHourMount,
		policy.RuleMaxConcurrent: &p.MaxConcurrent,
	})
	setGiven[int64](d, map[string]*int64{policy.RuleMaxBytes: &p.MaxBytes, policy.RuleMaxRows: &p.MaxRows})
	for field, into := range map[string]*map[string]string{
		"source_labels": &p.SourceLabels, "target_labels": &p.TargetLabels, policy.FieldAgentLabels: &p.AgentLabels,
	} {
		if given, ok := fieldGiven[map[string]string](d, field); ok {
			*into = pairs(given)
		}
	}
	for field, into := range map[string]*time.Duration{policy.RuleMaxDuration: &p.MaxDuration, policy.RuleCloneTTL: &p.CloneTTL} {
		if err := setDuration(d, field, into); err != nil {
			return err
		}
	}
	if kinds, ok := fieldGiven[[]string](d, "operations"); ok {
		p.Operations = nil
		for _, kind := range kinds {
			p.Operations = append(p.Operations, wire.Kind(kind))
		}
	}
	var err error
	p.Approvals, err = changeApprovals(p.Approvals, d)
	return err
}

// setGiven sets what was given.
func setGiven[T any](d *framework.FieldData, fields map[string]*T) {
	for field, into := range fields {
		if value, ok := fieldGiven[T](d, field); ok {
			*into = value
		}
	}
}

// setDuration sets what was given.
func setDuration(d *framework.FieldData, field string, into *time.Duration) error {
	value, given, err := durationGiven(d, field)
	if err == nil && given {
		*into = value
	}
	return err
}

// changeApprovals is the rule with the fields that were given; a count of 0 takes
// it away.
func changeApprovals(was *policy.Approvals, d *framework.FieldData) (*policy.Approvals, error) {
	var a policy.Approvals
	if was != nil {
		a = *was
	}
	count, given := fieldGiven[int](d, policy.FieldApprovalsCount)
	if given && count == 0 {
		return nil, nil
	}
	setGiven(d, map[string]*int{policy.FieldApprovalsCount: &a.Count})
	setGiven(d, map[string]*[]string{policy.FieldApprovalsGroups: &a.Groups})
	if err := setDuration(d, policy.FieldApprovalsTTL, &a.TTL); err != nil {
		return nil, err
	}
	if a.Count == 0 && len(a.Groups) == 0 && a.TTL == 0 {
		return nil, nil
	}
	return &a, nil
}

// policyData is what a read of p answers: every field under the name and in the
// unit in which it is written, beside the score.
func policyData(p policy.Policy) (map[string]any, error) {
	data, err := responseData(p)
	if err != nil {
		return nil, err
	}
	delete(data, policy.RuleApprovals)
	for name, schema := range policyFields() {
		if data[name] != nil {
			continue
		}
		switch schema.Type { //nolint:exhaustive // of the types that JSON leaves out
		case framework.TypeCommaStringSlice:
			data[name] = []any{}
		case framework.TypeKVPairs:
			data[name] = map[string]any{}
		default:
			data[name] = schema.Type.Zero()
		}
	}
	data[policy.RuleMaxDuration], data[policy.RuleCloneTTL] = int64(p.MaxDuration/time.Second), int64(p.CloneTTL/time.Second)
	if a := p.Approvals; a != nil {
		data[policy.FieldApprovalsCount], data[policy.FieldApprovalsGroups] = a.Count, a.Groups
		data[policy.FieldApprovalsTTL] = int64(a.TTL / time.Second)
	}
	data["score"], data["score_band"] = p.Score()
	return data, nil
}
